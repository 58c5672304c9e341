"""
How two hosts find each other, race, and see each other's changes: through the scratch directory, without a network.

What one says to the other is a directory that it makes in ``meet``; what is longer is a file, closed before that.
Whoever waits makes a change of its own there before each look, so neither a cache of listings nor a mount without
close-to-open consistency keeps them apart. It is not found out whether two hosts are two guests of one machine.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any, Final

from nfsrwlock import __version__
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.filesystems import explain_other
from nfsrwlock.doctor.races import Plan, call_seconds, judge, play, prepare, recorded
from nfsrwlock.doctor.report import Check, Level, Report
from nfsrwlock.doctor.scratch import Scratch, home_of, read_json, scratch_path, write_json
from nfsrwlock.text import PROGRAM, printable, say
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import Mount, mount_of
from nfsrwlock_core.system.process import boot_id, current_identity

#: How long each may wait for the next word of the other.
ANSWER_SECONDS: Final = 60.0
#: How long the second node looks for the first one's directory.
_FIND_SECONDS: Final = 10.0
#: How often to look until a cache is warm: a Linux NFS client was seen to ask once more after its first look.
_WARMING_LOOKS: Final = 3
#: How long a fresh listing may take to show what the other host made, before it counts as late.
_NEWS_SECONDS: Final = 4.0
_PROMPT_SECONDS: Final = 1.0
_CLOCK_READINGS: Final = 8
_FILES: Final = 3
_WARMING_SECONDS: Final = 0.1


class _Talk:
    """What the two nodes say to each other; node 0 leads."""

    def __init__(self, scratch: Scratch, node: int) -> None:
        self.scratch: Final = scratch
        self.node: Final = node
        self._files = LockDirectory(f"{scratch.root}/meet")

    def say(self, word: str, number: int = 0, **content: Any) -> None:
        if content:
            write_json(f"{self._files.path}/{self.node}.{word}.json", content)
        self._files.mkdir(f"{word}.{self.node}.{number}")

    def both(self, word: str) -> list[dict[str, Any]]:
        """Return the content of what either node has said, the first node's first."""
        return [read_json(f"{self._files.path}/{node}.{word}.json") for node in (0, 1)]

    def hear(self, word: str, seconds: float | None = None, nobody: CliError | None = None) -> int:
        """
        Wait until the other node says this, and return its number.

        :raises CliError: the other one says nothing in that time; ``nobody``, if given
        """
        other, theirs = ("second", "first")[self.node], f"{word}.{1 - self.node}."
        mark = f"look.{self.node}"
        limit = ANSWER_SECONDS if seconds is None else seconds
        began, waited = time.monotonic(), 0.0
        while waited <= limit:
            waited = time.monotonic() - began
            self.scratch.progress(f"waiting for the {other} node")
            self._files.mkdir(mark)  # so that no cache of this client's can be in the way of what follows
            names = self._files.listdir()
            with suppress(FileNotFoundError):
                self._files.rmdir(mark)
            for name in names:
                if name.startswith(theirs):
                    return int(name.removeprefix(theirs))
            time.sleep(min(0.2, waited / 50))  # who comes soon is seen at once
        raise nobody or CliError(
            f"the {other} node does not react (for {limit:g} s): it has ended, or listings do not show what the other "
            "host makes; see what it says there, and try again",
            Exit.FAILED,
        )

    def meet(self, word: str, number: int = 0, **content: Any) -> int:
        """Wait until both have said this, and return the other's number."""
        self.say(word, number, **content)
        return self.hear(word)


def alone(scratch: Scratch, report: Report, *, rounds: int, processes: int) -> list[Check]:
    """Return what the processes of this host see of each other."""
    plan = Plan(rounds, call_seconds(scratch.files), processes)
    prepare(scratch, plan)
    play(scratch, plan, range(processes), lambda: time.monotonic() + 0.05)
    return [*judge(plan, recorded(scratch.root, plan))]


def lead(scratch: Scratch, report: Report, *, rounds: int, processes: int, wait_seconds: float) -> list[Check]:
    """
    Invite a second node, race with it, and return what both saw; ``report`` gets to know who it is.

    :param wait_seconds: how long the second node may take to come
    :raises CliError: it did not come, or did not stay
    """
    scratch.files.mkdir("meet")
    command = f"{PROGRAM} doctor --join {scratch.token} {shlex.quote(printable(os.path.dirname(scratch.path)))}"
    say(f"on a second node, as the same user, run: {command}")
    say("(if the directory is mounted elsewhere there, give its path there)")
    talk = _Talk(scratch, 0)
    nobody = CliError(
        f"no second node came within {wait_seconds:g} s; run the command shown above on it, or give more time with "
        "--timeout. If it says that it has joined, listings here do not show what another host makes, and locks cannot "
        "work",
        Exit.TIMED_OUT,
    )
    talk.say("about", **_about(scratch), rounds=rounds, processes=processes)
    talk.hear("about", wait_seconds, nobody)
    plan, uncertain = _take_part(talk)
    talk.hear("sight")
    first, second = talk.both("about")
    sights = talk.both("sight")
    records = recorded(scratch.root, plan)
    report.peer, report.two_hosts = second["host"], second["kernel"] != first["kernel"]
    here, there = (about["mount"] and Mount(**about["mount"]) for about in (first, second))
    checks = explain_other(there, second["host"], here)
    if report.two_hosts:
        report.checks[:] = [check for check in report.checks if check.name != "data"]  # what is known of the type
        return [*checks, *judge(plan, records, uncertain), *judge_sights(sights)]
    text = "The second node is this very host (one kernel, one cache), so nothing was tested between hosts."
    peer = Check("peer", Level.WARNING, text, "Run the command on another host.")
    return [*checks, *judge(plan, records), peer]


def join(token: str, path: str, lock_dir: str | None = None, timeout: float | None = None) -> int:
    """
    Be the second node of a ``doctor --peer`` that waits elsewhere; return the exit code.

    :param token: as the first node has printed it
    :param timeout: how long to look for the first node, seconds
    :raises CliError: nobody waits there, or the first node has gone
    """
    home = home_of(path, lock_dir)
    path, limit = scratch_path(home, token), time.monotonic() + (timeout or _FIND_SECONDS)
    while not os.path.isdir(f"{path}/meet"):
        if time.monotonic() > limit:
            raise CliError(
                f"nobody waits in {home} with token {token}: is it the same directory as on the first node, and does "
                "the command still run there?"
            )
        time.sleep(0.1)
    with closing(Scratch(path)) as scratch:
        try:
            scratch.files.mkdir("meet/second")
            talk = _Talk(scratch, 1)
            talk.meet("about", **_about(scratch))
            _take_part(talk)
        except FileExistsError:
            raise CliError(
                "another node has joined already: run 'nfsrwlock doctor --peer' anew for each pair"
            ) from None
        except OSError as error:
            raise CliError(
                f"the first node has ended, or its directory is not to be used here: {error.strerror}", Exit.FAILED
            ) from None
        except CliError as error:
            if error.code == Exit.FAILED:  # the first node may have been killed: then nobody else cleans up
                scratch.remove()
            raise
    print("This node's part is done. The first node has the verdict.")
    return Exit.OK


def _about(scratch: Scratch) -> dict[str, Any]:
    mount = mount_of(scratch.path)
    kernel = host = current_identity().host
    # Not the engine's fingerprint of a kernel, which differs between two containers: they share a cache.
    with suppress(OSError):
        kernel = boot_id()
    return {
        "version": __version__,
        "host": host,
        "kernel": kernel,
        "call_seconds": call_seconds(scratch.files),
        "mount": mount and asdict(mount),
    }


def _take_part(talk: _Talk) -> tuple[Plan, float]:
    """Do what both nodes do, in step; return what was raced, and how little is known of the clocks, seconds."""
    scratch = talk.scratch
    first, second = talk.both("about")
    if first["version"] != second["version"]:
        raise CliError(
            f"the nodes have nfsrwlock {first['version']} and {second['version']}; install one version on both"
        )
    ahead, uncertain = _compare_clocks(talk)
    processes: int = first["processes"]
    call: float = max(first["call_seconds"], second["call_seconds"])
    plan = Plan(first["rounds"], call, 2 * processes)
    if talk.node == 0:
        prepare(scratch, plan)
        for name in ("data", "news-0", "news-1"):
            scratch.files.mkdir(name)

    def agree() -> float:
        mine = time.time_ns()
        theirs = talk.meet("ready", mine)
        start = max(mine / 1e9, theirs / 1e9 - ahead) + max(0.1, 100 * call) + uncertain
        return time.monotonic() + start - time.time()

    play(scratch, plan, range(talk.node * processes, (talk.node + 1) * processes), agree)
    talk.say("sight", **_look(talk))
    return plan, uncertain


def _compare_clocks(talk: _Talk) -> tuple[float, float]:
    """By how much the other's clock is ahead of this one's, and by how much that may be wrong, seconds."""
    # The other node said it before it was heard here.
    readings = (talk.meet(f"clock.{number}", time.time_ns()) - time.time_ns() for number in range(_CLOCK_READINGS))
    least = max(readings)
    most = -talk.meet("least", least)
    return (least + most) / 2e9, (most - least) / 2e9


def _look(talk: _Talk) -> dict[str, Any]:
    """
    Return what this host sees of what the other writes and makes; both do the same, in step.

    :returns: how many of the ``_FILES`` that the other rewrote are ``old``, and after what ``delay`` a listing shows
        what it made, seconds; ``None`` for too long
    """
    root = talk.scratch.root
    mine, theirs = ([f"{root}/data/{node}.{number}" for number in range(_FILES)] for node in (talk.node, 1 - talk.node))
    here, there = LockDirectory(f"{root}/news-{talk.node}"), LockDirectory(f"{root}/news-{1 - talk.node}")
    for path in mine:
        write_json(path, {"version": "old"})
    talk.meet("old")
    for _ in range(_WARMING_LOOKS):  # now this client has what there is
        for path in theirs:
            read_json(path)
        here.listdir()
        time.sleep(_WARMING_SECONDS)
    talk.meet("warm")
    for path in mine:
        write_json(path, {"version": "new"})
    # The word lies elsewhere, as a lock does: a listing may bring the attributes of what it lists (READDIRPLUS).
    talk.meet("new")
    old = sum(read_json(path) != {"version": "new"} for path in theirs)
    there.mkdir("news")
    talk.meet("made")  # so that how long the files took to read is no part of how late the listing is
    began = time.monotonic()
    while (delay := time.monotonic() - began) < _NEWS_SECONDS:
        talk.scratch.progress("looking for what the other node made")
        if "news" in here.listdir():
            return {"old": old, "delay": delay}
        time.sleep(0.02)
    return {"old": old, "delay": None}


def judge_sights(sights: Sequence[dict[str, Any]]) -> Iterator[Check]:
    """Say what two hosts found out about what they see of each other."""
    delays = [sight["delay"] for sight in sights]
    most = max(_NEWS_SECONDS if delay is None else delay for delay in delays)
    level, remedy = Level.OK, ""
    text = f"A fresh listing shows what the other host made within {most:.2f} s."
    if most >= _PROMPT_SECONDS:
        level, remedy = Level.WARNING, "On NFS, mount without nocto; elsewhere, turn caching of directory listings off."
        late = f"more than {_NEWS_SECONDS:g}" if None in delays else f"{most:.1f}"
        text = (
            f"A fresh listing shows what the other host made {late} s later, if this host changes nothing there. Locks "
            "stay safe, for a change of one's own precedes the listing that decides; but waiters learn late that a "
            "lock is free, and 'nfsrwlock status' shows the past."
        )
    facts = {"delays_s": [delay and round(delay, 3) for delay in delays], "limit_s": _NEWS_SECONDS}
    yield Check("freshness", level, text, remedy, facts=facts)

    old, read = sum(sight["old"] for sight in sights), _FILES * len(sights)
    level, remedy = Level.OK, ""
    text = f"What one host wrote and closed, the other read when it opened the file, {read} times."
    if old:
        level, remedy = Level.UNFIT, "On NFS, mount without nocto; elsewhere, turn caching of file data off."
        text = (
            f"{old} of {read} times a host that opened a file, after the other had written and closed it and said "
            "so, read the old version. Locks hold here, but data read under them may be old."
        )
    yield Check("data", level, text, remedy, facts={"read": read, "old": old})
