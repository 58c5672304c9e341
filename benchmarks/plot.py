"""The results as one picture (SVG, drawn by hand): five panels, all of NFSv4.2, all times on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Final

from benchmarks.contenders import KINDS
from benchmarks.measurements import Record
from benchmarks.results import Document, find

_WIDTH: Final = 1000
_MARGIN: Final = 28
_INK: Final = "#1c2733"
_SOFT: Final = "#5b6875"
_GRID: Final = "#e3e8ed"
_COLOURS: Final = {
    "nfsrwlock-read": "#0b63b0",
    "nfsrwlock-kept": "#0f8fa8",
    "nfsrwlock-permit": "#4338ca",
    "nfsrwlock-recorded": "#b45309",
    "nfsrwlock-write": "#4fa3e8",
    "filelock-read": "#c2410c",
    "filelock-write": "#ef8b57",
    "soft": "#6d28d9",
    "strict": "#a78bda",
    "flufl": "#15803d",
    "lockf-read": "#8a6d00",
    "lockf-write": "#c6a21d",
    "floor": "#64748b",
}
_ROW: Final = 25


@dataclass(frozen=True)
class _Scale:
    """A logarithmic scale from one range to another."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + min(share, 1.0) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """The powers of ten within."""
        for power in range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1):
            yield 10.0**power


def _decades(values: list[float], start: float, end: float) -> _Scale:
    """A scale of whole powers of ten around all values."""
    low = math.floor(math.log10(min(values)))
    return _Scale(10.0**low, 10.0 ** max(math.ceil(math.log10(max(values))), low + 1), start, end)


@dataclass
class _Svg:
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, more: str = "") -> None:
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}"{more}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 4.5, *, filled: bool = True) -> None:
        fill = colour if filled else "#ffffff"
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{colour}" stroke-width="1.8"/>'
        )

    def text(self, x: float, y: float, what: str, more: str = "", *, size: float = 12, colour: str = _INK) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{more}>{escape(what)}</text>'
        )

    def path(self, points: list[tuple[float, float]], colour: str, more: str = "") -> None:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="2.2" '
            f'stroke-linejoin="round"{more}/>'
        )


_END: Final = ' text-anchor="end"'
_MIDDLE: Final = ' text-anchor="middle"'


def figure(document: Document) -> str:
    """Return the picture; panels without results are left out."""
    place = next((name for name in ("nfs4.2", *document["places"]) if name in document["places"]), None)
    svg = _Svg()
    y = 34.0
    label = "" if place is None else document["places"][place]["label"]
    svg.text(_MARGIN, y, f"nfsrwlock beside other locks, {label}", ' font-weight="600"', size=19)
    svg.text(_MARGIN, y + 20, "Scales are logarithmic. Left is better, and so is low.", colour=_SOFT)
    y += 44
    if place is not None:
        panels: list[Callable[[_Svg, Document, str, float], float]] = [_cycles, _contended, _storm, _curves]
        for panel in panels:
            y = panel(svg, document, place, y)
    height = math.ceil(y)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">\n"
        f"<title>{escape(f'nfsrwlock beside other locks, {label}')}</title>\n"
        f'<rect width="{_WIDTH}" height="{height}" rx="10" fill="#ffffff"/>\n' + "\n".join(svg.parts) + "\n</svg>\n"
    )


# -- panels of rows ---------------------------------------------------------------------------------------------------


def _cycles(svg: _Svg, document: Document, place: str, y: float) -> float:
    records = [record for record in find(document, "uncontended", place) if record["seconds"]["n"]]
    rows = []
    for record in records:
        times = record["seconds"]
        note = f"{times['median'] * 1000:.3g} ms"
        if record.get("requests"):
            note += f", {record['requests']:.3g} requests"
        rows.append((record, [times["p10"], times["median"], times["p90"]], note))
    title = "Acquire + release, nobody else there: median, and 10 % to 90 %"
    return _rows(svg, y, title, rows)


def _contended(svg: _Svg, document: Document, place: str, y: float) -> float:
    rows: list[tuple[Record, list[float | None], str]] = []
    processes = 0
    for record in find(document, "contended", place, threads=1):
        if KINDS[record["contender"]].permits > 1:
            continue  # which nobody else has
        processes = record["processes"]
        waits = record["seconds"]
        if waits["n"]:
            note = f"{record['cycles per second']:.3g} cycles/s, each {record['fewest']}–{record['most']}"
            rows.append((record, [waits["p10"], waits["median"], record["longest"]], note))
    title = f"{processes} processes ask for it exclusively again and again: waits, 10 %, the median and the longest"
    return _rows(svg, y, title, rows)


def _storm(svg: _Svg, document: Document, place: str, y: float) -> float:
    rows = []
    processes = 0
    for record in find(document, "storm", place):
        processes = record["processes"]
        times = [record[which].get("median") for which in ("first", "median", "last")]
        if times[0] is None:
            continue
        if None not in times:
            note = f"all after {times[2]:.3g} s"
        elif record["failed"]:
            note = f"{record['granted']} of {processes}, {record['failed']} failed"
        else:
            note = f"{record['granted']} of {processes} in {record['limit']:g} s"
        rows.append((record, times, note))
    title = f"{processes} processes on four clients ask to read at one moment: the first, the median, the last grant"
    return _rows(svg, y, title, rows)


def _rows(svg: _Svg, y: float, title: str, rows: list[tuple[Record, list[float | None], str]]) -> float:
    # One row a contender: a line from the least to the most, a dot at the median. Without an end it is open.
    values = [value for _, times, _ in rows for value in times if value is not None]
    if not values:
        return y
    left, right = 276, _WIDTH - 210
    limits = [record["limit"] for record, times, _ in rows if None in times and "limit" in record]
    x = _decades([*values, *limits], left, right)
    y += 22
    svg.text(_MARGIN, y, title, ' font-weight="600"', size=14)
    top, bottom = y + 16, y + 16 + _ROW * len(rows)
    for tick in x.ticks():
        svg.line(x(tick), top, x(tick), bottom, _GRID)
        svg.text(x(tick), bottom + 16, _seconds(tick), _MIDDLE, size=11, colour=_SOFT)
    for number, (record, times, note) in enumerate(rows):
        middle = top + _ROW * (number + 0.5)
        name = record["contender"]
        colour = _COLOURS[name]
        ours = ' font-weight="600"' if name.startswith("nfsrwlock") else ""
        svg.text(left - 14, middle + 4, KINDS[name].label, _END + ours, size=12)
        least, median, most = times
        assert least is not None
        end = right if most is None else x(most)
        open_end = ' stroke-dasharray="2 5" stroke-linecap="round"' if most is None else ' stroke-linecap="round"'
        svg.line(x(least), middle, end, middle, colour, 3.5, open_end + ' opacity="0.55"')
        if median is not None:
            svg.dot(x(median), middle, colour)
        svg.text(right + 14, middle + 4, note, size=11.5, colour=_SOFT)
    return bottom + 36


# -- panels of curves -------------------------------------------------------------------------------------------------


def _curves(svg: _Svg, document: Document, place: str, y: float) -> float:
    half = (_WIDTH - 2 * _MARGIN) / 2
    handover: dict[str, list[tuple[float, float]]] = {}
    for record in find(document, "handover", place):
        if record["seconds"]["n"] and record["poll"] is not None and record["waited"] <= 1:
            handover.setdefault(record["contender"], []).append((record["poll"], record["seconds"]["median"]))
    growth: dict[str, list[tuple[float, float]]] = {}
    for record in find(document, "growth", place):
        if "seconds" in record:
            growth.setdefault(record["contender"], []).append((record["readers"], record["seconds"]["median"]))
    ends = [y]
    title = "Release on one client to grant on another"
    ends.append(_chart(svg, _MARGIN, y, half, title, "poll interval", handover, _seconds))
    ends.append(
        _chart(svg, _MARGIN + half, y, half, "A read cycle among so many readers", "readers", growth, "{:,.0f}".format)
    )
    return max(ends)


def _chart(
    svg: _Svg,
    left: float,
    y: float,
    width: float,
    title: str,
    what: str,
    curves: dict[str, list[tuple[float, float]]],
    tell: Callable[[float], str],
) -> float:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return y
    y += 22
    svg.text(left, y, title, ' font-weight="600"', size=14)
    top, bottom = y + 18, y + 18 + 210
    start, end = left + 54, left + width - 40
    xs = sorted({point[0] for point in points})
    x = _Scale(xs[0], xs[-1] if len(xs) > 1 else xs[0] * 10, start, end)
    values = [point[1] for point in points]
    scale = _decades(values, bottom, top)
    for tick in scale.ticks():
        svg.line(start, scale(tick), end, scale(tick), _GRID)
        svg.text(start - 8, scale(tick) + 4, _seconds(tick), _END, size=11, colour=_SOFT)
    for value in xs:
        svg.line(x(value), bottom, x(value), bottom + 4, _SOFT)
        svg.text(x(value), bottom + 18, tell(value), _MIDDLE, size=11, colour=_SOFT)
    svg.text((start + end) / 2, bottom + 35, what, _MIDDLE, size=11, colour=_SOFT)
    for name in reversed(curves):  # ours last, on top
        curve = [(x(at), scale(value)) for at, value in curves[name]]
        svg.path(curve, _COLOURS[name])
        for at in curve:
            svg.dot(*at, _COLOURS[name], 3.5, filled=False)
    line = bottom + 56
    for name in curves:
        svg.dot(start + 4, line - 4, _COLOURS[name])
        svg.text(start + 16, line, KINDS[name].label, size=11.5)
        line += 17
    return line + 12


def _seconds(value: float) -> str:
    if value < 0.999e-3:
        return f"{value * 1e6:g} µs"
    if value < 0.999:
        return f"{value * 1e3:g} ms"
    return f"{value:,g} s"
