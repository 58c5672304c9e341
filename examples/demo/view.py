"""What the person at the terminal sees: a live table there, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from check import Check
from conductor import JOBS, Scene
from events import Event, Kind
from nfsrwlock import PeerInfo
from updater import UPDATER

LOCK_NAMES = {"read": "shared", "write": "exclusive"}
MODE_STYLES = {"read": "blue", "write": "yellow"}
EVENT_STYLES = {Kind.KILLED: "bold red", Kind.RECOVERED: "bold green", Kind.BUILT: "yellow", Kind.FAILED: "red"}
LAST_EVENTS = 8
MOST_ROWS = len(JOBS) + 2


class View(Protocol):
    def open(self) -> AbstractContextManager[object]: ...
    def show(self, scene: Scene) -> None: ...


class PlainView:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start: float | None = None

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, scene: Scene) -> None:
        for event in scene.news:
            self._start = event.time if self._start is None else self._start
            if sentence := describe(event):
                line = f"{event.time - self._start:7.2f} s  {event.who:<8} {sentence}"
                self._console.print(line, style=EVENT_STYLES.get(event.kind, ""), highlight=False, soft_wrap=True)


class LiveView:
    """Who holds and who waits, how far the jobs are, and the latest events."""

    def __init__(self, console: Console, batches_per_job: int) -> None:
        self._batches_per_job = batches_per_job
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._latest: deque[tuple[float, Event]] = deque(maxlen=LAST_EVENTS)

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def show(self, scene: Scene) -> None:
        self._latest.extend((scene.elapsed, event) for event in scene.news if describe(event))
        self._live.update(Group(self._lock(scene), self._jobs(scene), self._events()))

    def _lock(self, scene: Scene) -> Table:
        table = Table(title=f"The lock, {scene.elapsed:.1f} s", title_justify="left", box=box.SIMPLE_HEAD)
        for column, width in (("process", 8), ("lock", 9), ("state", 8), ("host", 8)):
            table.add_column(column, min_width=width)
        for column, width in (("pid", 8), ("silent for", 10), ("evictable in", 12)):
            table.add_column(column, min_width=width, justify="right")
        peers = (*scene.lock.holders, *scene.lock.waiters)
        for name in (*JOBS, UPDATER):
            own = [peer for peer in peers if scene.names.get(peer.pid) == name]
            for peer in own:
                table.add_row(name, *self._peer(peer, scene))
            if name in scene.asking and all(peer.token in scene.dead for peer in own):
                table.add_row(name, _mode(scene.asking[name]), Text("waits", "dim"))
            elif not own:
                table.add_row(name)
        # A job that was killed and is back has two rows; otherwise an empty one keeps what is below from jumping.
        for _ in range(MOST_ROWS - table.row_count):
            table.add_row()
        return table

    def _peer(self, peer: PeerInfo, scene: Scene) -> Iterable[str | Text]:
        if peer.token in scene.dead:
            state = Text("killed", "bold red")
        elif peer.state == "holding":
            state = Text("holds", MODE_STYLES.get(peer.mode, ""))
        else:
            state = Text("waits", "dim")
        silent, evictable = f"{peer.silent_for:.1f} s", f"{peer.evictable_in:.1f} s"
        return (_mode(peer.mode), state, peer.host or "?", str(peer.pid), silent, evictable)

    def _jobs(self, scene: Scene) -> Table:
        grid = Table.grid(padding=(0, 1))
        for job in JOBS:
            done = scene.batches_done.get(job, 0)
            bar = ProgressBar(total=self._batches_per_job, completed=done, width=40)
            grid.add_row(f" {job}", bar, f"{done} of {self._batches_per_job} batches")
        return grid

    def _events(self) -> Group:
        lines = [
            Text(f"{elapsed:6.1f} s  {event.who:<8} {describe(event)}", EVENT_STYLES.get(event.kind, "dim"))
            for elapsed, event in self._latest
        ]
        return Group(Text(), *lines, *[Text()] * (LAST_EVENTS - len(lines)))


def _mode(mode: str) -> Text:
    return Text(LOCK_NAMES.get(mode, mode), MODE_STYLES.get(mode, ""))


def describe(event: Event) -> str | None:
    """The event in words, or None if it is not worth a line."""
    details = event.details
    match event.kind:
        case Kind.STARTED:
            return f"starts, pid {details['pid']}, attempt {details['attempt']}"
        case Kind.ASKS if details["mode"] == "write":
            return f"asks for the exclusive lock: {details['purpose']}"
        case Kind.HOLDS if details["mode"] == "write":
            return (
                f"holds the exclusive lock after {details['waited']:.2f} s, "
                f"generation {details['generation']}: {details['purpose']}"
            )
        case Kind.BUILT:
            return f"made version {details['version']}"
        case Kind.ALIGNED:
            return f"aligned batch {details['batch'] + 1}: {details['reads']} reads on version {details['version']}"
        case Kind.FAILED:
            return f"could not align batch {details['batch'] + 1}: {details['problem']}"
        case Kind.FINISHED:
            return "has done its share"
        case Kind.KILLED:
            return "is killed (SIGKILL) while it holds the shared lock"
        case Kind.RECOVERED:
            return "no longer holds the lock: its entry was removed by a peer"
        case Kind.REQUEUED:
            return "is put back into the queue"
        case Kind.ENDED if details["code"] != 0:
            return f"ended with {details['code']}"
    return None


def print_summary(console: Console, checks: Iterable[Check]) -> None:
    table = Table(title="Checked against the truth", title_justify="left", show_header=False, box=None, padding=(0, 1))
    for check in checks:
        verdict = Text("ok", "bold green") if check.passed else Text("FAIL", "bold red")
        table.add_row(verdict, Text(check.title), Text(check.detail, "dim" if check.passed else "red"))
    console.print(table)
