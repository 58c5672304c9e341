"""
How two hosts find each other, race, and look at each other's changes: through the scratch directory, without a network.

What one says to the other is a directory that it makes in ``meet``; what is longer is a file that was closed before.
Whoever waits makes a change of its own there before each look, so a cache of listings, or a mount without close-to-open
consistency, does not keep them apart. It does not tell two containers of one host apart from that host: they share its
caches.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from nfsrwlock import __version__
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.players import Progress, planned, race, set_up
from nfsrwlock.doctor.races import WARMING_LOOKS, Plan, Record, call_seconds
from nfsrwlock.doctor.scratch import Scratch, read, read_json, scratch_path, write
from nfsrwlock.doctor.verdicts import NEWS_SECONDS, Result, Sight
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import mount_of
from nfsrwlock_core.system.process import current_identity

#: How long each may wait for the next word of the other.
ANSWER_SECONDS: Final = 60.0
#: How long the second node looks for the first one's directory.
FIND_SECONDS: Final = 10.0
_PINGS: Final = 8
_FILES: Final = 3
_WARMING_SECONDS: Final = 0.1


class _Table:
    """Where the two talk: node 0, which leads, and node 1."""

    def __init__(self, scratch: Scratch, side: int, progress: Progress) -> None:
        self.root: Final = scratch.root
        self.side: Final = side
        self._files = LockDirectory(f"{scratch.root}/meet")
        self._mark = f"look.{secrets.token_hex(4)}"
        self.progress = progress

    def say(self, name: str, content: dict[str, Any] | None = None) -> None:
        if content is not None:
            write(f"{self._files.path}/{name}.json", json.dumps(content).encode())
        self._files.mkdir(name)

    def content(self, name: str) -> dict[str, Any]:
        return read_json(f"{self._files.path}/{name}.json")

    def look_for(self, beginning: str, doing: str, seconds: float, pause: float = 0.0) -> str | None:
        """Wait for a name that begins so, and return the rest of it; ``None``: it did not come in time."""
        limit = time.monotonic() + seconds
        while True:
            last = time.monotonic() > limit
            self.progress(doing)
            self._files.mkdir(self._mark)  # so that no cache of this client's can be in the way of what follows
            said = sorted(name for name in self._files.listdir() if not name.endswith(".json"))
            with suppress(FileNotFoundError):
                self._files.rmdir(self._mark)
            for name in said:
                if name.startswith(beginning):
                    return name.removeprefix(beginning)
            if "end" in said:
                raise CliError("the first node has ended; see what it says there", Exit.FAILED)
            if last:
                return None
            time.sleep(pause)

    def hear(self, beginning: str, doing: str) -> str:
        """
        Wait for a name that begins so, and return the rest of it.

        :raises CliError: it did not come
        """
        rest = self.look_for(beginning, doing, ANSWER_SECONDS)
        if rest is None:
            other = ("second", "first")[self.side]
            raise CliError(
                f"the {other} node does not react (for {ANSWER_SECONDS:g} s, while {doing}): it has ended, or listings "
                "do not show what the other host makes; see what it says there, and try again",
                Exit.FAILED,
            )
        return rest

    def meet(self, point: str) -> None:
        """Wait until both have come to this point."""
        self.say(f"{point}.{self.side}")
        self.hear(f"{point}.{1 - self.side}", "comparing what both see")


def invite(scratch: Scratch) -> None:
    """Make the place where the two talk; before the other is told where that is."""
    scratch.mkdir("meet")


def lead(
    scratch: Scratch, rounds: int, processes: int, wait_seconds: float, progress: Progress
) -> tuple[Result, dict[str, Any]]:
    """
    Wait for the second node, race with it, and return what both saw, and what the second node said of itself.

    :param wait_seconds: how long it may take to come
    :param progress: called every now and then, with what is being done; raises to stop
    :raises CliError: it did not come, or did not stay
    """
    table = _Table(scratch, 0, progress)
    try:
        who = table.look_for("join.", "waiting for the second node", wait_seconds, 0.2)
        if who is None:
            raise CliError(
                f"no second node came within {wait_seconds:g} s; run the command shown above on it, or give more time "
                "with --timeout. If it says that it has joined, listings here do not show what another host makes, and "
                "locks cannot work",
                Exit.TIMED_OUT,
            )
        peer = table.content(f"join.{who}")
        if peer.get("version") != __version__:
            raise CliError(
                f"{peer.get('host')} has nfsrwlock {peer.get('version')}, this host has {__version__}; install one "
                "version on both"
            )
        table.say(f"with.{who}")
        ahead, uncertain = _compare_clocks(table)
        plan = Plan(rounds, max(call_seconds(scratch.root), peer["call_seconds"]), 2 * processes)
        set_up(scratch, plan, progress)
        for name in ("data", "news-0", "news-1"):
            scratch.mkdir(name)
        table.say("plan")

        def agree() -> float:
            table.hear("ready", "waiting for the second node's processes")
            wait = max(0.1, 100 * plan.call) + uncertain
            start = time.monotonic() + wait
            table.say(f"go.{(time.time() + wait + ahead) * 1e9:.0f}")
            return start

        records = race(scratch, range(processes), agree, progress)
        sight = _look(table)
        table.hear("done", "waiting for the second node's results")
        done = table.content("done")
        records += [Record(**record) for record in done["records"]]
        is_other_host = peer["kernel"] != _kernel()
        sights = [sight, Sight(**done["sight"])] if is_other_host else []
        return Result(plan, records, sights, ahead, uncertain), peer
    finally:
        with suppress(OSError):
            table.say("end")


def _compare_clocks(table: _Table) -> tuple[float, float]:
    """By how much the other's clock is ahead of this one's, and by how much that may be wrong, seconds."""
    best = (0.0, float("inf"))
    for number in range(_PINGS):
        asked, began = time.time(), time.monotonic()
        table.say(f"ping.{number}")
        theirs = int(table.hear(f"pong.{number}.", "comparing clocks")) / 1e9
        half = (time.monotonic() - began) / 2
        best = min(best, (theirs - asked - half, half), key=lambda one: one[1])
    return best


def _look(table: _Table) -> Sight:
    """Return what this host sees of what the other writes and makes; both do the same, in step."""
    own, other = table.side, 1 - table.side
    data = []
    for number in range(_FILES):
        mine, theirs = (f"{table.root}/data/{side}.{number}" for side in (own, other))
        write(mine, b"old\n")
        table.meet(f"old.{number}")
        for _ in range(WARMING_LOOKS):
            read(theirs)  # now this client has the old version
            time.sleep(_WARMING_SECONDS)
        table.meet(f"read.{number}")
        write(mine, b"new\n")
        # The word lies elsewhere, as a lock does: a listing may bring the attributes of what it lists (READDIRPLUS).
        table.meet(f"new.{number}")
        data.append("new" if read(theirs) == b"new\n" else "old")
    here, there = (LockDirectory(f"{table.root}/news-{side}") for side in (own, other))
    for _ in range(WARMING_LOOKS):
        here.listdir()
        time.sleep(_WARMING_SECONDS)
    table.meet("listed")
    there.mkdir("news")
    table.meet("news")
    began = time.monotonic()
    while "news" not in here.listdir():
        table.progress("looking for the other node's news")
        if time.monotonic() > began + NEWS_SECONDS:
            return Sight(data, None)
        time.sleep(0.02)
    return Sight(data, time.monotonic() - began)


def join(token: str, home: str, find_seconds: float = FIND_SECONDS) -> None:
    """
    Find the one who waits below ``home``, and race with it.

    :param token: of its scratch directory
    :param find_seconds: how long to look for it
    :raises CliError: nobody waits there, or the first node has gone
    """
    scratch = _find(token, home, find_seconds)
    table = _Table(scratch, 1, lambda _doing: None)
    try:
        me, mount = secrets.token_hex(4), mount_of(home)
        about = {
            "version": __version__,
            "host": current_identity().host,
            "kernel": _kernel(),
            "call_seconds": call_seconds(scratch.root),
            "mount": None if mount is None else mount.to_dict(),
        }
        table.say(f"join.{me}", about)
        if table.hear("with.", "waiting for the first node") != me:
            raise CliError("another node has joined already: run 'nfsrwlock doctor --peer' anew for each pair")
        for number in range(_PINGS):
            table.hear(f"ping.{number}", "comparing clocks")
            table.say(f"pong.{number}.{time.time_ns()}")
        table.hear("plan", "waiting for the plan")
        players = planned(scratch.root).players

        def agree() -> float:
            table.say("ready")
            start = int(table.hear("go.", "waiting for the start")) / 1e9
            return time.monotonic() + start - time.time()

        records = race(scratch, range(players // 2, players), agree, lambda _doing: None)
        sight = _look(table)
        table.say("done", {"records": [asdict(record) for record in records], "sight": asdict(sight)})
    except FileNotFoundError:
        raise CliError("the first node has ended, and has cleaned up", Exit.FAILED) from None
    except CliError as error:
        if error.code == Exit.FAILED:  # the first node may have been killed: then nobody else cleans up
            scratch.remove()
        raise
    finally:
        scratch.close()


def _find(token: str, home: str, seconds: float) -> Scratch:
    path = scratch_path(home, token)
    limit = time.monotonic() + seconds
    while not os.path.isdir(f"{path}/meet"):
        if time.monotonic() > limit:
            raise CliError(
                f"nobody waits in {home} with token {token}: is it the same directory as on the first node, and does "
                "the command still run there?"
            )
        time.sleep(0.1)
    return Scratch(path)


def _kernel() -> str:
    # Not the engine's fingerprint of a kernel, which differs between two containers: these share a cache of listings.
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return current_identity().host
