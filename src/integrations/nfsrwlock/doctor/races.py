"""
The races by which processes test what the protocol demands of a file system: PROTOCOL.md section 6.

A table says what is raced. All players follow one timetable, so they need not talk while they race. The verdict does
not depend on it: names are made once and stay, so a listing that misses one is judged by order alone, however late a
player was. Being on time only makes for closer races, which are more likely to show a fault; they never prove that
there is none. So a finding says what was seen, not what is so.

A player is a process. It prints an empty line when it is ready and after each round, and writes what it saw into the
scratch directory. It ends soon after the process that started it, however that ended: then nobody reads its lines.
"""

from __future__ import annotations

import errno
import itertools
import json
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.report import ELSEWHERE, Check, Level
from nfsrwlock.doctor.scratch import Scratch, read_json, write_json
from nfsrwlock_core.system.directory import LockDirectory

#: What a call that succeeded is noted as; others by the name of their error, such as ``EEXIST``.
_DONE: Final = "done"
#: What a call that came second is answered. EBUSY and ESTALE come from NFS clients, for what another one has removed.
_LATE: Final = {"EEXIST", "ENOENT", "ENOTEMPTY", "EBUSY", "ESTALE"}
#: So many rounds share a directory: its listing grows, and is warm from the round before.
_ROUNDS_PER_DIRECTORY: Final = 20
#: Time between two rounds, in times of a call, and the part of it in which the caches are warmed.
_PERIOD_CALLS: Final = 10
_WARMING_PART: Final = 0.6
#: Sleep is late by about this much; the rest of the wait for the start of a round is spent awake.
_SLEEP_IS_LATE_SECONDS: Final = 0.0002
_END_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Race:
    """
    One kind of race: in each round, the players make their calls at the same time.

    A call is a method of :class:`LockDirectory` with its names; ``{n}`` is the round, ``{p}`` the player.

    :param demand: of the protocol, which it tests, and the check of that name
    :param name: also the beginning of its directories' names
    :param holder: the call of one player, another one each round
    :param others: the call of all others
    :param broken: what must not happen; the words for it are in ``_WORDS``
    :param made: calls that prepare a round
    :param winners: how many of the calls may succeed in a round; ``None``: all, and each player lists the directory
        before its call and after it
    """

    demand: str
    name: str
    holder: str
    others: str
    broken: tuple[str, ...]
    made: tuple[str, ...] = ()
    winners: int | None = 1


_EMPTY: Final = ("mkdir {n}",)
_WITH_BEAT: Final = ("mkdir {n}", "create {n}/beat.3")
_WORDS: Final = {
    "both": "several processes were told that they made it",
    "missed": "two listings missed each other's name",
    "own_missed": "a listing missed the name that its own maker had just made",
    "moved_and_removed": "rename and unlink of one name both succeeded",
    "filled_and_removed": "a beat was made in a directory that rmdir removed",
    "renamed_and_removed": "rename and rmdir of one directory both succeeded",
    "renamed_twice": "one directory was renamed twice",
    "nonempty_removed": "rmdir removed a directory with a beat in it",
}
#: In the order of the timetable.
RACES: Final = (
    Race("mkdir", "mkdir", "mkdir same.{n}", "mkdir same.{n}", ("both",)),
    Race("listing", "list", "mkdir {p}.{n}", "mkdir {p}.{n}", ("missed", "own_missed"), winners=None),
    Race("removal", "unlink", "rename {n}/beat.3 {n}/beat.4", "unlink {n}/beat.3", ("moved_and_removed",), _WITH_BEAT),
    Race("removal", "create", "create {n}/beat.0", "rmdir {n}", ("filled_and_removed",), _EMPTY),
    Race("removal", "rmdir", "rename {n} gone.{n}", "rmdir {n}", ("renamed_and_removed",), _EMPTY),
    Race("removal", "rename", "rename {n} gone.{p}.{n}", "rename {n} gone.{p}.{n}", ("renamed_twice",), _EMPTY),
    Race("removal", "nonempty", "rmdir {n}", "rmdir {n}", ("nonempty_removed",), _WITH_BEAT, winners=0),
)
#: By demand: what the players did, what was not seen to happen, and what it means if it was.
_SAID: Final = {
    "mkdir": (
        "made one name at once",
        "never were two told that they had made it (demand a)",
        "mkdir is not atomic here (demand a)",
    ),
    "listing": (
        "listed, made a name each and listed again",
        "no two listings missed each other's names (demand b)",
        "Two holders would not notice each other here (demand b)",
    ),
    "removal": (
        "tried rename against rename, unlink and rmdir, create against rmdir, and rmdir of what is not empty",
        "never did both succeed, and no directory with an entry was removed (demand c)",
        "A live holder could be evicted here (demand c)",
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many ``rounds`` of each race how many ``players`` on all hosts run, if a ``call`` takes so many seconds."""

    rounds: int
    call: float
    players: int

    @property
    def period(self) -> float:
        """Seconds between two rounds."""
        return _PERIOD_CALLS * min(max(self.call, 0.0002), 0.1)


class Round(NamedTuple):
    """What one player saw of one round: its call, in seconds from the start, and the listing after it if any."""

    outcome: str
    began: float
    ended: float
    listing: list[str]


#: What one player saw, by race.
Record = dict[str, list[Round]]


def call_seconds(files: LockDirectory) -> float:
    """Return the median time of one change in a directory, seconds."""
    name, times = f"timed.{secrets.token_hex(4)}", []
    for _ in range(10):
        began = time.monotonic()
        files.mkdir(name)
        times.append(time.monotonic() - began)
        files.rmdir(name)
    return statistics.median(times)


def prepare(scratch: Scratch, plan: Plan) -> None:
    """Make what the rounds need, before any player is started."""
    for race in RACES:
        for number, files in _rounds(scratch.root, race, plan):
            scratch.progress("preparing the rounds")
            for call in race.made:
                _do(files, call, number, 0)


def race(root: str, player: int, plan: Plan, start: float, progress: Callable[[], None]) -> Record:
    """Take part in all races, of which the first begins at ``start`` (monotonic), and return what was seen."""
    record: Record = {}
    for index, kind in enumerate(RACES):
        record[kind.name] = []
        for number, files in _rounds(root, kind, plan):
            due = start + (index * plan.rounds + number) * plan.period
            _sleep_until(due - _WARMING_PART * plan.period)
            # A little early or late, so that over the rounds each player is the first now and then.
            due += random.uniform(-0.5, 0.5) * min(plan.call, plan.period / 5)
            if kind.winners is None:
                # Who is late looks once: the round before has warmed its cache, and players who fall behind would race
                # no more. The loop puts a listing beside the mkdir of another process that shares this client's cache.
                files.listdir()
                while time.monotonic() < due:
                    files.listdir()
            if kind.made:
                with suppress(OSError):  # who comes late finds it removed
                    files.listdir(str(number))
            _sleep_until(due)
            outcome, began = _DONE, time.monotonic()
            try:
                _do(files, kind.holder if number % plan.players == player else kind.others, number, player)
            except OSError as error:
                outcome = errno.errorcode.get(error.errno or 0, str(error.errno))
            ended = time.monotonic()
            listing = sorted(files.listdir()) if kind.winners is None else []
            record[kind.name].append(Round(outcome, began - start, ended - start, listing))
            progress()
    return record


def _rounds(root: str, race: Race, plan: Plan) -> Iterator[tuple[int, LockDirectory]]:
    for first in range(0, plan.rounds, _ROUNDS_PER_DIRECTORY):
        with closing(LockDirectory(f"{root}/{race.name}-{first // _ROUNDS_PER_DIRECTORY}")) as files:
            files.open()  # makes it, if this is the first one there
            for number in range(first, min(first + _ROUNDS_PER_DIRECTORY, plan.rounds)):
                yield number, files


def _do(files: LockDirectory, call: str, number: int, player: int) -> None:
    method, *names = call.format(n=number, p=player).split()
    record = [b"{}"] if method == "create" else []
    getattr(files, method)(*names, *record)


def _sleep_until(due: float) -> None:
    while (left := due - time.monotonic()) > 0:
        if left > _SLEEP_IS_LATE_SECONDS:
            time.sleep(left - _SLEEP_IS_LATE_SECONDS)


def play(scratch: Scratch, plan: Plan, numbers: range, agree: Callable[[], float]) -> None:
    """
    Start players, and let them race as it was prepared; :func:`recorded` has what they saw.

    :param numbers: of the players on this host
    :param agree: called when they are ready; returns when the first round begins, on this host's monotonic clock
    :raises CliError: one cannot be started, or has ended
    """
    players: list[subprocess.Popen[str]] = []

    def hear(doing: str) -> None:
        for player in players:
            assert player.stdout is not None
            line = player.stdout.readline()
            scratch.progress(doing)
            if line != "\n":  # an error's text
                raise CliError(line.strip() or f"a process ended while {doing}; try again", Exit.FAILED)

    try:
        players.extend(_start(scratch, plan, number) for number in numbers)
        hear("starting processes")
        start = agree()
        for player in players:
            assert player.stdin is not None
            with suppress(BrokenPipeError):  # its end is found below
                print(start, file=player.stdin, flush=True)
        for _ in range(len(RACES) * plan.rounds + 1):  # the last line says that the record is written
            hear("racing")
    finally:
        for player in players:
            player.kill()
        for player in players:
            with suppress(subprocess.TimeoutExpired):  # not while the file server hangs
                player.communicate(timeout=_END_SECONDS)


def _start(scratch: Scratch, plan: Plan, number: int) -> subprocess.Popen[str]:
    # -P: where the user happens to be is no place to import from.
    code, pipe = "from nfsrwlock.doctor.races import main; main()", subprocess.PIPE
    command = [sys.executable, "-P", "-c", code, scratch.root, json.dumps(asdict(plan)), str(number)]
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, pass_fds=(scratch.fd,)
        )
    except OSError as error:
        raise CliError(f"a process could not be started: {error.strerror}", Exit.FAILED) from None


def main() -> None:
    """Be a player process."""
    root, plan, number = sys.argv[1], Plan(**json.loads(sys.argv[2])), int(sys.argv[3])
    alive = partial(print, flush=True)
    alive()
    try:
        write_json(f"{root}/record-{number}.json", race(root, number, plan, float(sys.stdin.readline()), alive))
        alive()
    except OSError as error:
        print(error.strerror, flush=True)


def recorded(root: str, plan: Plan) -> list[Record]:
    """Return what all players saw, in the order of their numbers; ``CliError`` if it cannot be read here."""
    records = [read_json(f"{root}/record-{number}.json") for number in range(plan.players)]
    return [{name: [Round(*seen) for seen in rounds] for name, rounds in record.items()} for record in records]


def judge(plan: Plan, records: Sequence[Record], clocks: float | None = None) -> Iterator[Check]:
    """
    Say what was found out about each demand.

    :param records: of all players, in the order of their numbers
    :param clocks: of two hosts, how well the difference of their clocks is known, seconds; ``None``: there was one host
    """
    who, known = f"{plan.players} processes here", ""
    if clocks is not None:
        who, known = f"{plan.players // 2} processes on each of two hosts", f", clocks known to {clocks * 1000:.1f} ms"
    for demand, (tried, kept, lost) in _SAID.items():
        facts = _counted([race for race in RACES if race.demand == demand], records)
        facts["clock_known_to_ms"] = round((clocks or 0.0) * 1000, 3)
        close = f"half of them within {facts['median_apart_ms']:.2f} ms{known}"
        text = f"{who} {tried}, {facts['rounds']} times ({close}): "
        if broken := "; ".join(f"{facts[what]} times {words}" for what, words in _WORDS.items() if facts.get(what)):
            yield Check(demand, Level.UNFIT, f"{text}{broken}. {lost}.", ELSEWHERE, facts=facts)
            continue
        level, remedy, text = Level.OK, "", f"{text}{kept}."
        if neither := facts["neither"]:
            level = Level.NOTE
            text += (
                f" {neither} times no call succeeded, which does no harm: a reply was lost, or a stale cache answered."
            )
        if odd := facts["errors"]:
            level, remedy = Level.WARNING, "Find out why calls fail; locks try again, data may suffer."
            text += f" But calls failed: {', '.join(f'{name} {count} times' for name, count in odd.items())}."
        yield Check(demand, level, text, remedy, facts=facts)


def _counted(races: Sequence[Race], records: Sequence[Record]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    neither, ends = 0, Counter[str]()
    for race in races:
        rounds = list(zip(*(record[race.name] for record in records), strict=True))
        facts = facts or _closeness(rounds)
        ends.update(seen.outcome for players in rounds for seen in players)
        if race.winners is None:
            broken = _missed(rounds)
        else:
            wins = [[seen.outcome == _DONE for seen in players] for players in rounds]
            alike = race.holder == race.others  # or else one player is the holder, and two others' success does no harm
            broken = [sum(sum(won) > race.winners and (alike or won[n % len(won)]) for n, won in enumerate(wins))]
            neither += sum(not any(won) for won in wins) if race.winners else 0
        facts |= zip(race.broken, broken, strict=True)
    odd = {name: count for name, count in ends.most_common() if name not in {_DONE, *_LATE}}
    return facts | {"neither": neither, "errors": odd}


def _closeness(rounds: Sequence[Sequence[Round]]) -> dict[str, Any]:
    """In how many rounds all calls overlapped, and how far apart they began."""
    begins, ends = ([[getattr(seen, when) for seen in players] for players in rounds] for when in ("began", "ended"))
    return {
        "rounds": len(rounds),
        "overlapping": sum(max(begin) <= min(end) for begin, end in zip(begins, ends, strict=True)),
        "median_apart_ms": round(statistics.median(max(begin) - min(begin) for begin in begins) * 1000, 3),
    }


def _missed(rounds: Sequence[Sequence[Round]]) -> list[int]:
    """How many pairs of listings missed each other's name, and how many listings their own maker's."""
    missed = own = 0
    for first in range(0, len(rounds), _ROUNDS_PER_DIRECTORY):
        # By player and the name that it made: the listing right after it.
        made = [
            (player, f"{player}.{number}", set(seen.listing))
            for number, players in enumerate(rounds[first : first + _ROUNDS_PER_DIRECTORY], first)
            for player, seen in enumerate(players)
            if seen.outcome == _DONE
        ]
        own += sum(name not in listing for _, name, listing in made)
        # If one's listing does not show the other's name, that name was made after the listing began, so after the
        # one's own name was made: then the other's listing, which is later still, must show that.
        missed += sum(
            theirs not in listing and mine not in their_listing
            for (me, mine, listing), (other, theirs, their_listing) in itertools.combinations(made, 2)
            if me != other
        )
    return [missed, own]
