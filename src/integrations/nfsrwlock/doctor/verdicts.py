"""
What the races and the looks at another host show: from what was seen to findings. Touches no file.

A finding says what was seen, not what is so: a demand that was kept in all rounds may be broken in the next.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from nfsrwlock.doctor.races import DEMANDS, DONE, ROUNDS_PER_DIRECTORY, Demand, Plan, Race, Record
from nfsrwlock.doctor.report import ELSEWHERE, Check, Level

#: How long a fresh listing may take to show what the other host made, before it counts as late.
NEWS_SECONDS: Final = 4.0
_PROMPT_SECONDS: Final = 1.0
#: What a call that came second is answered. EBUSY and ESTALE come from NFS clients, for what another one has removed.
_LATE: Final = {"EEXIST", "ENOENT", "ENOTEMPTY", "EBUSY", "ESTALE"}


@dataclass(frozen=True, slots=True)
class Sight:
    """
    What one host saw of the other.

    :param data: of each file that the other wrote and closed, whether its ``"new"`` or its ``"old"`` version was read
    :param delay: how long a fresh listing did not show what the other had made, seconds; ``None`` for too long
    """

    data: list[str]
    delay: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """
    What was seen.

    :param records: of all players, in the order of their numbers
    :param sights: of two hosts, what each saw of the other; empty if there is only one
    :param ahead: the second host's clock minus the first one's, seconds
    :param uncertain: by how much that may be wrong, seconds
    """

    plan: Plan
    records: list[Record]
    sights: list[Sight] = field(default_factory=list)
    ahead: float = 0.0
    uncertain: float = 0.0


def judge(result: Result) -> list[Check]:
    """Return the findings about the demands, and, of two hosts, about what they see of each other."""
    checks = [_demand(result, demand) for demand in DEMANDS]
    return [*checks, _freshness(result), _data(result), _clock(result)] if result.sights else checks


def _demand(result: Result, demand: Demand) -> Check:
    facts, neither, ends = _closeness(result, demand.races[0]), 0, Counter[str]()
    for race in demand.races:
        rounds = list(zip(*(record.outcomes[race.name] for record in result.records), strict=True))
        ends.update(itertools.chain.from_iterable(rounds))
        wins = [outcomes.count(DONE) for outcomes in rounds]
        neither += wins.count(0) if race.winners else 0
        counts = _missed(result) if race.winners is None else (sum(won > race.winners for won in wins),)
        facts |= dict(zip(race.broken, counts, strict=True))
    broken = [
        f"{facts[fact]} times {what}" for race in demand.races for fact, what in race.broken.items() if facts[fact]
    ]
    odd = {name: count for name, count in ends.most_common() if name not in {DONE, *_LATE}}
    facts |= {"neither": neither, "errors": odd}
    known = f", clocks known to {facts['clock_known_to_ms']:.1f} ms" if result.sights else ""
    players = f"{result.plan.players // 2} processes on each of two hosts"
    begin = (
        f"{players if result.sights else f'{result.plan.players} processes here'} {demand.tried}, {facts['rounds']} "
        f"times (half of them within {facts['median_apart_ms']:.2f} ms{known}): "
    )
    if broken:
        return Check(demand.name, Level.UNFIT, f"{begin}{'; '.join(broken)}. {demand.lost}.", ELSEWHERE, facts=facts)
    level, remedy, text = Level.OK, "", f"{begin}{demand.kept}.{'' if result.sights else demand.alone}"
    if neither:
        level = Level.NOTE
        text += f" {neither} times no call succeeded, which does no harm: a reply was lost, or a stale cache answered."
    if odd:
        level, remedy = Level.WARNING, "Find out why calls fail; locks try again, data may suffer."
        text += f" But calls failed: {', '.join(f'{name} {count} times' for name, count in odd.items())}."
    return Check(demand.name, level, text, remedy, facts=facts)


def _missed(result: Result) -> tuple[int, int]:
    """How many pairs of listings missed each other's name, and how many listings their own maker's."""
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
    return missed, own


def _seen(record: Record, player: int, first: int) -> dict[str, set[str]]:
    """What a player saw right after it had made each of its names in one directory."""
    ends = record.outcomes["list"][first : first + ROUNDS_PER_DIRECTORY]
    return {f"{player}.{number}": set(record.listings[number]) for number, end in enumerate(ends, first) if end == DONE}


def _closeness(result: Result, race: Race) -> dict[str, Any]:
    """How close the rounds of a race were: in how many all calls overlapped, and how far apart they began."""
    rounds = [
        list(zip(*spans, strict=True)) for spans in zip(*(r.spans[race.name] for r in result.records), strict=True)
    ]
    return {
        "rounds": len(rounds),
        "overlapping": sum(max(begins) <= min(ends) for begins, ends in rounds),
        "median_apart_ms": round(statistics.median(max(begins) - min(begins) for begins, _ in rounds) * 1000, 3),
        "clock_known_to_ms": round(result.uncertain * 1000, 3),
    }


def _freshness(result: Result) -> Check:
    delays = [sight.delay for sight in result.sights]
    facts = {"delays_s": [delay and round(delay, 3) for delay in delays], "limit_s": NEWS_SECONDS}
    most = max(NEWS_SECONDS if delay is None else delay for delay in delays)
    if most < _PROMPT_SECONDS:
        text = f"A fresh listing shows what the other host made within {most:.2f} s."
        return Check("freshness", Level.OK, text, facts=facts)
    late = f"more than {NEWS_SECONDS:g}" if None in delays else f"{most:.1f}"
    text = (
        f"A fresh listing shows what the other host made {late} s later, if this host changes nothing there. Locks "
        "stay safe, for a change of one's own precedes the listing that decides; but waiters learn late that a lock is "
        "free, and 'nfsrwlock status' shows the past."
    )
    remedy = "On NFS, mount without nocto; elsewhere, turn caching of directory listings off."
    return Check("freshness", Level.WARNING, text, remedy, facts=facts)


def _data(result: Result) -> Check:
    read = [one for sight in result.sights for one in sight.data]
    old = read.count("old")
    if not old:
        text = f"What one host wrote and closed, the other read when it opened the file, {len(read)} times."
        return Check("data", Level.OK if read else Level.WARNING, text, facts={"read": len(read), "old": old})
    return Check(
        "data",
        Level.UNFIT,
        f"{old} of {len(read)} times a host that opened a file, after the other had written and closed it and said so, "
        "read the old version. Locks hold here, but data read under them may be old.",
        "On NFS, mount without nocto; elsewhere, turn caching of file data off.",
        facts={"read": len(read), "old": old},
    )


def _clock(result: Result) -> Check:
    off, known = abs(result.ahead), result.uncertain
    odd = off > 1 + known
    others = "; programs that compare time stamps, such as make, do" if odd else ""
    text = f"The clocks of the two hosts differ by {off:.2f} s (known to {known:.3f} s). Locks do not care{others}."
    facts = {"apart_s": round(result.ahead, 3), "known_to_s": round(known, 3)}
    return Check("clock", Level.NOTE if odd else Level.OK, text, facts=facts)
