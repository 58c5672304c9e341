"""
The rounds in which two processes race each other for the answers of the file system: PROTOCOL.md section 6.

Both follow one timetable, so a round needs no word between them. What is judged does not depend on it: names are made
once and stay, so that a listing that misses one is judged by order alone, however late either of them was. Being on
time only makes for closer races.

Who plays what changes from round to round, so each side tries both parts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nfsrwlock.doctor.scratch import Directory, outcome

Role = Literal["lead", "join"]

#: So many rounds share a directory: its listing grows, and is warm from the round before.
ROUNDS_PER_DIRECTORY: Final = 20
_DATA_ROUNDS: Final = 3
_DATA_SECONDS: Final = 0.6
#: A Linux NFS client was seen to ask the server once more after its first look at a directory.
_WARMING_LOOKS: Final = 3
_WARMING_SECONDS: Final = 0.1
#: How long a fresh listing may take to show what the other host made, before it counts as late.
NEWS_SECONDS: Final = 4.0
_NEWS_LOOK_SECONDS: Final = 0.02
_FLAG_SECONDS: Final = 20.0
OLD: Final = b"old\n"
NEW: Final = b"new\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The timetable.

    :param rounds: of each kind
    :param period: seconds between two of them
    :param start: of the first, on the leader's monotonic clock
    :param two_hosts: whether to ask what one host sees of the other's data and changes
    """

    rounds: int
    period: float
    start: float
    two_hosts: bool

    def due(self, race: int, number: int) -> float:
        """When a round of the ``race``-th kind is due, on the leader's clock."""
        return self.start + (race * self.rounds + number) * self.period

    @property
    def end(self) -> float:
        """When the last of them is over, on the leader's clock; what two hosts do then takes a few seconds more."""
        return self.due(len(RACES), 0)


@dataclass(slots=True)
class Record:
    """
    What one side saw. Goes to the other as JSON.

    :param outcomes: by kind of race, how this side's call ended in each round
    :param spans: by kind of race, when it began and ended, on this side's clock
    :param listings: what each round's listing showed, in rounds of the race "list"
    :param nonempty: how ``rmdir`` of directories with an entry ended
    :param data: what was read of the other's files after it had said that they are new
    :param made: when this side made the name that the other looks for
    :param seen: when it saw the other's, ``None`` if it did not
    """

    outcomes: dict[str, list[str]] = field(default_factory=dict)
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    listings: list[list[str]] = field(default_factory=list)
    nonempty: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    made: float | None = None
    seen: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


#: The races in the order of the timetable.
RACES: Final = ("mkdir", "list", "swap", "first")
_DIRECTORIES: Final = ("mkdir", "swap", "first", "nonempty", "data", "written", "news-lead", "news-join")
_NONEMPTY: Final = 10


def list_directory(number: int) -> str:
    """The directory of a round of the race "list"."""
    return f"list-{number // ROUNDS_PER_DIRECTORY}"


def is_holder(role: Role, number: int) -> bool:
    """Whether this side plays the holder in this round, and not who evicts it."""
    return (role == "lead") == (number % 2 == 0)


def prepare_rounds(root: str, rounds: int, progress: Callable[[], None]) -> None:
    """Make what the rounds need; for the leader, before anything begins."""
    with Directory(root) as place:
        for name in (*_DIRECTORIES, *sorted({list_directory(number) for number in range(rounds)})):
            place.mkdir(name)
    with Directory(f"{root}/swap") as swap, Directory(f"{root}/first") as first:
        for number in range(rounds):
            progress()
            swap.mkdir(str(number))
            swap.create(f"{number}/beat.3")
            first.mkdir(str(number))
    with Directory(f"{root}/nonempty") as nonempty:
        for number in range(_NONEMPTY):
            nonempty.mkdir(str(number))
            nonempty.create(f"{number}/beat.0")
    with Directory(f"{root}/data") as data:
        for role in ("lead", "join"):
            for number in range(_DATA_ROUNDS):
                data.write(f"{role}.{number}", OLD)


class Side:
    """
    One of the two that take part.

    :param root: the scratch directory
    :param role: which one
    :param plan: the timetable
    :param ahead: this side's monotonic clock minus the leader's, seconds
    :param progress: called every now and then; raises to stop
    """

    def __init__(self, root: str, role: Role, plan: Plan, ahead: float, progress: Callable[[], None]) -> None:
        self._root = root
        self._role: Role = role
        self._other: Role = "join" if role == "lead" else "lead"
        self._plan = plan
        self._ahead = ahead
        self._progress = progress
        self._chance = random.Random()
        self.record: Final = Record()

    def play(self) -> Record:
        """Take part, to the end."""
        self._race_to_make_one_name()
        self._list_after_making()
        self._move_or_remove_one_beat()
        self._beat_first_or_be_evicted()
        self._remove_what_is_not_empty()
        if self._plan.two_hosts:
            self._read_what_the_other_wrote()
            self._wait_for_news()
        return self.record

    # The four races

    def _race_to_make_one_name(self) -> None:
        with Directory(f"{self._root}/mkdir") as place:
            for number in self._rounds("mkdir"):
                self._act(number, "mkdir", place.mkdir, f"same.{number}")

    def _list_after_making(self) -> None:
        place: Directory | None = None
        for number in self._rounds("list"):
            if number % ROUNDS_PER_DIRECTORY == 0:
                if place is not None:
                    place.close()
                place = Directory(f"{self._root}/{list_directory(number)}")
            assert place is not None
            for _ in range(_WARMING_LOOKS):
                place.names()  # now this client's cache is warm
            self._act(number, "list", place.mkdir, f"{self._role}.{number}")
            self.record.listings.append(sorted(place.names()))
        if place is not None:
            place.close()

    def _move_or_remove_one_beat(self) -> None:
        with Directory(f"{self._root}/swap") as place:
            for number in self._rounds("swap"):
                place.names(str(number))
                if is_holder(self._role, number):
                    self._act(number, "swap", place.rename, f"{number}/beat.3", f"{number}/beat.4")
                else:
                    self._act(number, "swap", place.unlink, f"{number}/beat.3")

    def _beat_first_or_be_evicted(self) -> None:
        with Directory(f"{self._root}/first") as place:
            for number in self._rounds("first"):
                with suppress(OSError):  # who comes late finds it removed
                    place.names(str(number))
                if is_holder(self._role, number):
                    self._act(number, "first", place.create, f"{number}/beat.0")
                else:
                    self._act(number, "first", place.rmdir, str(number))

    def _rounds(self, race: str) -> Iterator[int]:
        self.record.outcomes[race] = []
        self.record.spans[race] = []
        for number in range(self._plan.rounds):
            self._progress()
            # Some time before the call itself, for what makes the caches warm.
            self._sleep_until(self._plan.due(RACES.index(race), number) - self._plan.period / 2)
            yield number

    def _act(self, number: int, race: str, call: Callable[..., None], *names: str) -> None:
        # By chance a little early or late, so that over the rounds each side is the first now and then.
        jitter = self._chance.uniform(-0.1, 0.1) * self._plan.period
        self._sleep_until(self._plan.due(RACES.index(race), number) + jitter)
        began = time.monotonic()
        self.record.outcomes[race].append(outcome(call, *names))
        self.record.spans[race].append((began, time.monotonic()))

    def _sleep_until(self, due: float) -> None:
        left = due + self._ahead - time.monotonic()
        while left > 0:
            time.sleep(min(left, 0.5))
            self._progress()
            left = due + self._ahead - time.monotonic()

    # What needs no race

    def _remove_what_is_not_empty(self) -> None:
        with Directory(f"{self._root}/nonempty") as place:
            self.record.nonempty = [outcome(place.rmdir, str(number)) for number in range(_NONEMPTY)]

    # What only two hosts can tell

    def _read_what_the_other_wrote(self) -> None:
        # The flags lie elsewhere, as a lock does: a listing may bring the attributes of what it lists (READDIRPLUS).
        with Directory(f"{self._root}/data") as place, Directory(f"{self._root}/written") as flags:
            for number in range(_DATA_ROUNDS):
                begin = self._plan.end + number * _DATA_SECONDS
                self._sleep_until(begin)
                for look in range(_WARMING_LOOKS):
                    self._sleep_until(begin + look * _WARMING_SECONDS)
                    place.read(f"{self._other}.{number}")  # now this client has the old version
                self._sleep_until(begin + _WARMING_LOOKS * _WARMING_SECONDS)
                place.write(f"{self._role}.{number}", NEW)
                flags.mkdir(f"{self._role}.{number}")
                limit = time.monotonic() + _FLAG_SECONDS
                while f"{self._other}.{number}" not in flags.names_after_a_change(f"look-{self._role}"):
                    self._progress()
                    if time.monotonic() > limit:
                        return
                self.record.data.append("new" if place.read(f"{self._other}.{number}") == NEW else "old")

    def _wait_for_news(self) -> None:
        begin = self._plan.end + _DATA_ROUNDS * _DATA_SECONDS
        with (
            Directory(f"{self._root}/news-{self._role}") as own,
            Directory(f"{self._root}/news-{self._other}") as other,
        ):
            for look in range(_WARMING_LOOKS):
                self._sleep_until(begin + look * _WARMING_SECONDS)
                own.names()
            self._sleep_until(begin + _WARMING_LOOKS * _WARMING_SECONDS)
            other.mkdir("news")
            self.record.made = time.monotonic()
            while time.monotonic() < self.record.made + NEWS_SECONDS:
                self._progress()
                if "news" in own.names():
                    self.record.seen = time.monotonic()
                    return
                time.sleep(_NEWS_LOOK_SECONDS)
