"""A picture of who held what when, as one SVG file without dependencies.

It is meant to be looked at anywhere: it brings its own background, follows the reader's light or dark setting, names
each bar in a tooltip, and tells the kinds apart by height and pattern as well as by colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from history import History, Kill, Span

PLOT_WIDTH = 1_000
LEFT, RIGHT, TOP, BOTTOM = 88, 28, 104, 88
WIDTH = LEFT + PLOT_WIDTH + RIGHT
LANE_HEIGHT = 56
BAR_HEIGHT = 28
WAIT_HEIGHT = 8

MODE_NAMES = {"read": "shared", "write": "exclusive"}

HATCH = (
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse">'
    '<path d="M-1 8 L8 -1" class="hatch"/></pattern></defs>'
)

LIGHT = {
    "paper": "#ffffff", "lane": "#f4f6f9", "line": "#d9e0e8", "ink": "#1f2933", "faint": "#616e7c",
    "shared": "#3b7dd8", "exclusive": "#e08a00", "wait": "#a3afbc", "dead": "#cf2338", "free": "#16813f",
}  # fmt: skip
DARK = {
    "paper": "#12171d", "lane": "#1a2129", "line": "#303b46", "ink": "#e3e8ee", "faint": "#9aa7b5",
    "shared": "#5b9df0", "exclusive": "#f2a93b", "wait": "#5f6d7b", "dead": "#ff6b78", "free": "#4cc481",
}  # fmt: skip


def draw(history: History, title: str) -> str:
    """The picture of a run, as the text of an SVG file."""
    lanes = sorted({span.who for span in (*history.waits, *history.holds)})
    height = TOP + LANE_HEIGHT * len(lanes) + BOTTOM
    plot = _Plot(history, lanes)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_rules(LIGHT)}@media (prefers-color-scheme: dark) {{{_rules(DARK)}}}</style>",
        HATCH,
        f'<rect width="{WIDTH}" height="{height}" rx="8" class="paper"/>',
        _text(24, 36, title, "title"),
        _text(24, 58, "Each row is one process; time runs to the right.", "faint"),
        *plot.lanes(),
        *plot.axis(),
        *plot.versions(),
        *map(plot.wait, history.waits),
        *map(plot.hold, history.holds),
        *(part for kill in history.kills for part in plot.kill(kill)),
        *_legend(height - 22),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Plot:
    """Turns times and names into places on the paper."""

    def __init__(self, history: History, lanes: list[str]) -> None:
        self._history = history
        self._lanes = lanes
        self._seconds = max(history.end - history.start, 0.001)
        self._bottom = TOP + LANE_HEIGHT * len(lanes)

    def x(self, time: float) -> float:
        return LEFT + PLOT_WIDTH * (time - self._history.start) / self._seconds

    def middle(self, who: str) -> float:
        return TOP + LANE_HEIGHT * (self._lanes.index(who) + 0.5)

    def lanes(self) -> Iterator[str]:
        for number, name in enumerate(self._lanes):
            if number % 2 == 0:
                yield _rect(LEFT, TOP + LANE_HEIGHT * number, PLOT_WIDTH, LANE_HEIGHT, "lane")
            yield _text(LEFT - 14, self.middle(name) + 5, name, "", "end")

    def axis(self) -> Iterator[str]:
        step = next((step for step in (1, 2, 5, 10, 20) if self._seconds / step <= 16), 60)
        for second in range(0, int(self._seconds) + 1, step):
            x = self.x(self._history.start + second)
            yield _line(x, TOP, x, self._bottom + 6, "grid")
            yield _text(x, self._bottom + 22, f"{second}", "faint", "middle")
        yield _text(LEFT - 14, self._bottom + 22, "seconds", "faint", "end")

    def versions(self) -> Iterator[str]:
        """A line where a version was ready, and its name above the time for which it was the one to read."""
        builds = self._history.builds
        ends = [build.time for build in builds[1:]] + [self._history.end]
        for build, end in zip(builds, ends, strict=True):
            x = self.x(build.time)
            yield _line(x, TOP - 22, x, self._bottom, "version")
            if self.x(end) - x > 60:
                yield _text(x + 6, TOP - 10, f"version {build.version}", "small")

    def wait(self, span: Span) -> str:
        return self._bar(span, WAIT_HEIGHT, "wait", f"{span.who} waits for the {MODE_NAMES[span.mode]} lock")

    def hold(self, span: Span) -> str:
        generation = "" if span.generation is None else f", generation {span.generation}"
        what = f"{span.who} holds the {MODE_NAMES[span.mode]} lock{generation}: {span.purpose}"
        return self._bar(span, BAR_HEIGHT, MODE_NAMES[span.mode], what)

    def kill(self, kill: Kill) -> Iterator[str]:
        """What the dead process left behind until a peer removed it, and the kill itself on top."""
        x, y = self.x(kill.time), self.middle(kill.who)
        if kill.recovered is not None:
            free = self.x(kill.recovered)
            took = f"recovered in {kill.recovered - kill.time:.2f} s"
            yield _rect(x, y - BAR_HEIGHT / 2, max(free - x, 2), BAR_HEIGHT, "orphan", f"{kill.who}: {took}")
            yield _line(free, y - BAR_HEIGHT / 2 - 4, free, y + BAR_HEIGHT / 2 + 4, "free")
            # Twice: the line of a version may run through the words. (`paint-order` is not known everywhere.)
            for style in ("under", "freed"):
                yield _text(max(free, x + 9) + 6, y - BAR_HEIGHT / 2 - 3, took, f"small {style}")
        yield from (_line(x - 7, y - 7 * tilt, x + 7, y + 7 * tilt, "halo") for tilt in (1, -1))
        yield from (_line(x - 7, y - 7 * tilt, x + 7, y + 7 * tilt, "kill") for tilt in (1, -1))

    def _bar(self, span: Span, height: float, style: str, what: str) -> str:
        x, y = self.x(span.start), self.middle(span.who) - height / 2
        begin = span.start - self._history.start
        tooltip = f"{what}, {span.end - span.start:.2f} s from {begin:.2f} s on"
        return _rect(x, y, max(self.x(span.end) - x, 1.5), height, style, tooltip)


def _legend(y: float) -> Iterator[str]:
    """One sample of each kind, side by side on one line."""
    x = float(LEFT)
    for style, height, words in (
        ("shared", 14, "shared lock"),
        ("exclusive", 14, "exclusive lock"),
        ("wait", WAIT_HEIGHT, "waiting"),
        ("orphan", 14, "held by a dead process"),
    ):
        yield _rect(x, y - height / 2, 26, height, style)
        yield _text(x + 34, y + 5, words)
        x += 56 + 6.8 * len(words)
    yield from (_line(x, y - 6 * tilt, x + 12, y + 6 * tilt, "kill") for tilt in (1, -1))
    yield _text(x + 22, y + 5, "SIGKILL")
    x += 96
    yield _line(x, y - 9, x, y + 9, "free")
    yield _text(x + 10, y + 5, "recovered by a peer")
    x += 160
    yield _line(x, y - 9, x, y + 9, "version")
    yield _text(x + 10, y + 5, "new version ready")


def _rules(colour: dict[str, str]) -> str:
    """The style sheet in one set of colours. Spelled out, because not every viewer of SVG knows CSS variables."""
    return f"""
text {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {colour["ink"]}; }}
.title {{ font-size: 18px; font-weight: 600; }}
.small {{ font-size: 12px; }}
.faint {{ fill: {colour["faint"]}; }}
.freed {{ fill: {colour["free"]}; font-weight: 600; }}
.under {{ stroke: {colour["paper"]}; stroke-width: 4; font-weight: 600; }}
.paper {{ fill: {colour["paper"]}; }}
.lane {{ fill: {colour["lane"]}; }}
.shared {{ fill: {colour["shared"]}; }}
.exclusive {{ fill: {colour["exclusive"]}; }}
.wait {{ fill: {colour["wait"]}; }}
.orphan {{ fill: url(#hatch); stroke: {colour["dead"]}; stroke-dasharray: 4 3; }}
.hatch {{ stroke: {colour["dead"]}; stroke-width: 1.3; stroke-opacity: 0.7; }}
.grid {{ stroke: {colour["line"]}; }}
.version {{ stroke: {colour["exclusive"]}; stroke-width: 1.5; stroke-dasharray: 2 4; }}
.free {{ stroke: {colour["free"]}; stroke-width: 2.5; }}
.kill {{ stroke: {colour["dead"]}; stroke-width: 3.5; stroke-linecap: round; }}
.halo {{ stroke: {colour["paper"]}; stroke-width: 7; stroke-linecap: round; }}
"""


def _rect(x: float, y: float, width: float, height: float, style: str, tooltip: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{style}"'
    return f"{shape}><title>{escape(tooltip)}</title></rect>" if tooltip else f"{shape}/>"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'
