"""What the races tell: from what all players saw to findings. Reads records and touches nothing."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nfsrwlock.doctor.races import (
    DONE,
    LIST,
    MAKE,
    NEWS_SECONDS,
    REMOVALS,
    ROUNDS_PER_DIRECTORY,
    Race,
    Record,
    Result,
)
from nfsrwlock.doctor.report import Check, Level

#: What a call that came second is told. EBUSY and ESTALE come from NFS clients, for what another one has removed.
_LATE: Final = {"EEXIST", "ENOENT", "ENOTEMPTY", "EBUSY", "ESTALE"}
_ELSEWHERE: Final = (
    "Keep locks on another file system (--lock-dir or NFSRWLOCK_DIR), or do not lock between hosts here."
)


@dataclass(frozen=True, slots=True)
class _Demand:
    """
    What is asked by races that only so many calls of a round may win.

    :param name: of the check
    :param tried: what the players did
    :param kept: what is so if none of the races was broken
    :param broken: what it means if one was
    """

    name: str
    races: tuple[Race, ...]
    tried: str
    kept: str
    broken: str


_DEMANDS: Final = (
    _Demand(
        "mkdir",
        (MAKE,),
        tried="made one name at once",
        kept="never were two told that they had made it (demand a)",
        broken="mkdir is not atomic here (demand a)",
    ),
    _Demand(
        "removal",
        REMOVALS,
        tried="tried rename against unlink and rmdir, create against rmdir, and rmdir of what is not empty",
        kept="never did both succeed, and no directory with an entry was removed (demand c)",
        broken="A live holder could be evicted here (demand c)",
    ),
)


def judge(result: Result) -> list[Check]:
    """Return the findings about the three demands, and, of two hosts, about what they see of each other."""
    mkdir, removal = (_one_winner(result, demand) for demand in _DEMANDS)
    checks = [mkdir, _listing(result), removal]
    if result.plan.two_hosts:
        checks += [_freshness(result), _data(result), _clock(result)]
    return checks


def _one_winner(result: Result, demand: _Demand) -> Check:
    facts = _closeness(result, demand.races[0])
    wrong, neither = [], 0
    for race in demand.races:
        wins = [ends.count(DONE) for ends in _ends(result, race)]
        count = facts[race.fact] = sum(won > (race.winners or 0) for won in wins)
        if count:
            wrong.append(f"{count} times {race.broken}")
        if race.winners:
            neither += wins.count(0)
    facts["neither"] = neither
    begin = f"{_who(result)} {demand.tried}, {_times(facts)}: "
    if wrong:
        return Check(demand.name, Level.UNFIT, f"{begin}{'; '.join(wrong)}. {demand.broken}.", _ELSEWHERE, facts=facts)
    lost = (
        f" {neither} times no call succeeded: a reply was lost, or a client's cache of missing names answered. The "
        "locks look into both, so neither does harm."
    )
    text = f"{begin}{demand.kept}.{lost if neither else ''}"
    return _with_errors(
        result, demand.races, Check(demand.name, Level.NOTE if neither else Level.OK, text, facts=facts)
    )


def _listing(result: Result) -> Check:
    missed, own = 0, 0
    for first in range(0, result.plan.rounds, ROUNDS_PER_DIRECTORY):
        seen = [_seen(record, player, first) for player, record in enumerate(result.records)]
        own += sum(name not in names for listings in seen for name, names in listings.items())
        # If one's listing does not show the other's name, that name was made after the listing began, so after the
        # one's own name was made: then the other's listing, which is later still, must show that.
        missed += sum(
            theirs not in seen_here and mine not in seen_there
            for here, there in itertools.combinations(seen, 2)
            for mine, seen_here in here.items()
            for theirs, seen_there in there.items()
        )
    facts = {**_closeness(result, LIST), "missed": missed, "own_missed": own}
    begin = f"{_who(result)} listed, made a name each and listed again, {_times(facts)}: "
    if missed or own:
        parts = [f"{missed} pairs of listings missed each other's name"] if missed else []
        parts += [f"{own} listings missed the name that their own maker had just made"] if own else []
        text = f"{begin}{' and '.join(parts)}. Two holders would not notice each other here (demand b)."
        return Check("listing", Level.UNFIT, text, _ELSEWHERE, facts=facts)
    shared = " They share this host's caches, so this says little about a second host."
    text = f"{begin}no two listings missed each other's names (demand b).{'' if result.plan.two_hosts else shared}"
    return _with_errors(result, (LIST,), Check("listing", Level.OK, text, facts=facts))


def _seen(record: Record, player: int, first: int) -> dict[str, set[str]]:
    """What a player saw right after it had made each of its names in one directory."""
    ends = record.outcomes[LIST.name][first : first + ROUNDS_PER_DIRECTORY]
    return {f"{player}.{number}": set(record.listings[number]) for number, end in enumerate(ends, first) if end == DONE}


def _ends(result: Result, race: Race) -> Iterator[tuple[str, ...]]:
    """How all calls ended, round by round."""
    return zip(*(record.outcomes[race.name] for record in result.records), strict=True)


def _with_errors(result: Result, races: tuple[Race, ...], check: Check) -> Check:
    """Mention calls that neither succeeded nor came second."""
    ends = itertools.chain.from_iterable(itertools.chain.from_iterable(_ends(result, race) for race in races))
    odd = Counter(end for end in ends if end != DONE and end not in _LATE)
    if not odd:
        return check
    listed = ", ".join(f"{name} {count} times" for name, count in odd.most_common())
    return Check(
        check.name,
        Level.WARNING,
        f"{check.text} But calls failed: {listed}.",
        "Find out why the file system answers with errors; locks try again, data may suffer.",
        facts={**check.facts, "errors": dict(odd)},
    )


def _who(result: Result) -> str:
    plan = result.plan
    return f"{plan.processes} processes on each of two hosts" if plan.two_hosts else f"{plan.players} processes here"


def _times(facts: dict[str, Any]) -> str:
    known = f", clocks known to {facts['clock_known_to_ms']:.1f} ms" if facts["clock_known_to_ms"] else ""
    return f"{facts['rounds']} times (half of them within {facts['median_apart_ms']:.2f} ms{known})"


def _closeness(result: Result, race: Race) -> dict[str, Any]:
    """How close the rounds of a race were: in how many all calls overlapped, and how far apart they began."""
    rounds = list(zip(*(record.spans[race.name] for record in result.records), strict=True))
    begins = [[begin for begin, _ in spans] for spans in rounds]
    ends = [[end for _, end in spans] for spans in rounds]
    return {
        "rounds": len(rounds),
        "overlapping": sum(max(begin) <= min(end) for begin, end in zip(begins, ends, strict=True)),
        "median_apart_ms": round(statistics.median(max(begin) - min(begin) for begin in begins) * 1000, 3),
        "clock_known_to_ms": round(result.uncertain * 1000, 3),
    }


def _reporters(result: Result) -> tuple[Record, Record]:
    """The players that also tried what only two hosts can tell, one on each."""
    return result.records[0], result.records[result.plan.processes]


def _freshness(result: Result) -> Check:
    here, there = _reporters(result)
    delays = [
        None if looker.seen is None or maker.made is None else max(0.0, looker.seen - maker.made)
        for looker, maker in ((here, there), (there, here))
    ]
    facts = {"delays_s": [None if delay is None else round(delay, 3) for delay in delays], "limit_s": NEWS_SECONDS}
    known = [delay for delay in delays if delay is not None]
    if len(known) == len(delays) and max(known) < 1.0:
        text = f"A fresh listing shows what the other host made within {max(known):.2f} s."
        return Check("freshness", Level.OK, text, facts=facts)
    late = f"{max(known):.1f} s later" if len(known) == len(delays) else f"more than {NEWS_SECONDS:g} s later"
    return Check(
        "freshness",
        Level.WARNING,
        f"A fresh listing shows what the other host made {late}, if this one changes nothing there itself. Locks "
        "stay safe, for what decides a grant is listed after a change of one's own; but who waits learns late that a "
        "lock is free, and 'nfsrwlock status' shows the past.",
        "On NFS, mount without nocto; elsewhere, turn caching of directory listings off.",
        facts=facts,
    )


def _data(result: Result) -> Check:
    read = [one for record in _reporters(result) for one in record.data]
    old = read.count("old")
    facts = {"read": len(read), "old": old}
    if old:
        text = (
            f"{old} of {len(read)} times a host that opened a file, after the other had written and closed it and said "
            "so, read the old version. Locks hold here, but data read under them may be old."
        )
        remedy = "On NFS, mount without nocto; elsewhere, turn caching of file data off."
        return Check("data", Level.UNFIT, text, remedy, facts=facts)
    if not read:
        text = "The other host's files were not announced in time to be read."
        return Check("data", Level.WARNING, text, facts=facts)
    text = f"What one host wrote and closed, the other read when it opened the file, {len(read)} times of {len(read)}."
    return Check("data", Level.OK, text, facts=facts)


def _clock(result: Result) -> Check:
    off, known = abs(result.wall_ahead), result.uncertain
    odd = off > 1 + known
    others = "; programs that compare time stamps, such as make, do" if odd else ""
    text = f"The clocks of the two hosts differ by {off:.2f} s (known to {known:.3f} s). Locks do not care{others}."
    facts = {"apart_s": round(result.wall_ahead, 3), "known_to_s": round(known, 3)}
    return Check("clock", Level.NOTE if odd else Level.OK, text, facts=facts)
