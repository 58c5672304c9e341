"""
The races by which processes test what the protocol demands of a file system: PROTOCOL.md section 6. A table.

All players follow one timetable, so they need not talk while they race. The verdict does not depend on it: names are
made once and stay, so a listing that misses one is judged by order alone, however late a player was. Being on time only
makes for closer races, which are more likely to show a fault; they never prove that there is none.
"""

from __future__ import annotations

import errno
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from nfsrwlock_core.system.directory import LockDirectory

#: What a call that succeeded is noted as; others by the name of their error, such as ``EEXIST``.
DONE: Final = "done"
#: What fails in 1 of 100 rounds is seen in one of these with a probability of 98 %.
DEFAULT_ROUNDS: Final = 400
#: So many rounds share a directory: its listing grows, and is warm from the round before.
ROUNDS_PER_DIRECTORY: Final = 20
#: How many times a directory or a file is looked at to warm a client's caches: a Linux NFS client was seen to ask the
#: server once more after its first look at a directory.
WARMING_LOOKS: Final = 3
#: Time between two rounds, in times of a call; and the part of it that is for warming the caches.
_PERIOD_CALLS: Final = 10
_WARMING_PART: Final = 0.6
_LEAST_CALL_SECONDS: Final = 0.0002
_MOST_CALL_SECONDS: Final = 0.1
#: Sleep is late by about this much; the rest of the wait for the start of a round is spent awake.
_SLEEP_IS_LATE_SECONDS: Final = 0.0002
_LONGEST_SLEEP_SECONDS: Final = 0.2

#: A call in a directory; the numbers are those of the round and of the player.
Call = Callable[[LockDirectory, int, int], None]


def _announce(at: LockDirectory, number: int, _player: int) -> None:
    at.mkdir(str(number))


def _announce_with_beat(at: LockDirectory, number: int, _player: int) -> None:
    at.mkdir(str(number))
    at.create(f"{number}/beat.3", b"{}")


def _remove(at: LockDirectory, number: int, _player: int) -> None:
    at.rmdir(str(number))


def _make_same(at: LockDirectory, number: int, _player: int) -> None:
    at.mkdir(f"same.{number}")


def _make_own(at: LockDirectory, number: int, player: int) -> None:
    at.mkdir(f"{player}.{number}")


@dataclass(frozen=True, slots=True)
class Race:
    """
    One kind of race. In each round, the players make their calls at the same time.

    :param name: also the beginning of its directories' names
    :param holder: what one player calls, another one each round
    :param others: what all others call
    :param broken: by the name of a count, what it counts that must not happen, in words
    :param prepare: what is made beforehand for each round
    :param winners: how many of the calls may succeed in a round; ``None``: all, and each player lists the directory
        before its call and after it
    """

    name: str
    holder: Call
    others: Call
    broken: dict[str, str]
    prepare: Call | None = None
    winners: int | None = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """
    One demand of the protocol.

    :param name: of the check
    :param tried: what the players did
    :param kept: what was not seen to happen
    :param lost: what it means if it was
    :param alone: what to add if one host alone has tried
    """

    name: str
    races: tuple[Race, ...]
    tried: str
    kept: str
    lost: str
    alone: str = ""


DEMANDS: Final = (
    Demand(
        "mkdir",
        (Race("mkdir", _make_same, _make_same, {"both": "several processes were told that they had made it"}),),
        tried="made one name at once",
        kept="never were two told that they had made it (demand a)",
        lost="mkdir is not atomic here (demand a)",
    ),
    Demand(
        "listing",
        (
            Race(
                "list",
                _make_own,
                _make_own,
                {
                    "missed": "two listings missed each other's name",
                    "own_missed": "a listing missed the name that its own maker had just made",
                },
                winners=None,
            ),
        ),
        tried="listed, made a name each and listed again",
        kept="no two listings missed each other's names (demand b)",
        lost="Two holders would not notice each other here (demand b)",
        alone=" They share this host's caches, so this says little about a second host.",
    ),
    Demand(
        "removal",
        (
            Race(
                "unlink",
                lambda at, number, _: at.rename(f"{number}/beat.3", f"{number}/beat.4"),
                lambda at, number, _: at.unlink(f"{number}/beat.3"),
                {"moved_and_removed": "rename and unlink of one name both succeeded"},
                prepare=_announce_with_beat,
            ),
            Race(
                "create",
                lambda at, number, _: at.create(f"{number}/beat.0", b"{}"),
                _remove,
                {"filled_and_removed": "a beat was made in a directory that rmdir removed"},
                prepare=_announce,
            ),
            Race(
                "rmdir",
                lambda at, number, _: at.rename(str(number), f"gone.{number}"),
                _remove,
                {"renamed_and_removed": "rename and rmdir of one directory both succeeded"},
                prepare=_announce,
            ),
            Race(
                "nonempty",
                _remove,
                _remove,
                {"nonempty_removed": "rmdir removed a directory with a beat in it"},
                prepare=_announce_with_beat,
                winners=0,
            ),
        ),
        tried="tried rename against unlink and rmdir, create against rmdir, and rmdir of what is not empty",
        kept="never did both succeed, and no directory with an entry was removed (demand c)",
        lost="A live holder could be evicted here (demand c)",
    ),
)
#: All of them, in the order of the timetable.
RACES: Final = tuple(race for demand in DEMANDS for race in demand.races)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is to be done.

    :param rounds: of each race
    :param call: how long a call takes here, seconds
    :param players: how many take part, on all hosts
    """

    rounds: int
    call: float
    players: int

    @property
    def period(self) -> float:
        """Seconds between two rounds."""
        return _PERIOD_CALLS * min(max(self.call, _LEAST_CALL_SECONDS), _MOST_CALL_SECONDS)


@dataclass(slots=True)
class Record:
    """
    What one player saw; times are seconds from the start. Comes from its process as JSON.

    :param outcomes: by race, how this player's call ended in each round
    :param spans: by race, when the call began and ended
    :param listings: what each round's listing showed, in rounds of the race "list"
    """

    outcomes: dict[str, list[str]] = field(default_factory=dict)
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    listings: list[list[str]] = field(default_factory=list)


def call_seconds(directory: str) -> float:
    """Return the median time of one change in a directory, seconds."""
    files, name, times = LockDirectory(directory), f"timed.{secrets.token_hex(4)}", []
    for _ in range(10):
        began = time.monotonic()
        files.mkdir(name)
        times.append(time.monotonic() - began)
        files.rmdir(name)
    return statistics.median(times)


def prepare(root: str, plan: Plan, progress: Callable[[], None]) -> None:
    """Make what the rounds need, before the players begin."""
    for race in RACES:
        for number, files in _rounds(root, race, plan):
            progress()
            if race.prepare is not None:
                race.prepare(files, number, 0)


def _rounds(root: str, race: Race, plan: Plan) -> Iterator[tuple[int, LockDirectory]]:
    for first in range(0, plan.rounds, ROUNDS_PER_DIRECTORY):
        files = LockDirectory(f"{root}/{race.name}-{first // ROUNDS_PER_DIRECTORY}")
        files.open()  # makes it, if this is the first one there
        try:
            for number in range(first, min(first + ROUNDS_PER_DIRECTORY, plan.rounds)):
                yield number, files
        finally:
            files.close()


class Player:
    """
    One of those who race.

    :param root: the scratch directory
    :param number: which one
    :param start: of the first round, on this host's monotonic clock
    :param progress: called every now and then
    """

    def __init__(self, root: str, number: int, plan: Plan, start: float, progress: Callable[[], None]) -> None:
        self._root = root
        self._number = number
        self._plan = plan
        self._start = start
        self._progress = progress

    def play(self) -> Record:
        """Take part, to the end."""
        record, plan = Record(), self._plan
        for index, race in enumerate(RACES):
            outcomes = record.outcomes[race.name] = []
            spans = record.spans[race.name] = []
            for number, files in _rounds(self._root, race, plan):
                # A little early or late, so that over the rounds each player is the first now and then.
                jitter = random.uniform(-0.5, 0.5) * min(plan.call, plan.period / 5)
                due = (index * plan.rounds + number) * plan.period
                self._sleep_until(due - plan.period * _WARMING_PART)
                self._warm(race, number, files, due + jitter)
                self._sleep_until(due + jitter)
                call = race.holder if number % plan.players == self._number else race.others
                began = self._now()
                outcomes.append(_outcome(call, files, number, self._number))
                spans.append((began, self._now()))
                if race.winners is None:
                    record.listings.append(sorted(files.listdir()))
        return record

    def _warm(self, race: Race, number: int, files: LockDirectory, due: float) -> None:
        looks = 0
        # Also puts a listing beside the mkdir of another process that shares this client's cache.
        while race.winners is None and (looks < WARMING_LOOKS or self._now() < due):
            self._progress()
            files.listdir()
            looks += 1
        if race.prepare is not None:
            with suppress(OSError):  # who comes late finds it removed
                files.listdir(str(number))

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _sleep_until(self, due: float) -> None:
        self._progress()
        while (left := due - self._now()) > 0:
            if left > _SLEEP_IS_LATE_SECONDS:
                time.sleep(min(left - _SLEEP_IS_LATE_SECONDS, _LONGEST_SLEEP_SECONDS))
                self._progress()


def _outcome(call: Call, files: LockDirectory, number: int, player: int) -> str:
    try:
        call(files, number, player)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return DONE
