"""The merged logs as a story: who waited, who held, who was killed, which versions were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from events import Event, Kind


@dataclass(frozen=True)
class Span:
    """A wait or a hold of one process. Times in seconds of CLOCK_MONOTONIC."""

    who: str
    mode: str
    purpose: str
    start: float
    end: float
    generation: int | None = None
    killed: bool = False
    """The process was killed before it could end this itself."""

    def overlaps(self, other: Span) -> bool:
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Kill:
    who: str
    time: float
    hold: Span | None
    """What the process held at that moment."""
    recovered: float | None
    """When its entry was seen to be gone from the lock."""


@dataclass(frozen=True)
class Build:
    who: str
    time: float
    version: int


@dataclass(frozen=True)
class History:
    start: float
    end: float
    waits: tuple[Span, ...]
    holds: tuple[Span, ...]
    kills: tuple[Kill, ...]
    builds: tuple[Build, ...]

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        events = sorted(events, key=lambda event: event.time)
        by_process: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_process[event.who].append(event)
        last = events[-1].time
        spans = [_spans(own, last) for own in by_process.values()]
        holds = tuple(sorted((hold for _, found in spans for hold in found), key=lambda hold: hold.start))
        return cls(
            start=events[0].time,
            end=last,
            waits=tuple(wait for found, _ in spans for wait in found),
            holds=holds,
            kills=tuple(_kill(event, events, holds) for event in events if event.kind is Kind.KILLED),
            builds=tuple(
                Build(event.who, event.time, event.details["version"]) for event in events if event.kind is Kind.BUILT
            ),
        )


def _spans(events: Iterable[Event], last: float) -> tuple[list[Span], list[Span]]:
    """The waits and the holds of one process, whose events come in order. What is never ended lasts until `last`."""
    waits: list[Span] = []
    holds: list[Span] = []
    asked: Event | None = None
    held: Event | None = None
    for event in events:
        if event.kind is Kind.ASKS:
            asked = event
        elif event.kind is Kind.HOLDS and asked:
            waits.append(_span(asked, event.time))
            asked, held = None, event
        elif event.kind in (Kind.RELEASES, Kind.KILLED, Kind.ENDED):
            killed = event.kind is not Kind.RELEASES
            if asked:
                waits.append(_span(asked, event.time, killed=killed))
            if held:
                holds.append(_span(held, event.time, killed=killed))
            asked = held = None
    if asked:
        waits.append(_span(asked, last, killed=True))
    if held:
        holds.append(_span(held, last, killed=True))
    return waits, holds


def _span(opening: Event, end: float, *, killed: bool = False) -> Span:
    details = opening.details
    return Span(opening.who, details["mode"], details["purpose"], opening.time, end, details.get("generation"), killed)


def _kill(event: Event, events: Iterable[Event], holds: Iterable[Span]) -> Kill:
    hold = next((hold for hold in holds if hold.killed and (hold.who, hold.end) == (event.who, event.time)), None)
    recovered = (
        later.time
        for later in events
        if later.kind is Kind.RECOVERED and later.who == event.who and later.time > event.time
    )
    return Kill(event.who, event.time, hold, next(recovered, None))
