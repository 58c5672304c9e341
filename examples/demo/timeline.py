"""A picture of who held what when, drawn as `nfsrwlock timeline` draws what it finds in a record."""

from __future__ import annotations

from nfsrwlock_timeline.drawing import Bar, Mark
from nfsrwlock_timeline.drawing import draw as draw_rows

from history import History

MODE_NAMES = {"read": "shared", "write": "exclusive"}
LEGEND = {
    "doubt": "held by a dead process",
    "kill": "SIGKILL",
    "free": "recovered by a peer",
    "line": "new version ready",
}


def draw(history: History, title: str) -> str:
    """The picture of a run, as the text of an SVG file."""
    rows = sorted({span.who for span in (*history.waits, *history.holds)})
    bars, marks = [], [Mark(None, build.time, "line", f"version {build.version}") for build in history.builds]
    for wait in history.waits:
        words = f"{wait.who} waits for the {MODE_NAMES[wait.mode]} lock"
        bars.append(Bar(rows.index(wait.who), wait.start, wait.end, "wait", words))
    for hold in history.holds:
        number = "" if hold.generation is None else f", generation {hold.generation}"
        words = f"{hold.who} holds the {MODE_NAMES[hold.mode]} lock{number}: {hold.purpose}"
        bars.append(Bar(rows.index(hold.who), hold.start, hold.end, MODE_NAMES[hold.mode], words))
    for kill in history.kills:
        row = rows.index(kill.who)
        if kill.recovered is not None:
            bars.append(Bar(row, kill.time, kill.recovered, "doubt", f"{kill.who}: what it left"))
            marks.append(Mark(row, kill.recovered, "free", f"recovered in {kill.recovered - kill.time:.2f} s"))
        marks.append(Mark(row, kill.time, "kill"))
    begin, end = history.start, history.end
    return draw_rows([("", name) for name in rows], bars, marks, title=title, begin=begin, end=end, legend=LEGEND)
