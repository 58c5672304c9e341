"""A piece of a campaign as a picture: who held what, and what was done to whom."""

from __future__ import annotations

from collections.abc import Iterable

from nfsrwlock_timeline.drawing import Bar, Mark
from nfsrwlock_timeline.drawing import draw as draw_rows

from .history import Fault, Hold, Violation

_STYLES = {"read": "shared", "write": "exclusive"}


def draw(
    holds: Iterable[Hold],
    faults: Iterable[Fault],
    violations: Iterable[Violation],
    *,
    begin: float,
    end: float,
    title: str,
) -> str:
    """
    The text of an SVG file.

    :param begin: of what is shown, on the host's clock, s
    :param end: of what is shown
    """
    shown = [hold for hold in holds if hold.granted < end and _end_of(hold) > begin]
    rows = sorted({hold.who for hold in shown})
    bars = [
        Bar(number, fault.began, fault.ended, "fault", f"{fault.kind} of {fault.target}")
        for fault in faults
        for number, who in enumerate(rows)
        if fault.target in ("srv", who, who.split(".", 1)[0])
    ]
    for hold in shown:
        number = "" if hold.generation is None else f", number {hold.generation}"
        words = f"{hold.who}: {hold.mode} of lock {hold.lock}{number}, {hold.ending or 'open'}"
        bars.append(
            Bar(rows.index(hold.who), hold.granted, _end_of(hold), _STYLES[hold.mode], words, f"lock {hold.lock}")
        )
    marks = [Mark(None, violation.at, "wrong", violation.what) for violation in violations]
    names = [(who.split(".", 1)[0], who) for who in rows]
    return draw_rows(names, bars, marks, title=title, begin=begin, end=end)


def _end_of(hold: Hold) -> float:
    return hold.end if hold.end < float("inf") else hold.until
