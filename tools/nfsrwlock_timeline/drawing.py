"""
A picture of who held what when, as one SVG file without dependencies.

It brings its own background, follows the reader's light or dark setting, names each bar in a tooltip, and tells the
kinds apart by height and pattern as well as by colour. The more rows there are the lower they get, and bars too close
to be told apart are drawn as one. It knows nothing of locks: rows, bars and marks are what the caller makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from nfsrwlock.text import duration, printable

_PLOT: Final = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 200, 28, 104, 88
_WIDTH: Final = _LEFT + _PLOT + _RIGHT
#: How high a row is: of few, of many, and all together between that.
_ROW_MOST, _ROW_LEAST, _ROWS = 52.0, 4.0, 1200.0
#: Lower rows have no words beside or in them.
_ROW_NAMED: Final = 11.0
#: How high a bar is, as a part of its row.
_HEIGHTS: Final = {"wait": 0.16, "shared": 0.4, "exclusive": 0.62, "doubt": 0.62, "fault": 0.94}
_STEPS: Final = (0.001, 0.01, 0.1, 1, 2, 5, 10, 20, 60, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
#: What each style of a bar or a mark means, if the caller does not say.
LEGEND: Final = {
    "shared": "shared lock",
    "exclusive": "exclusive lock",
    "wait": "waiting",
    "doubt": "held, but in doubt",
    "kill": "killed or lost",
    "free": "evicted by a peer",
    "line": "",
    "fault": "a fault",
    "wrong": "wrong",
}


class Bar(NamedTuple):
    """What lasts, in the row of that number; ``style``: of :data:`LEGEND`, ``lock``: what a page can filter by."""

    row: int
    begin: float
    end: float
    style: str
    title: str
    lock: str = ""
    times: int = 1


class Mark(NamedTuple):
    """What happens at one moment: in the row of that number, or across all of them."""

    row: int | None
    at: float
    style: str
    text: str = ""


def draw(
    rows: Sequence[tuple[str, str]],
    bars: Iterable[Bar],
    marks: Iterable[Mark],
    *,
    title: str,
    begin: float,
    end: float,
    note: str = "Each row is one process; time runs to the right.",
    legend: dict[str, str] = LEGEND,
) -> str:
    """
    Return the text of an SVG file.

    :param rows: the group of each, such as a host, and its name; those of one group stand together
    :param begin: of what is shown, seconds on the clock of the bars and marks
    :param end: of what is shown
    :param legend: other words for some styles
    """
    plot = _Plot(rows, begin, end)
    bars = [bar for bar in bars if bar.begin <= end and bar.end >= begin]
    marks = sorted((mark for mark in marks if begin <= mark.at <= end), key=lambda mark: mark.at)
    used = {bar.style for bar in bars} | {mark.style for mark in marks}
    height = round(_TOP + plot.height + _BOTTOM)
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    hatch = '<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse">'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{_safe(title)}</title>",
        f"<style>\n{Path(__file__).with_name('picture.css').read_text()}</style>",
        f'<defs>{hatch}<path d="M-1 8 L8 -1" class="hatch"/></pattern></defs>',
        f'<rect width="{_WIDTH}" height="{height}" rx="8" class="paper"/>',
        _text(24, 36, title, "title"),
        _text(24, 58, note, "faint"),
        *plot.lanes(),
        *plot.axis(),
        *plot.lines(mark for mark in marks if mark.row is None),
        *plot.bars(bars),
        *(part for mark in marks if mark.row is not None for part in plot.mark(mark.row, mark)),
        *_legend(height - 22, {style: text for style, text in (LEGEND | legend).items() if text and style in used}),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Plot:
    """Turns times and rows into places on the paper."""

    def __init__(self, rows: Sequence[tuple[str, str]], begin: float, end: float) -> None:
        self._rows: Final = rows
        self._begin: Final = begin
        self._seconds: Final = max(end - begin, 0.001)
        self._row: Final = min(max(_ROWS / max(len(rows), 1), _ROW_LEAST), _ROW_MOST)
        self.height: Final = self._row * len(rows)
        #: Bars closer than that are drawn as one: the more rows there are, the less of each can be seen.
        self._near: Final = max(0.5, len(rows) / 100) * self._seconds / _PLOT

    def _x(self, at: float) -> float:
        return _LEFT + _PLOT * min(max((at - self._begin) / self._seconds, 0), 1)

    def _middle(self, row: int) -> float:
        return _TOP + self._row * (row + 0.5)

    def lanes(self) -> Iterator[str]:
        for number, (_, name) in enumerate(self._rows if self._row >= _ROW_NAMED else ()):
            if number % 2 == 0:
                yield _rect(_LEFT, _TOP + self._row * number, _PLOT, self._row, "lane")
            yield _text(_LEFT - 14, self._middle(number) + 4, name, "small", "end")
        y = float(_TOP)
        for group, rows in groupby(group for group, _ in self._rows):
            count = len(list(rows))
            if group:
                yield _line(8, y, _WIDTH - _RIGHT, y, "grid")
                yield _text(12, y + 13, group if count < 10 else f"{group}: {count}", "small group")
            y += self._row * count

    def axis(self) -> Iterator[str]:
        bottom, is_short = _TOP + self.height, self._seconds < 600
        step = next((step for step in _STEPS if self._seconds / step <= 16), 7 * _STEPS[-1])
        for number in range(int(self._seconds / step) + 1):
            x, at = self._x(self._begin + number * step), number * step
            yield _line(x, _TOP, x, bottom + 6, "grid")
            yield _text(x, bottom + 22, f"{at:g}" if is_short else duration(at), "faint", "middle")
        yield _text(_LEFT - 14, bottom + 22, "seconds" if is_short else "time", "faint", "end")

    def lines(self, marks: Iterable[Mark]) -> Iterator[str]:
        free = 0.0
        for mark in marks:
            x = self._x(mark.at)
            yield _line(x, _TOP - 22, x, _TOP + self.height, mark.style)
            if x >= free:
                yield _text(x + 6, _TOP - 10, mark.text, "small")
                free = x + 12 + 6.5 * len(mark.text)

    def bars(self, bars: Iterable[Bar]) -> Iterator[str]:
        order = {"fault": 0, "wait": 1, "shared": 2, "exclusive": 2, "doubt": 3}
        joined = sorted(self._joined(bars), key=lambda bar: (bar.row, order[bar.style], bar.begin))
        for row, its in groupby(joined, key=lambda bar: bar.row):
            yield f"<g data-group={quoteattr(printable(self._rows[row][0]))}>"
            ends: list[float] = []  # of holds that stand side by side, because they last together
            places = []
            for bar in its:
                place = next((n for n, end in enumerate(ends) if end <= bar.begin), len(ends))
                if bar.style in ("shared", "exclusive"):
                    ends[place : place + 1] = [bar.end]
                    places.append((bar, place))
                else:
                    places.append((bar, -1))
            for bar, place in places:
                yield self._bar(bar, max(place, 0), len(ends) if place >= 0 else 1)
            yield "</g>"

    def _joined(self, bars: Iterable[Bar]) -> Iterator[Bar]:
        latest: dict[tuple[int, str, str], Bar] = {}
        for bar in sorted(bars, key=lambda bar: bar.begin):
            last = latest.get(key := (bar.row, bar.style, bar.lock))
            narrow = last is not None and min(bar.end - bar.begin, last.end - last.begin) < 4 * self._near
            if last is not None and narrow and 0 <= bar.begin - last.end < self._near:
                title = f"{last.times + 1} times {bar.style} {bar.lock}"
                latest[key] = last._replace(end=bar.end, times=last.times + 1, title=title)
            else:
                if last is not None:
                    yield last
                latest[key] = bar
        yield from latest.values()

    def _bar(self, bar: Bar, place: int, places: int) -> str:
        x, height = self._x(bar.begin), max(self._row * _HEIGHTS[bar.style] / places, 1.5)
        y = self._middle(bar.row) + height * (place - places / 2)
        shown = f"{bar.title}, {bar.end - bar.begin:.2f} s from {bar.begin - self._begin:.2f} s on"
        return _rect(x, y, max(self._x(bar.end) - x, 1.5), height, bar.style, shown, bar.lock)

    def mark(self, row: int, mark: Mark) -> Iterator[str]:
        x, y, half = self._x(mark.at), self._middle(row), min(self._row * 0.3, 7.0)
        if mark.style == "kill":
            yield from (_cross(x, y, half, style) for style in ("halo", "kill"))
        else:
            yield _line(x, y - 2.6 * half, x, y + 2.6 * half, mark.style)
        if self._row >= 2 * _ROW_NAMED:
            # Twice: a line may run through the words. (`paint-order` is not known everywhere.)
            yield from (_text(x + 6, y - 2.4 * half, mark.text, f"small {style}") for style in ("under", mark.style))


def _legend(y: float, words: dict[str, str]) -> Iterator[str]:
    # One sample of each kind, side by side on one line.
    x = 24.0
    for style, text in words.items():
        if style == "kill":
            yield _cross(x + 13, y, 6, style)
        elif (height := 24 * _HEIGHTS.get(style, 0)) > 0:
            yield _rect(x, y - height / 2, 26, height, style)
        else:
            yield _line(x + 13, y - 9, x + 13, y + 9, style)
        yield _text(x + 34, y + 5, text)
        x += 56 + 6.8 * len(text)


def _safe(text: str) -> str:
    return escape(printable(text))


def _rect(x: float, y: float, width: float, height: float, style: str, tooltip: str = "", lock: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{style}"'
    data = f" data-lock={quoteattr(printable(lock))}"
    return f"{shape}{data}><title>{_safe(tooltip)}</title></rect>" if tooltip else f"{shape}/>"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _cross(x: float, y: float, half: float, style: str) -> str:
    return "".join(_line(x - half, y - half * tilt, x + half, y + half * tilt, style) for tilt in (1, -1))


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{_safe(words)}</text>'
