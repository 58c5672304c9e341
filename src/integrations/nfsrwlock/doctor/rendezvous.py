"""
How the two processes find each other: through the scratch directory itself, so it takes no network of its own.

What one has to say to the other is a directory that it makes in ``meet``; what is longer is a file that was closed
before. Whoever waits makes a change of its own there before each look, so a cache of listings, or a mount without
close-to-open consistency, does not keep them apart.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from nfsrwlock import __version__
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.mounts import Mount, mount_from, mount_of
from nfsrwlock.doctor.races import RACES, Plan, Record, Side, prepare_rounds
from nfsrwlock.doctor.scratch import Directory, remove_scratch, scratch_path

Progress = Callable[[str], None]

_TOKEN: Final = re.compile(r"[0-9a-f]{12}")
#: Both sides must have the same: it changes whenever the rounds do.
_FORMAT: Final = 1
#: How long each may wait for the next word of the other.
ANSWER_SECONDS: Final = 60.0
#: How long the second node looks for the first one's directory.
FIND_SECONDS: Final = 10.0
_LEAST_PERIOD_SECONDS: Final = 0.006
_MOST_RACING_SECONDS: Final = 60.0
_PINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Result:
    """
    What came of the rounds.

    :param ahead: the joiner's monotonic clock minus the leader's, seconds
    :param uncertain: by how much that may be wrong, seconds
    :param wall_ahead: the joiner's clock for people minus the leader's, seconds
    :param same_kernel: whether both ran on one kernel, and so behind one cache
    :param peer_mount: what the joiner has mounted there
    """

    plan: Plan
    lead: Record
    join: Record
    peer: str
    ahead: float
    uncertain: float
    wall_ahead: float
    same_kernel: bool
    peer_mount: Mount | None = None


def new_token() -> str:
    """Return a name for a meeting."""
    return secrets.token_hex(6)


def is_token(text: str) -> bool:
    """Whether ``text`` can be the name of a meeting."""
    return _TOKEN.fullmatch(text) is not None


def introduction() -> dict[str, Any]:
    """Return what each side tells about itself."""
    return {
        "format": _FORMAT,
        "version": __version__,
        "host": os.environ.get("NFSRWLOCK_HOST") or socket.gethostname(),
        "pid": os.getpid(),
        "kernel": _kernel(),
        "wall_minus_monotonic": time.time() - time.monotonic(),
    }


def _kernel() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


class _Table:
    """Where they talk."""

    def __init__(self, scratch: str, role: str, progress: Progress) -> None:
        self._place = Directory(f"{scratch}/meet")
        self._mark = f"look.{role}.{os.getpid()}"
        self._progress = progress

    def close(self) -> None:
        self._place.close()

    def say(self, name: str, content: dict[str, Any] | None = None) -> None:
        if content is not None:
            self._place.write(f"{name}.json", json.dumps(content).encode())
        self._place.mkdir(name)

    def content(self, name: str) -> dict[str, Any]:
        """
        Return what the other side has said with ``name``.

        :raises CliError: it cannot be read here, although the other side had closed the file before it made the name
        """
        try:
            content = json.loads(self._place.read(f"{name}.json"))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise CliError(
                "a file that the other side had written and closed before it said so is not to be read here: this file "
                "system does not show what others write, and data under a lock may be missing or old",
                Exit.FAILED,
            )
        return content

    def hear(
        self, beginning: str, doing: str, seconds: float, alive: Callable[[], bool] = lambda: True, pause: float = 0.0
    ) -> str | None:
        """Wait for a name that begins so; ``None``: it did not come in time, or who should say it has ended."""
        limit = time.monotonic() + seconds
        while True:
            last = not alive() or time.monotonic() > limit
            self._progress(doing)
            said = [name for name in self._place.names_after_a_change(self._mark) if not name.endswith(".json")]
            names = sorted(name for name in said if name.startswith(beginning))
            if names or last:
                return names[0] if names else None
            if "end" in said:
                raise CliError("the first node has ended; see what it says there", Exit.FAILED)
            time.sleep(pause)

    def latency(self) -> float:
        """The median time of one change here, seconds."""
        times = []
        for _ in range(10):
            began = time.monotonic()
            self._place.mkdir(f"{self._mark}.timed")
            times.append(time.monotonic() - began)
            self._place.rmdir(f"{self._mark}.timed")
        return statistics.median(times)


def prepare(scratch: str) -> None:
    """Make the place where the two talk; before the other is told where that is."""
    os.mkdir(f"{scratch}/meet", 0o700)


def lead(
    scratch: str,
    rounds: int,
    wait_seconds: float,
    *,
    local: bool,
    progress: Progress,
    alive: Callable[[], bool],
) -> Result:
    """
    Wait for the other side, run the rounds with it, and return what both saw. All is prepared.

    :param wait_seconds: how long the other may take to come
    :param local: the other is a process of this host, and is meant to be
    :param alive: whether it can still come
    :raises CliError: it did not come, or did not stay
    """
    table = _Table(scratch, "lead", progress)
    try:
        came = table.hear("join.", "waiting for the other side", wait_seconds, alive, 0.005 if local else 0.2)
        if came is None:
            raise CliError(_nobody_came(local, wait_seconds), Exit.FAILED if local else Exit.TIMED_OUT)
        about = table.content(came)
        if about.get("format") != _FORMAT:
            raise CliError(
                f"{about.get('host')} has nfsrwlock {about.get('version')}, whose rounds differ from those of "
                f"{__version__}; install one version on both"
            )
        table.say(f"with.{came.partition('.')[2]}")
        here = introduction()
        same_kernel = about["kernel"] == here["kernel"]
        ahead, uncertain = _compare_clocks(table)
        if local:  # one clock for both
            ahead = uncertain = 0.0
        period = min(1.0, max(_LEAST_PERIOD_SECONDS, 12 * max(table.latency(), about["latency"])))
        rounds = min(rounds, max(10, int(_MOST_RACING_SECONDS / len(RACES) / period)))
        prepare_rounds(scratch, rounds, lambda: progress("preparing the rounds"))
        start = time.monotonic() + max(0.1, 10 * period) + uncertain
        plan = Plan(rounds=rounds, period=period, start=start, two_hosts=not same_kernel)
        table.say(
            "plan",
            {"rounds": rounds, "period": period, "start": start, "two_hosts": plan.two_hosts, "ahead": ahead},
        )
        lead_record = Side(scratch, "lead", plan, 0.0, lambda: progress("racing")).play()
        if table.hear("done", "waiting for the other side's results", ANSWER_SECONDS, alive) is None:
            raise _gone("has not finished its rounds")
        join_record = Record(**table.content("done"))
        return Result(
            plan=plan,
            lead=lead_record,
            join=join_record,
            peer=str(about["host"]),
            ahead=ahead,
            uncertain=uncertain,
            wall_ahead=about["wall_minus_monotonic"] - here["wall_minus_monotonic"] + ahead,
            same_kernel=same_kernel,
            peer_mount=mount_from(about["mount"]),
        )
    finally:
        with suppress(OSError):
            table.say("end")
        table.close()


def _compare_clocks(table: _Table) -> tuple[float, float]:
    best = (0.0, float("inf"))
    for number in range(_PINGS):
        asked = time.monotonic()
        table.say(f"ping.{number}")
        answer = table.hear(f"pong.{number}.", "comparing clocks", ANSWER_SECONDS)
        answered = time.monotonic()
        if answer is None:
            raise _gone("does not answer")
        theirs = int(answer.rpartition(".")[2]) / 1e9
        best = min(best, (theirs - (asked + answered) / 2, (answered - asked) / 2), key=lambda one: one[1])
    return best


def _nobody_came(local: bool, seconds: float) -> str:
    if local:
        return "the second process did not come: it could not be started, or listings here do not show what it makes"
    return (
        f"no second node came within {seconds:g} s; run the command shown above on it, or give more time with "
        "--timeout. If it says that it has joined, listings here do not show what another host makes, and locks "
        "cannot work"
    )


def _gone(what: str) -> CliError:
    return CliError(
        f"the other side joined, but {what} (after {ANSWER_SECONDS:g} s): it has ended, or listings do not show what "
        "the other host makes; see what it says there, and try again",
        Exit.FAILED,
    )


def join(token: str, home: str, find_seconds: float = FIND_SECONDS) -> None:
    """
    Find the one who waits below ``home``, and run the rounds with it.

    :param token: of the meeting
    :param find_seconds: how long to look for the meeting
    :raises CliError: nobody waits there, or the leader has gone
    """
    scratch = scratch_path(home, token)
    limit = time.monotonic() + find_seconds
    while not os.path.isdir(f"{scratch}/meet"):
        if time.monotonic() > limit:
            raise CliError(
                f"nobody waits in {home} with token {token}: is it the same directory as on the first node, and does "
                "the command still run there?"
            )
        time.sleep(0.1)
    table = _Table(scratch, "join", lambda _doing: None)
    try:
        me = secrets.token_hex(4)
        mount = mount_of(home)
        about = {"latency": table.latency(), "mount": None if mount is None else mount.to_dict()}
        table.say(f"join.{me}", {**introduction(), **about})
        _be_taken(table, me)
        for number in range(_PINGS):
            if table.hear(f"ping.{number}", "comparing clocks", ANSWER_SECONDS) is None:
                raise _gone("does not go on")
            table.say(f"pong.{number}.{time.monotonic_ns()}")
        if table.hear("plan", "waiting for the plan", ANSWER_SECONDS) is None:
            raise _gone("has no plan")
        plan = table.content("plan")
        ahead = plan.pop("ahead")
        record = Side(scratch, "join", Plan(**plan), ahead, lambda: None).play()
        table.say("done", record.to_dict())
    except FileNotFoundError:
        raise CliError("the first node has ended, and has cleaned up", Exit.FAILED) from None
    except CliError as error:
        if error.code == Exit.FAILED:  # the first node may have been killed: then nobody else cleans up
            remove_scratch(scratch)
        raise
    finally:
        table.close()


def _be_taken(table: _Table, me: str) -> None:
    if table.hear(f"join.{me}", "joining", ANSWER_SECONDS) is None:
        raise _gone("this node does not see its own name")
    taken = table.hear("with.", "waiting for the first node", ANSWER_SECONDS)
    if taken is None:
        raise _gone("the first node does not react")
    if taken != f"with.{me}":
        raise CliError("another node has joined already: run 'nfsrwlock doctor --peer' anew for each pair")
