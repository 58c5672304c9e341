"""
The races by which processes try what the protocol demands of a file system: PROTOCOL.md section 6.

All players follow one timetable, so they need not talk while they race. The verdict does not depend on it: names are
made once and stay, so a listing that misses one is judged by order alone, however late a player was. Being on time only
makes for closer races.
"""

from __future__ import annotations

import errno
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from nfsrwlock.doctor.scratch import read, write
from nfsrwlock_core.system.directory import LockDirectory

#: What a call that succeeded is noted as; others by the name of their error, such as ``EEXIST``.
DONE: Final = "done"
#: What fails in 1 of 100 rounds is seen in one of these with a probability of 98 %.
DEFAULT_ROUNDS: Final = 400
#: So many rounds share a directory: its listing grows, and is warm from the round before.
ROUNDS_PER_DIRECTORY: Final = 20
#: How long a fresh listing may take to show what the other host made, before it counts as late.
NEWS_SECONDS: Final = 4.0
_LEAST_CALL_SECONDS: Final = 0.0002
_MOST_CALL_SECONDS: Final = 0.1
_DATA_ROUNDS: Final = 3
_DATA_SECONDS: Final = 0.6
#: A Linux NFS client was seen to ask the server once more after its first look at a directory.
_WARMING_LOOKS: Final = 3
_WARMING_SECONDS: Final = 0.1
_FLAG_SECONDS: Final = 20.0
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


@dataclass(frozen=True, slots=True)
class Race:
    """
    One kind of race. In each round, the players make their calls at the same time.

    :param name: also the beginning of its directories' names
    :param holder: what one player calls, another one each round
    :param others: what all others call
    :param prepare: what is made beforehand for each round
    :param winners: how many of the calls may succeed in a round; ``None``: all
    :param fact: name of the count of rounds in which more did
    :param broken: what such a round was, in words
    :param calls: time between two rounds, in times of a call
    :param lists: list the directory until the call, and after it
    """

    name: str
    holder: Call
    others: Call
    prepare: Call | None = None
    winners: int | None = 1
    fact: str = ""
    broken: str = ""
    calls: int = 8
    lists: bool = False


MAKE: Final = Race(
    "mkdir",
    holder=lambda at, number, _: at.mkdir(f"same.{number}"),
    others=lambda at, number, _: at.mkdir(f"same.{number}"),
    fact="both",
    broken="several processes were told that they had made it",
)
LIST: Final = Race(
    "list",
    holder=lambda at, number, player: at.mkdir(f"{player}.{number}"),
    others=lambda at, number, player: at.mkdir(f"{player}.{number}"),
    winners=None,
    calls=12,
    lists=True,
)
REMOVALS: Final = (
    Race(
        "unlink",
        holder=lambda at, number, _: at.rename(f"{number}/beat.3", f"{number}/beat.4"),
        others=lambda at, number, _: at.unlink(f"{number}/beat.3"),
        prepare=_announce_with_beat,
        fact="moved_and_removed",
        broken="rename and unlink of one name both succeeded",
    ),
    Race(
        "create",
        holder=lambda at, number, _: at.create(f"{number}/beat.0", b"{}"),
        others=_remove,
        prepare=_announce,
        fact="filled_and_removed",
        broken="a beat was made in a directory that rmdir removed",
    ),
    Race(
        "rmdir",
        holder=lambda at, number, _: at.rename(str(number), f"gone.{number}"),
        others=_remove,
        prepare=_announce,
        fact="renamed_and_removed",
        broken="rename and rmdir of one directory both succeeded",
    ),
    Race(
        "nonempty",
        holder=_remove,
        others=_remove,
        prepare=_announce_with_beat,
        winners=0,
        fact="nonempty_removed",
        broken="rmdir removed a directory with a beat in it",
    ),
)
#: All of them, in the order of the timetable.
RACES: Final = (MAKE, LIST, *REMOVALS)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is to be done.

    :param rounds: of each race
    :param call: how long a call takes here, seconds
    :param processes: players on each side
    :param sides: how many sides take part
    :param two_hosts: whether they are two hosts, to be asked what one sees of the other's data and changes
    """

    rounds: int
    call: float
    processes: int
    sides: int = 1
    two_hosts: bool = False

    @property
    def players(self) -> int:
        """How many take part; those of the first side have the first numbers."""
        return self.processes * self.sides

    def period(self, race: Race) -> float:
        """Seconds between two rounds."""
        return race.calls * min(max(self.call, _LEAST_CALL_SECONDS), _MOST_CALL_SECONDS)

    def begin(self, index: int) -> float:
        """When a race begins, seconds from the start; after the last one: when all are over."""
        return sum(self.rounds * self.period(race) for race in RACES[:index])


@dataclass(slots=True)
class Record:
    """
    What one player saw; times are seconds from the start. Comes from its process as JSON.

    :param outcomes: by race, how this player's call ended in each round
    :param spans: by race, when the call began and ended
    :param listings: what each round's listing showed, in rounds of the race "list"
    :param data: what was read of the other host's files after it had said that they are new
    :param made: when this player made the name that the other host looks for
    :param seen: when it saw the other host's, ``None`` if it did not
    """

    outcomes: dict[str, list[str]] = field(default_factory=dict)
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    listings: list[list[str]] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    made: float | None = None
    seen: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """
    What came of the races.

    :param records: of all players, in the order of their numbers
    :param uncertain: by how much the two hosts' clocks may differ in them, seconds
    :param wall_ahead: the second host's clock for people minus the first one's, seconds
    """

    plan: Plan
    records: list[Record]
    uncertain: float = 0.0
    wall_ahead: float = 0.0


def call_seconds(directory: str) -> float:
    """Return the median time of one change in a directory, seconds."""
    times = []
    for _ in range(10):
        began = time.monotonic()
        os.mkdir(f"{directory}/timed.{os.getpid()}", 0o700)
        times.append(time.monotonic() - began)
        os.rmdir(f"{directory}/timed.{os.getpid()}")
    return statistics.median(times)


def prepare(root: str, plan: Plan, progress: Callable[[], None]) -> None:
    """Make what the rounds need, before the players begin."""
    for race in RACES:
        for number, files in _rounds(root, race, plan):
            progress()
            if race.prepare is not None:
                race.prepare(files, number, 0)
    if plan.two_hosts:
        for name in ("data", "written", "news-0", "news-1"):
            os.mkdir(f"{root}/{name}", 0o700)
        for side in range(2):
            for number in range(_DATA_ROUNDS):
                write(f"{root}/data/{side}.{number}", b"old\n")


def _rounds(root: str, race: Race, plan: Plan) -> Iterator[tuple[int, LockDirectory]]:
    for first in range(0, plan.rounds, ROUNDS_PER_DIRECTORY):
        files = LockDirectory(f"{root}/{race.name}-{first // ROUNDS_PER_DIRECTORY}")
        files.open()  # makes it, if this is the first one there
        try:
            for number in range(first, min(first + ROUNDS_PER_DIRECTORY, plan.rounds)):
                yield number, files
        finally:
            files.close()


def names_after_a_change(files: LockDirectory, mark: str) -> set[str]:
    """List a directory after a change of one's own there, so that no cache of this client's can be in the way."""
    with suppress(FileExistsError):
        files.mkdir(mark)
    found = set(files.listdir())
    with suppress(FileNotFoundError):
        files.rmdir(mark)
    return found - {mark}


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
        self.record: Final = Record()

    def play(self) -> Record:
        """Take part, to the end."""
        for index, race in enumerate(RACES):
            self._race(race, self._plan.begin(index))
        side, number_there = divmod(self._number, self._plan.processes)
        if self._plan.two_hosts and number_there == 0:
            end = self._plan.begin(len(RACES))
            self._read_what_the_other_wrote(side, end)
            self._wait_for_news(side, end + _DATA_ROUNDS * _DATA_SECONDS)
        return self.record

    def _race(self, race: Race, begin: float) -> None:
        period = self._plan.period(race)
        outcomes = self.record.outcomes[race.name] = []
        spans = self.record.spans[race.name] = []
        for number, files in _rounds(self._root, race, self._plan):
            due = begin + number * period
            self._sleep_until(due - period / 2)  # some time before the call itself, for what makes the caches warm
            # A little early or late, so that over the rounds each player is the first now and then.
            due += random.uniform(-0.5, 0.5) * min(self._plan.call, period / 5)
            if race.lists:
                self._list_until(due, files)
            else:
                with suppress(OSError):  # who comes late finds it removed, and for one race nothing is prepared
                    files.listdir(str(number))
            self._sleep_until(due)
            call = race.holder if number % self._plan.players == self._number else race.others
            began = self._now()
            outcomes.append(_outcome(call, files, number, self._number))
            spans.append((began, self._now()))
            if race.lists:
                self.record.listings.append(sorted(files.listdir()))

    def _list_until(self, due: float, files: LockDirectory) -> None:
        # Warms the cache, and puts a listing beside the mkdir of another process that shares it.
        looks = 0
        while looks < _WARMING_LOOKS or self._now() < due:
            self._progress()
            files.listdir()
            looks += 1

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _sleep_until(self, due: float) -> None:
        self._progress()
        while (left := due - self._now()) > 0:
            if left > _SLEEP_IS_LATE_SECONDS:
                time.sleep(min(left - _SLEEP_IS_LATE_SECONDS, _LONGEST_SLEEP_SECONDS))
                self._progress()

    def _read_what_the_other_wrote(self, side: int, begin: float) -> None:
        # The flags lie elsewhere, as a lock does: a listing may bring the attributes of what it lists (READDIRPLUS).
        flags = LockDirectory(f"{self._root}/written")
        for number in range(_DATA_ROUNDS):
            own, other = f"{side}.{number}", f"{1 - side}.{number}"
            for look in range(_WARMING_LOOKS):
                self._sleep_until(begin + number * _DATA_SECONDS + look * _WARMING_SECONDS)
                read(f"{self._root}/data/{other}")  # now this client has the old version
            self._sleep_until(begin + number * _DATA_SECONDS + _WARMING_LOOKS * _WARMING_SECONDS)
            write(f"{self._root}/data/{own}", b"new\n")
            flags.mkdir(own)
            limit = self._now() + _FLAG_SECONDS
            while other not in names_after_a_change(flags, f"look-{side}"):
                self._progress()
                if self._now() > limit:
                    return
            self.record.data.append("new" if read(f"{self._root}/data/{other}") == b"new\n" else "old")

    def _wait_for_news(self, side: int, begin: float) -> None:
        own, other = (LockDirectory(f"{self._root}/news-{whose}") for whose in (side, 1 - side))
        for look in range(_WARMING_LOOKS):
            self._sleep_until(begin + look * _WARMING_SECONDS)
            own.listdir()
        self._sleep_until(begin + _WARMING_LOOKS * _WARMING_SECONDS)
        other.mkdir("news")
        self.record.made = self._now()
        while self._now() < self.record.made + NEWS_SECONDS:
            self._progress()
            if "news" in own.listdir():
                self.record.seen = self._now()
                return
            time.sleep(0.02)


def _outcome(call: Call, files: LockDirectory, number: int, player: int) -> str:
    try:
        call(files, number, player)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return DONE
