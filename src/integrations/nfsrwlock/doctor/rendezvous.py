"""
How two hosts find each other, race, and look at each other's changes: through the scratch directory, without a network.

What one says to the other is a directory that it makes in ``meet``; what is longer is a file that was closed before.
Whoever waits makes a change of its own there before each look, so neither a cache of listings nor a mount without
close-to-open consistency keeps them apart. It is not found out whether two hosts are two guests of one machine.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from nfsrwlock import __version__
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.players import Progress, play
from nfsrwlock.doctor.races import WARMING_LOOKS, Plan, Record, call_seconds, prepare
from nfsrwlock.doctor.scratch import Scratch, read, read_json, scratch_path, write, write_json
from nfsrwlock.doctor.verdicts import NEWS_SECONDS, Result, Sight
from nfsrwlock.text import PROGRAM, printable, say
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import mount_of
from nfsrwlock_core.system.process import current_identity

#: How long each may wait for the next word of the other.
ANSWER_SECONDS: Final = 60.0
#: How long the second node looks for the first one's directory.
FIND_SECONDS: Final = 10.0
_CLOCK_READINGS: Final = 8
_FILES: Final = 3
_WARMING_SECONDS: Final = 0.1


class _Talk:
    """What one node says to the other, and hears; node 0 leads."""

    def __init__(self, scratch: Scratch, node: int, progress: Progress) -> None:
        self.node: Final = node
        self.progress: Final = progress
        self._files = LockDirectory(f"{scratch.root}/meet")
        self._mark = f"look.{secrets.token_hex(4)}"

    def say(self, word: str, content: dict[str, Any] | None = None) -> None:
        if content is not None:
            write_json(f"{self._files.path}/{word}.json", content)
        self._files.mkdir(word)

    def hear(self, word: str, doing: str, seconds: float | None = None, otherwise: CliError | None = None) -> str:
        """
        Wait for a word that begins so, and return the rest of it.

        :raises CliError: the first node has ended, or (``otherwise``) nothing came in that time
        """
        limit = ANSWER_SECONDS if seconds is None else seconds
        began, waited = time.monotonic(), 0.0
        while waited <= limit:
            waited = time.monotonic() - began
            self.progress(doing)
            self._files.mkdir(self._mark)  # so that no cache of this client's can be in the way of what follows
            said = sorted(name for name in self._files.listdir() if not name.endswith(".json"))
            with suppress(FileNotFoundError):
                self._files.rmdir(self._mark)
            for name in said:
                if name.startswith(word):
                    return name.removeprefix(word)
            if "end" in said:
                raise CliError("the first node has ended; see what it says there", Exit.FAILED)
            time.sleep(min(0.2, waited / 50))  # what comes soon is heard at once
        other = ("second", "first")[self.node]
        raise otherwise or CliError(
            f"the {other} node does not react (for {limit:g} s, while {doing}): it has ended, or listings do not show "
            "what the other host makes; see what it says there, and try again",
            Exit.FAILED,
        )

    def content(self, word: str) -> dict[str, Any]:
        """Return what was said with a word that was heard; ``CliError`` if it cannot be read here."""
        return read_json(f"{self._files.path}/{word}.json")

    def meet(self, point: str, number: int = 0) -> int:
        """Wait until both have come to this point, and return the other's number."""
        self.say(f"{point}.{self.node}.{number}")
        return int(self.hear(f"{point}.{1 - self.node}.", "waiting for the other node"))


def lead(
    scratch: Scratch, rounds: int, processes: int, wait_seconds: float, progress: Progress
) -> tuple[Result, dict[str, Any]]:
    """
    Invite a second node, race with it, and return what both saw, and what the second node said of itself.

    :param wait_seconds: how long it may take to come
    :param progress: called every now and then, with what is being done; raises to stop
    :raises CliError: it did not come, or did not stay
    """
    scratch.files.mkdir("meet")
    command = f"{PROGRAM} doctor --join {scratch.token} {shlex.quote(printable(os.path.dirname(scratch.path)))}"
    say(f"on a second node, as the same user, run: {command}")
    say("(if the directory is mounted elsewhere there, give its path there)")
    talk = _Talk(scratch, 0, progress)
    nobody = CliError(
        f"no second node came within {wait_seconds:g} s; run the command shown above on it, or give more time with "
        "--timeout. If it says that it has joined, listings here do not show what another host makes, and locks cannot "
        "work",
        Exit.TIMED_OUT,
    )
    try:
        who = talk.hear("join.", "waiting for the second node", wait_seconds, nobody)
        peer = talk.content(f"join.{who}")
        me = {**_about(scratch), "rounds": rounds, "processes": processes}
        talk.say(f"with.{who}", me)
        return _race(talk, scratch, me, peer), peer
    finally:
        with suppress(OSError):
            talk.say("end")


def join(token: str, home: str, find_seconds: float = FIND_SECONDS) -> None:
    """
    Find the one who waits below ``home``, and race with it.

    :param token: of its scratch directory
    :param find_seconds: how long to look for it
    :raises CliError: nobody waits there, or the first node has gone
    """
    path, limit = scratch_path(home, token), time.monotonic() + find_seconds
    while not os.path.isdir(f"{path}/meet"):
        if time.monotonic() > limit:
            raise CliError(
                f"nobody waits in {home} with token {token}: is it the same directory as on the first node, and does "
                "the command still run there?"
            )
        time.sleep(0.1)
    scratch = Scratch(path)
    try:
        talk, name, me = _Talk(scratch, 1, lambda _doing: None), secrets.token_hex(4), _about(scratch)
        talk.say(f"join.{name}", me)
        if talk.hear("with.", "waiting for the first node") != name:
            raise CliError("another node has joined already: run 'nfsrwlock doctor --peer' anew for each pair")
        _race(talk, scratch, talk.content(f"with.{name}"), me)
    except FileNotFoundError:
        raise CliError("the first node has ended, and has cleaned up", Exit.FAILED) from None
    except CliError as error:
        if error.code == Exit.FAILED:  # the first node may have been killed: then nobody else cleans up
            scratch.remove()
        raise
    finally:
        scratch.close()


def _about(scratch: Scratch) -> dict[str, Any]:
    mount = mount_of(scratch.path)
    try:
        # Not the engine's fingerprint of a kernel, which differs between two containers: they share a cache.
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = file.read().strip()
    except OSError:
        kernel = current_identity().host
    return {
        "version": __version__,
        "host": current_identity().host,
        "kernel": kernel,
        "call_seconds": call_seconds(scratch.files),
        "mount": None if mount is None else mount.to_dict(),
    }


def _race(talk: _Talk, scratch: Scratch, first: dict[str, Any], second: dict[str, Any]) -> Result:
    """Do what both nodes do, in step; only node 0 gets to know what the other has seen."""
    versions = first.get("version"), second.get("version")
    if versions[0] != versions[1]:
        raise CliError(f"the nodes have nfsrwlock {versions[0]} and {versions[1]}; install one version on both")
    ahead, uncertain = _compare_clocks(talk)
    processes: int = first["processes"]
    call: float = max(first["call_seconds"], second["call_seconds"])
    plan = Plan(first["rounds"], call, 2 * processes)
    if talk.node == 0:
        prepare(scratch.root, plan, lambda: talk.progress("preparing the rounds"))
        for name in ("data", "news-0", "news-1"):
            scratch.files.mkdir(name)
        talk.say("plan")
    talk.hear("plan", "waiting for the plan")

    def agree() -> float:
        mine = time.time_ns()
        theirs = talk.meet("ready", mine)
        start = max(mine / 1e9, theirs / 1e9 - ahead) + max(0.1, 100 * call) + uncertain
        return time.monotonic() + start - time.time()

    records = play(scratch, range(talk.node * processes, (talk.node + 1) * processes), agree, talk.progress)
    sight = _look(talk, scratch.root)
    if talk.node == 1:
        talk.say("done", {"records": [asdict(record) for record in records], "sight": asdict(sight)})
        return Result(plan, records)
    talk.hear("done", "waiting for the second node's results")
    done = talk.content("done")
    records += [Record(**record) for record in done["records"]]
    sights = [sight, Sight(**done["sight"])] if first["kernel"] != second["kernel"] else []
    return Result(plan, records, sights, ahead, uncertain)


def _compare_clocks(talk: _Talk) -> tuple[float, float]:
    """By how much the other's clock is ahead of this one's, and by how much that may be wrong, seconds."""
    least = -(10**18)
    for number in range(_CLOCK_READINGS):
        theirs = talk.meet(f"clock.{number}", time.time_ns())
        least = max(least, theirs - time.time_ns())  # the other node said it before it was heard here
    most = -talk.meet("least", least)
    return (least + most) / 2e9, (most - least) / 2e9


def _look(talk: _Talk, root: str) -> Sight:
    """Return what this host sees of what the other writes and makes; both do the same, in step."""
    own, other = talk.node, 1 - talk.node
    mine, theirs, data = f"{root}/data/{own}", f"{root}/data/{other}", []
    for number in range(_FILES):
        write(f"{mine}.{number}", b"old\n")
        talk.meet(f"old.{number}")
        for _ in range(WARMING_LOOKS):
            read(f"{theirs}.{number}")  # now this client has the old version
            time.sleep(_WARMING_SECONDS)
        talk.meet(f"read.{number}")
        write(f"{mine}.{number}", b"new\n")
        # The word lies elsewhere, as a lock does: a listing may bring the attributes of what it lists (READDIRPLUS).
        talk.meet(f"new.{number}")
        data.append("new" if read(f"{theirs}.{number}") == b"new\n" else "old")
    here, there = LockDirectory(f"{root}/news-{own}"), LockDirectory(f"{root}/news-{other}")
    for _ in range(WARMING_LOOKS):
        here.listdir()
        time.sleep(_WARMING_SECONDS)
    talk.meet("listed")
    there.mkdir("news")
    talk.meet("made")
    began = time.monotonic()
    while (delay := time.monotonic() - began) < NEWS_SECONDS:
        talk.progress("looking for what the other node made")
        if "news" in here.listdir():
            return Sight(data, delay)
        time.sleep(0.02)
    return Sight(data, None)
