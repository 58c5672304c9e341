"""
How two hosts find each other and agree on a start: through the scratch directory itself, so it takes no network.

What one has to say to the other is a directory that it makes in ``meet``; what is longer is a file that was closed
before. Whoever waits makes a change of its own there before each look, so a cache of listings, or a mount without
close-to-open consistency, does not keep them apart.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from nfsrwlock import __version__
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.players import Players, set_up
from nfsrwlock.doctor.races import Plan, Record, Result, call_seconds, names_after_a_change
from nfsrwlock.doctor.scratch import Scratch, read_json, scratch_path, write_json
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import Mount, mount_from, mount_of

Progress = Callable[[str], None]

#: Both hosts must have the same: it changes whenever the races do.
_FORMAT: Final = 2
#: How long each may wait for the next word of the other.
ANSWER_SECONDS: Final = 60.0
#: How long the second node looks for the first one's directory.
FIND_SECONDS: Final = 10.0
_PINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Peer:
    """
    The second node.

    :param same_kernel: whether it is this very host, behind the same cache
    :param mount: what it has mounted there
    """

    host: str
    same_kernel: bool
    mount: Mount | None


def host_name() -> str:
    """Return what this host calls itself."""
    return os.environ.get("NFSRWLOCK_HOST") or socket.gethostname()


def _kernel() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


class _Table:
    """Where they talk."""

    def __init__(self, scratch: Scratch, progress: Progress = lambda _doing: None) -> None:
        self._files = LockDirectory(f"{scratch.root}/meet")
        self._mark = f"look.{secrets.token_hex(4)}"
        self._progress = progress

    def say(self, name: str, content: dict[str, Any] | None = None) -> None:
        if content is not None:
            write_json(f"{self._files.path}/{name}.json", content)
        self._files.mkdir(name)

    def content(self, name: str) -> dict[str, Any]:
        """
        Return what the other node has said with ``name``.

        :raises CliError: it cannot be read here
        """
        return read_json(f"{self._files.path}/{name}.json")

    def look_for(self, beginning: str, doing: str, seconds: float, pause: float = 0.0) -> str | None:
        """Wait for a name that begins so, and return the rest of it; ``None``: it did not come in time."""
        limit = time.monotonic() + seconds
        while True:
            last = time.monotonic() > limit
            self._progress(doing)
            said = sorted(name for name in names_after_a_change(self._files, self._mark) if not name.endswith(".json"))
            for name in said:
                if name.startswith(beginning):
                    return name.removeprefix(beginning)
            if "end" in said:
                raise CliError("the first node has ended; see what it says there", Exit.FAILED)
            if last:
                return None
            time.sleep(pause)

    def hear(self, beginning: str, doing: str, otherwise: str) -> str:
        """
        Wait for a name that begins so, and return the rest of it.

        :param otherwise: what is wrong if it does not come
        :raises CliError: it did not come
        """
        rest = self.look_for(beginning, doing, ANSWER_SECONDS)
        if rest is None:
            raise CliError(
                f"the other node joined, but {otherwise} (after {ANSWER_SECONDS:g} s): it has ended, or listings do "
                "not show what the other host makes; see what it says there, and try again",
                Exit.FAILED,
            )
        return rest


def invite(scratch: Scratch) -> None:
    """Make the place where the two talk; before the other is told where that is."""
    os.mkdir(f"{scratch.root}/meet", 0o700)


def lead(scratch: Scratch, rounds: int, processes: int, wait_seconds: float, progress: Progress) -> tuple[Result, Peer]:
    """
    Wait for the second node, race with it, and return what all players saw.

    :param wait_seconds: how long it may take to come
    :param progress: called every now and then, with what is being done; raises to stop
    :raises CliError: it did not come, or did not stay
    """
    table = _Table(scratch, progress)
    try:
        who = table.look_for("join.", "waiting for the second node", wait_seconds, 0.2)
        if who is None:
            raise CliError(
                f"no second node came within {wait_seconds:g} s; run the command shown above on it, or give more time "
                "with --timeout. If it says that it has joined, listings here do not show what another host makes, and "
                "locks cannot work",
                Exit.TIMED_OUT,
            )
        about = table.content(f"join.{who}")
        if about.get("format") != _FORMAT:
            raise CliError(
                f"{about.get('host')} has nfsrwlock {about.get('version')}, whose rounds differ from those of "
                f"{__version__}; install one version on both"
            )
        table.say(f"with.{who}")
        peer = Peer(str(about["host"]), about["kernel"] == _kernel(), mount_from(about["mount"]))
        ahead, uncertain = _compare_clocks(table)
        call = max(call_seconds(scratch.root), about["call_seconds"])
        plan = Plan(rounds, call, processes, sides=2, two_hosts=not peer.same_kernel)
        set_up(scratch, plan, progress)
        table.say("plan", asdict(plan))
        players = Players(scratch, range(processes), progress)
        try:
            table.hear("ready", "waiting for the second node's processes", "has started no processes")
            start = time.monotonic() + max(0.1, 100 * call) + uncertain
            table.say(f"go.{(start + ahead) * 1e9:.0f}")
            records = players.play(start)
        finally:
            players.end()
        table.hear("done", "waiting for the second node's results", "has not finished its rounds")
        records += [Record(**record) for record in table.content("done")["records"]]
        wall_ahead = about["wall_minus_monotonic"] - (time.time() - time.monotonic()) + ahead
        return Result(plan, records, uncertain, wall_ahead), peer
    finally:
        with suppress(OSError):
            table.say("end")


def _compare_clocks(table: _Table) -> tuple[float, float]:
    """By how much the other's monotonic clock is ahead of this one's, and by how much that may be wrong, seconds."""
    best = (0.0, float("inf"))
    for number in range(_PINGS):
        asked = time.monotonic()
        table.say(f"ping.{number}")
        theirs = int(table.hear(f"pong.{number}.", "comparing clocks", "does not answer")) / 1e9
        answered = time.monotonic()
        best = min(best, (theirs - (asked + answered) / 2, (answered - asked) / 2), key=lambda one: one[1])
    return best


def join(token: str, home: str, find_seconds: float = FIND_SECONDS) -> None:
    """
    Find the one who waits below ``home``, and race with it.

    :param token: of its scratch directory
    :param find_seconds: how long to look for it
    :raises CliError: nobody waits there, or the first node has gone
    """
    scratch = _find(token, home, find_seconds)
    table = _Table(scratch)
    try:
        me = secrets.token_hex(4)
        mount = mount_of(home)
        about = {
            "format": _FORMAT,
            "version": __version__,
            "host": host_name(),
            "kernel": _kernel(),
            "wall_minus_monotonic": time.time() - time.monotonic(),
            "call_seconds": call_seconds(scratch.root),
            "mount": None if mount is None else mount.to_dict(),
        }
        table.say(f"join.{me}", about)
        table.hear(f"join.{me}", "joining", "this node does not see its own name")
        if table.hear("with.", "waiting for the first node", "the first node does not react") != me:
            raise CliError("another node has joined already: run 'nfsrwlock doctor --peer' anew for each pair")
        for number in range(_PINGS):
            table.hear(f"ping.{number}", "comparing clocks", "does not go on")
            table.say(f"pong.{number}.{time.monotonic_ns()}")
        table.hear("plan", "waiting for the plan", "has no plan")
        plan = Plan(**table.content("plan"))
        players = Players(scratch, range(plan.processes, plan.players), lambda _doing: None)
        try:
            table.say("ready")
            start = int(table.hear("go.", "waiting for the start", "does not begin")) / 1e9
            records = players.play(start)
        finally:
            players.end()
        table.say("done", {"records": [asdict(record) for record in records]})
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
