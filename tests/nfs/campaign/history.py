"""
The judge of a campaign: written apart from the engine, and knowing nothing of how it works.

It takes what the processes said, event by event, and what was done to them, all on the host's one clock, and finds what
must not have happened:

- two holds of one lock together, one of them exclusive, or more shared ones with a limit than that. A hold lasts from
  its grant until its user began to give it back. If it was lost, or its user was never heard of again, it lasted
  until the latest moment at which its lease ran out by its own account: nobody may have been let in before. A process
  that was killed by a signal held nothing from then on, since its kernel knows that it is dead. The last words of a
  machine that loses its power are lost with it, so a hold that began right before may have been given back unheard,
  and is known for sure only at its last word;
- exclusive grants whose numbers do not rise, or are not higher than what a shared hold knew before, and a shared hold
  that knows an earlier number than one granted before it;
- a hold that never ended: neither given back, nor lost, nor did its process or its machine end;
- a permit that is free, and granted to nobody, for longer than a lease while somebody waits for it whom nothing was
  done to;
- a hold that was lost although neither its machine nor its network was touched: an outage of the server costs no hold.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

#: For how many leases a permit may be free: one, and two looks of whoever waits, which are a third of it apart at most.
_FREE_LEASES = 2
#: What a process said so shortly before its machine lost its power may not have been heard, seconds.
_WORDS_LOST_S = 0.25


@dataclass(frozen=True, slots=True)
class Fault:
    """
    What was done to a machine, or to a process.

    :param kind: a key of :data:`nemesis.KINDS`
    :param target: a machine's name, or a process's
    """

    kind: str
    target: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Event:
    """
    What one process said at one moment.

    :param who: the process, such as ``n1.3``, or one of its tasks, ``n1.3/2``
    :param error_s: by how much ``at`` and ``until`` may be wrong
    """

    who: str
    event: str
    at: float
    error_s: float
    more: dict[str, Any]


@dataclass(slots=True)
class Hold:
    """One hold of one lock, as its user knew it."""

    who: str
    lock: int
    mode: str
    granted: float
    error_s: float
    lease_s: float
    #: ``None`` for a shared hold that did not ask for it, or could not read it.
    generation: int | None
    #: When its lease runs out, by its own latest account.
    until: float
    #: How many with a limit may hold the lock at a time, ``None`` if it has none.
    limit: int | None = None
    #: When its user began to wait for it.
    asked: float = float("nan")
    #: Its user's latest word before the one that ended it.
    heard: float = float("nan")
    #: When it had the lock, if it said so only later: it asked for its number before.
    since: float = float("nan")
    beats: int = 0
    #: When it said that its lease had run out, and when that it was there again.
    suspect: list[float] = field(default_factory=list)
    restored: list[float] = field(default_factory=list)
    lost: float | None = None
    release: float | None = None
    #: How it ended: "released", "lost", "killed", "power cut", or "" if it never did.
    ending: str = ""
    #: No other may have been let in before; set when it has ended.
    end: float = float("inf")

    def __post_init__(self) -> None:
        if math.isnan(self.since):
            self.since = self.granted
        self.heard = self.granted

    def overlaps(self, other: Hold) -> bool:
        """Whether both were held at one moment, however wrong the clocks were."""
        error = self.error_s + other.error_s
        return self.since + error < other.end and other.since + error < self.end


@dataclass(frozen=True, slots=True)
class Violation:
    """
    What must not have happened.

    :param what: in words
    :param at: when
    :param who: the processes it is about
    """

    what: str
    at: float
    who: tuple[str, ...]


@dataclass
class Verdict:
    """What a campaign amounted to."""

    holds: list[Hold]
    violations: list[Violation]
    events: Counter[str]

    def count(self, mode: str) -> int:
        """How many times the lock was granted in this mode."""
        return sum(hold.mode == mode for hold in self.holds)


def judge(events: Iterable[Event], faults: Iterable[Fault], permits_only: bool = False) -> Verdict:
    """
    Judge a campaign that is over.

    :param events: of all processes and tasks, each one's in order
    :param faults: all that was done
    :param permits_only: whether the locks were taken with one limit and in no other way
    """
    faults = sorted(faults, key=lambda fault: fault.began)
    holds: list[Hold] = []
    tally: Counter[str] = Counter()
    open_holds: dict[str, Hold] = {}
    asked: dict[str, float] = {}
    for event in events:
        tally[event.event] += 1
        if event.event == "ask":
            asked[event.who] = event.at
        _take_in(event, asked, open_holds, holds)
    for who, hold in open_holds.items():
        _end_unheard(hold, who, faults)
    violations = [
        *conflicts(holds),
        *crowds(holds),
        *disorder(holds),
        *(
            Violation(f"{hold.who} never gave back what it was granted", hold.granted, (hold.who,))
            for hold in holds
            if not hold.ending
        ),
        *_losses(holds, faults),
        *(_vacancies(holds, faults) if permits_only else ()),
    ]
    return Verdict(holds, sorted(violations, key=lambda violation: violation.at), tally)


def _take_in(event: Event, asked: dict[str, float], open_holds: dict[str, Hold], holds: list[Hold]) -> None:
    more = event.more
    if event.event == "granted":
        hold = Hold(
            *(event.who, more["lock"], more["mode"], event.at, event.error_s, more["lease"], more["generation"]),
            until=more["until"],
            limit=more.get("limit"),
            asked=asked.get(event.who, event.at),
            since=more.get("since", event.at),
        )
        open_holds[event.who] = hold
        holds.append(hold)
        return
    hold_or_none = open_holds.get(event.who)
    if hold_or_none is None:
        return
    hold = hold_or_none
    hold.heard = event.at
    match event.event:
        case "beat":
            hold.until = max(hold.until, more["until"])
            hold.beats += 1
        case "suspect":
            hold.suspect.append(event.at)
        case "restored":
            hold.restored.append(event.at)
        case "lost":
            hold.lost = event.at
        case "release":
            hold.release = event.at
            if hold.lost is None:
                # What was suspect when it was given back stood by its own account until the lease had run out.
                in_doubt = len(hold.suspect) > len(hold.restored)
                hold.ending, hold.end = "released", min(event.at, hold.until) if in_doubt else event.at
            else:
                hold.ending, hold.end = "lost", min(hold.lost, hold.until)
            del open_holds[event.who]


def _end_unheard(hold: Hold, who: str, faults: list[Fault]) -> None:
    if hold.lost is not None:  # and its user came to its end before it could let go
        hold.ending, hold.end = "lost", min(hold.lost, hold.until)
        return
    process = who.partition("/")[0]
    machine = process.split(".", 1)[0]
    for fault in faults:
        if fault.ended < hold.granted:
            continue
        if fault.kind == "kill" and fault.target == process:
            hold.ending, hold.end = "killed", min(fault.began, hold.until)
            return
        if fault.kind == "power cut" and fault.target == machine:
            is_sure = fault.began - hold.heard > _WORDS_LOST_S
            hold.ending, hold.end = "power cut", hold.until if is_sure else min(hold.heard, hold.until)
            return


def overlaps(holds: list[Hold]) -> Iterator[tuple[Hold, Hold]]:
    """Yield the pairs of holds of one lock that were held together, the earlier first."""
    for same_lock in _by_lock(holds).values():
        current: list[Hold] = []
        for hold in sorted(same_lock, key=lambda hold: hold.since):
            current = [other for other in current if other.end > hold.since]
            yield from ((other, hold) for other in current if other.overlaps(hold))
            current.append(hold)


def conflicts(holds: list[Hold]) -> Iterator[Violation]:
    """Find the pairs that must not have been held together."""
    for other, hold in overlaps(holds):
        if "write" in (hold.mode, other.mode):
            text = f"{other.who} ({other.mode}) and {hold.who} ({hold.mode}) hold lock {hold.lock} together"
            yield Violation(text, hold.granted, (other.who, hold.who))


def crowds(holds: list[Hold]) -> Iterator[Violation]:
    """Find the moments at which more than the limit hold a lock with one."""
    for same_lock in _by_lock([hold for hold in holds if hold.limit]).values():
        current: list[Hold] = []
        for hold in sorted(same_lock, key=lambda hold: hold.since + hold.error_s):
            surely = hold.since + hold.error_s
            current = [other for other in current if other.end - other.error_s > surely]
            if hold.end - hold.error_s > surely:
                current.append(hold)
            if hold.limit is not None and len(current) > hold.limit:
                who = tuple(other.who for other in current)
                text = f"{' and '.join(who)} hold lock {hold.lock} together, of which at most {hold.limit} may"
                yield Violation(text, hold.granted, who)


@dataclass(frozen=True, slots=True)
class Waits:
    """
    What those met who waited for permits, and whose machines nobody touched meanwhile.

    :param vacant_s: for how long, at the most, a permit was free and granted to nobody while one of them waited
    :param overtaken: how many who came after one of them were granted before, at the most
    """

    vacant_s: float
    overtaken: int


def waits(holds: list[Hold], faults: Iterable[Fault]) -> Waits:
    """Look at locks that are taken with one limit and in no other way."""
    found = [*_waited(holds, faults)]
    return Waits(max((vacant_s for _, vacant_s, _ in found), default=0), max((count for *_, count in found), default=0))


def _vacancies(holds: list[Hold], faults: Iterable[Fault]) -> Iterator[Violation]:
    for hold, vacant_s, _ in _waited(holds, faults):
        if vacant_s > _FREE_LEASES * hold.lease_s:
            text = f"a permit of lock {hold.lock} was free for {vacant_s:.1f} s while {hold.who} waited for it"
            yield Violation(text, hold.granted, (hold.who,))


def _waited(holds: list[Hold], faults: Iterable[Fault]) -> Iterator[tuple[Hold, float, int]]:
    touching = _touching(faults)
    for same_lock in _by_lock(holds).values():
        same_lock.sort(key=lambda hold: hold.since)
        current: list[Hold] = []
        free_since = granted = -math.inf
        for number, hold in enumerate(same_lock):
            if hold.limit is not None and len(current) >= hold.limit:
                # Of those who had the lock, so many had to end that one place was left.
                free_since = sorted(other.end for other in current)[len(current) - hold.limit]
            current = [*(other for other in current if other.end > hold.since), hold]
            # What is sent while a machine is cut off is repeated less and less often: a lease later all is as before.
            latest, granted = granted, hold.since
            machine = touching[hold.who.split(".", 1)[0]]
            if any(fault.began < hold.since and fault.ended > hold.asked - hold.lease_s for fault in machine):
                continue
            meanwhile = itertools.takewhile(lambda other: other.since > hold.asked, reversed(same_lock[:number]))  # noqa: B023
            overtaken = sum(other.asked > hold.asked + other.error_s + hold.error_s for other in meanwhile)
            yield hold, hold.since - max(hold.asked, free_since, latest), overtaken


def disorder(holds: list[Hold]) -> Iterator[Violation]:
    """Find grants whose numbers do not rise, and shared holds that know an earlier number than they must."""
    for same_lock in _by_lock(holds).values():
        latest: Hold | None = None  # the latest exclusive hold, and the shared one that knew the highest number
        known: Hold | None = None
        for hold in same_lock:
            if hold.until <= hold.granted or hold.generation is None:
                continue  # it was over when its user heard of it: grants after it have higher numbers
            # Holds may be shorter than what the clocks can tell apart.
            earlier = [latest] if hold.mode == "read" else [latest, known]
            for other in (other for other in earlier if _is_surely_before(other, hold)):
                if other is not None and _number(other) + (hold.mode == "write") > hold.generation:
                    text = f"{hold.who} ({hold.mode}) knows number {hold.generation} after {other.generation}"
                    yield Violation(text, hold.granted, (other.who, hold.who))
            if hold.mode == "write":
                latest = hold
            elif known is None or hold.generation > _number(known):
                known = hold


def _is_surely_before(other: Hold | None, hold: Hold) -> bool:
    return other is not None and other.granted + other.error_s + hold.error_s < hold.granted


def _number(hold: Hold) -> int:
    assert hold.generation is not None
    return hold.generation


def _touching(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    touching = defaultdict(list)
    for fault in faults:
        if fault.kind in ("pause", "network cut", "power cut", "delay"):
            touching[fault.target].append(fault)
    return touching


def _losses(holds: list[Hold], faults: list[Fault]) -> Iterator[Violation]:
    touching = _touching(faults)
    for hold in holds:
        if hold.ending != "lost":
            continue
        assert hold.lost is not None
        # TCP repeats itself less and less often, so a client may find the server only a lease after it was cut off.
        since = min(hold.until, hold.lost) - 3 * hold.lease_s
        if not any(fault.began < hold.lost and fault.ended > since for fault in touching[hold.who.split(".", 1)[0]]):
            yield Violation(f"{hold.who} lost its hold, and nobody had touched it", hold.lost, (hold.who,))


def _by_lock(holds: list[Hold]) -> dict[int, list[Hold]]:
    locks: dict[int, list[Hold]] = defaultdict(list)
    for hold in sorted(holds, key=lambda hold: hold.granted):
        locks[hold.lock].append(hold)
    return locks


def on_the_hosts_clock(event: Event, offset: float) -> Event:
    """The event with its machine's clock, which is ``offset`` ahead of the host's, taken into account."""
    moments = {name: event.more[name] - offset for name in ("until", "since") if name in event.more}
    more = {**event.more, **moments}
    return replace(event, at=event.at - offset, more=more)
