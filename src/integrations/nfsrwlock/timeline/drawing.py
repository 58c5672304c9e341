"""
A picture of who held what when, as one SVG file without dependencies.

It brings its own background, follows the reader's light or dark setting, names each bar in a tooltip, and tells the
kinds apart by height and pattern as well as by colour. The more rows there are the lower they get, and bars too close
to be told apart are drawn as one. It knows nothing of locks: rows, bars and marks are what the caller makes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from nfsrwlock.text import duration, printable

_PLOT: Final = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 200, 28, 104, 88
_WIDTH: Final = _LEFT + _PLOT + _RIGHT
#: Of a row, if there are few, and if there are many; and of all rows together, if that is between.
_ROW_MOST, _ROW_LEAST, _ROWS = 52.0, 4.0, 1200.0
#: Rows lower than this have no name of their own beside them.
_ROW_NAMED: Final = 11.0
#: Of a bar, as part of its row.
_HEIGHTS: Final = {"wait": 0.16, "shared": 0.4, "fault": 0.94}
_HEIGHT: Final = 0.62
_STEPS: Final = (0.001, 0.01, 0.1, 1, 2, 5, 10, 20, 60, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)

_LIGHT: Final = {
    "paper": "#ffffff", "lane": "#f4f6f9", "line": "#d9e0e8", "ink": "#1f2933", "faint": "#616e7c",
    "shared": "#3b7dd8", "exclusive": "#e08a00", "wait": "#a3afbc", "dead": "#cf2338", "free": "#16813f",
}  # fmt: skip
_DARK: Final = {
    "paper": "#12171d", "lane": "#1a2129", "line": "#303b46", "ink": "#e3e8ee", "faint": "#9aa7b5",
    "shared": "#5b9df0", "exclusive": "#f2a93b", "wait": "#5f6d7b", "dead": "#ff6b78", "free": "#4cc481",
}  # fmt: skip
_HATCH: Final = (
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse">'
    '<path d="M-1 8 L8 -1" class="hatch"/></pattern></defs>'
)
#: What each style of a bar or a mark means, if the caller does not say.
LEGEND: Final = {
    "shared": "shared lock", "exclusive": "exclusive lock", "wait": "waiting", "doubt": "held, but in doubt",
    "kill": "killed or lost", "free": "evicted by a peer", "line": "", "fault": "a fault", "wrong": "wrong",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the picture; ``group``: what it stands under, such as its host."""

    name: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """What lasts, in the row of that number; ``style``: of :data:`LEGEND`, ``lock``: what a page can filter by."""

    row: int
    begin: float
    end: float
    style: str
    title: str = ""
    lock: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What happens at one moment: in the row of that number, or across all of them."""

    row: int | None
    at: float
    style: str
    text: str = ""


def draw(
    rows: Sequence[Row],
    bars: Iterable[Bar],
    marks: Iterable[Mark] = (),
    *,
    title: str,
    note: str = "Each row is one process; time runs to the right.",
    begin: float | None = None,
    end: float | None = None,
    legend: dict[str, str] | None = None,
) -> str:
    """
    Return the text of an SVG file.

    :param rows: in their order; those of one group stand together
    :param begin: of what is shown, seconds on the clock of the bars; default: all of it
    :param end: of what is shown
    :param legend: other words for some styles
    """
    bars, marks = list(bars), list(marks)
    moments = [*(bar.begin for bar in bars), *(bar.end for bar in bars), *(mark.at for mark in marks)] or [0.0]
    plot = _Plot(rows, min(moments) if begin is None else begin, max(moments) if end is None else end)
    height = _TOP + plot.height + _BOTTOM
    size = f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}"'
    bars = [bar for bar in bars if bar.begin <= plot.end and bar.end >= plot.begin]
    marks = sorted((mark for mark in marks if plot.begin <= mark.at <= plot.end), key=lambda mark: mark.at)
    words = LEGEND | (legend or {})
    used = {bar.style for bar in bars} | {mark.style for mark in marks}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(printable(title))}</title>",
        f"<style>{_rules(_LIGHT)}@media (prefers-color-scheme: dark) {{{_rules(_DARK)}}}</style>",
        _HATCH,
        f'<rect width="{_WIDTH}" height="{height:.0f}" rx="8" class="paper"/>',
        _text(24, 36, title, "title"),
        _text(24, 58, note, "faint"),
        *plot.lanes(),
        *plot.axis(),
        *plot.lines([mark for mark in marks if mark.row is None]),
        *plot.bars(bars),
        *(part for mark in marks if mark.row is not None for part in plot.mark(mark.row, mark)),
        *_legend(height - 22, {style: text for style, text in words.items() if text and style in used}),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Plot:
    """Turns times and rows into places on the paper."""

    def __init__(self, rows: Sequence[Row], begin: float, end: float) -> None:
        self._rows: Final = rows
        self.begin: Final = begin
        self.end: Final = max(end, begin + 0.001)
        self._row: Final = min(max(_ROWS / max(len(rows), 1), _ROW_LEAST), _ROW_MOST)
        self.height: Final = self._row * len(rows)
        #: Bars closer than that are drawn as one: the more rows there are, the less of each can be seen.
        self._near: Final = max(0.5, len(rows) / 100) * (self.end - self.begin) / _PLOT

    def _x(self, at: float) -> float:
        return _LEFT + _PLOT * (min(max(at, self.begin), self.end) - self.begin) / (self.end - self.begin)

    def _middle(self, row: int) -> float:
        return _TOP + self._row * (row + 0.5)

    def lanes(self) -> Iterator[str]:
        number = 0
        for group, rows in groupby(self._rows, key=lambda row: row.group):
            first = number
            for row in rows:
                if number % 2 == 0 and self._row >= _ROW_NAMED:
                    yield _rect(_LEFT, _TOP + self._row * number, _PLOT, self._row, "lane")
                if self._row >= _ROW_NAMED:
                    yield _text(_LEFT - 14, self._middle(number) + 4, row.name, "small", "end")
                number += 1
            y = _TOP + self._row * first
            if group:
                yield _line(8, y, _WIDTH - _RIGHT, y, "grid")
                yield _text(12, y + 13, group if number - first < 10 else f"{group}: {number - first}", "small group")

    def axis(self) -> Iterator[str]:
        seconds, bottom = self.end - self.begin, _TOP + self.height
        step = next((step for step in _STEPS if seconds / step <= 16), 7 * _STEPS[-1])
        for number in range(int(seconds / step) + 1):
            x, at = self._x(self.begin + number * step), number * step
            yield _line(x, _TOP, x, bottom + 6, "grid")
            yield _text(x, bottom + 22, f"{at:g}" if seconds < 600 else duration(at), "small faint", "middle")
        yield _text(_LEFT - 14, bottom + 22, "seconds" if seconds < 600 else "time", "faint", "end")

    def lines(self, marks: list[Mark]) -> Iterator[str]:
        free = 0.0
        for mark in marks:
            x = self._x(mark.at)
            yield _line(x, _TOP - 22, x, _TOP + self.height, mark.style)
            if mark.text and x >= free:
                yield _text(x + 6, _TOP - 10, mark.text, "small")
                free = x + 12 + 6.5 * len(mark.text)

    def bars(self, bars: list[Bar]) -> Iterator[str]:
        by_row: defaultdict[int, list[Bar]] = defaultdict(list)
        for bar in sorted(self._joined(bars), key=lambda bar: bar.begin):
            by_row[bar.row].append(bar)
        for row, its in sorted(by_row.items()):
            ends: list[float] = []  # of what stands side by side, because it is held together
            places: list[tuple[Bar, int]] = []
            for bar in its:
                place = 0
                if bar.style in ("shared", "exclusive"):
                    place = next((n for n, end in enumerate(ends) if end <= bar.begin), len(ends))
                    ends[place : place + 1] = [bar.end]
                places.append((bar, place))
            yield f"<g data-group={quoteattr(printable(self._rows[row].group))}>"
            for style in ("fault", "wait", "", "doubt"):
                for bar, place in places:
                    if bar.style == style or (not style and bar.style in ("shared", "exclusive")):
                        yield self._bar(bar, place, max(len(ends), 1))
            yield "</g>"

    def _joined(self, bars: list[Bar]) -> Iterator[Bar]:
        latest: dict[tuple[int, str, str], Bar] = {}
        for bar in sorted(bars, key=lambda bar: bar.begin):
            key = bar.row, bar.style, bar.lock
            last = latest.get(key)
            if last is not None and bar.begin - last.end < self._near:
                narrow = min(bar.end - bar.begin, last.end - last.begin) < 4 * self._near
                if narrow and bar.begin >= last.end:
                    count = last.count + 1
                    title = f"{count} times {bar.style} on {bar.lock or 'it'}"
                    latest[key] = replace(last, end=bar.end, count=count, title=title)
                    continue
            if last is not None:
                yield last
            latest[key] = bar
        yield from latest.values()

    def _bar(self, bar: Bar, place: int, places: int) -> str:
        part = _HEIGHTS.get(bar.style, _HEIGHT)
        height = max(self._row * part / places, 1.5)
        y = self._middle(bar.row) + (place - (places - 1) / 2) * height - height / 2
        shown = f"{bar.title}, {bar.end - bar.begin:.2f} s from {bar.begin - self.begin:.2f} s on" if bar.title else ""
        width = max(self._x(bar.end) - self._x(bar.begin), 1.5)
        return _rect(self._x(bar.begin), y, width, height, bar.style, shown, bar.lock)

    def mark(self, row: int, mark: Mark) -> Iterator[str]:
        x, y = self._x(mark.at), self._middle(row)
        half = min(self._row * _HEIGHT / 2, 7.0)
        if mark.style == "kill":
            for style in ("halo", "kill"):
                yield from (_line(x - half, y - half * tilt, x + half, y + half * tilt, style) for tilt in (1, -1))
        else:
            yield _line(x, y - 2 * half - 4, x, y + 2 * half + 4, mark.style)
        if mark.text and self._row >= 2 * _ROW_NAMED:
            # Twice: a line may run through the words. (`paint-order` is not known everywhere.)
            for style in ("under", mark.style):
                yield _text(x + 6, y - self._row * _HEIGHT / 2 - 1, mark.text, f"small {style}")


def _legend(y: float, words: dict[str, str]) -> Iterator[str]:
    # One sample of each kind, side by side on one line.
    x = 24.0
    for style, text in words.items():
        if style == "kill":
            yield from (_line(x + 7, y - 6 * tilt, x + 19, y + 6 * tilt, style) for tilt in (1, -1))
        elif style in ("free", "line", "wrong"):
            yield _line(x + 13, y - 9, x + 13, y + 9, style)
        else:
            height = 24 * _HEIGHTS.get(style, _HEIGHT)
            yield _rect(x, y - height / 2, 26, height, style)
        yield _text(x + 34, y + 5, text)
        x += 56 + 6.8 * len(text)


def _rules(colour: dict[str, str]) -> str:
    # The style sheet in one set of colours. Spelled out, because not every viewer of SVG knows CSS variables.
    return f"""
text {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {colour["ink"]}; }}
.title {{ font-size: 18px; font-weight: 600; }}
.small {{ font-size: 12px; }}
.group {{ font-weight: 600; }}
.faint {{ fill: {colour["faint"]}; }}
text.free {{ fill: {colour["free"]}; stroke: none; font-weight: 600; }}
text.kill, text.wrong {{ fill: {colour["dead"]}; stroke: none; font-weight: 600; }}
.under {{ stroke: {colour["paper"]}; stroke-width: 4; font-weight: 600; }}
.paper {{ fill: {colour["paper"]}; }}
.lane {{ fill: {colour["lane"]}; }}
.shared {{ fill: {colour["shared"]}; }}
.exclusive {{ fill: {colour["exclusive"]}; }}
.wait {{ fill: {colour["wait"]}; }}
.fault {{ fill: {colour["line"]}; }}
.doubt {{ fill: url(#hatch); stroke: {colour["dead"]}; stroke-dasharray: 4 3; }}
.hatch {{ stroke: {colour["dead"]}; stroke-width: 1.3; stroke-opacity: 0.7; }}
.grid {{ stroke: {colour["line"]}; }}
line.line {{ stroke: {colour["exclusive"]}; stroke-width: 1.5; stroke-dasharray: 2 4; }}
line.free {{ stroke: {colour["free"]}; stroke-width: 2.5; }}
line.wrong {{ stroke: {colour["dead"]}; stroke-width: 1.5; }}
line.kill {{ stroke: {colour["dead"]}; stroke-width: 3.5; stroke-linecap: round; }}
.halo {{ stroke: {colour["paper"]}; stroke-width: 7; stroke-linecap: round; }}
"""


def _rect(x: float, y: float, width: float, height: float, style: str, tooltip: str = "", lock: str = "") -> str:
    data = f" data-lock={quoteattr(printable(lock))}" if lock else ""
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{style}"{data}'
    return f"{shape}><title>{escape(printable(tooltip))}</title></rect>" if tooltip else f"{shape}/>"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    words = escape(printable(words))
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{words}</text>'
