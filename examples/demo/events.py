"""What happened, when, to whom: one log of JSON lines per process.

Times are `CLOCK_MONOTONIC`, one clock for all processes of a kernel, so the logs can be merged. `HOLDS` is stamped
after the lock was granted and `RELEASES` before it is given back: two logged holds that overlap did overlap.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Kind(StrEnum):
    STARTED = "started"
    ASKS = "asks"
    HOLDS = "holds"
    RELEASES = "releases"
    BUILT = "built"
    ALIGNED = "aligned"
    FAILED = "failed"
    FINISHED = "finished"
    KILLED = "killed"
    RECOVERED = "recovered"
    REQUEUED = "requeued"
    ENDED = "ended"


@dataclass(frozen=True)
class Event:
    time: float
    """Seconds of CLOCK_MONOTONIC."""
    who: str
    kind: Kind
    details: Mapping[str, Any] = field(default_factory=dict)


class EventLog:
    """Appends the events of one process to its own file.

    A line is one write, so a process that is killed leaves no half of one.
    """

    def __init__(self, path: Path, who: str) -> None:
        self._who = who
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: Kind, **details: Any) -> Event:
        event = Event(time.monotonic(), self._who, kind, details)
        line = json.dumps({"time": event.time, "who": event.who, "kind": event.kind, "details": details})
        os.write(self._descriptor, line.encode() + b"\n")
        return event


class EventReader:
    """Follows all logs of a directory while they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}

    def new_events(self) -> list[Event]:
        """The events written since the last call, in order of time."""
        events = [event for path in sorted(self._directory.glob("*.jsonl")) for event in self._new_lines(path)]
        return sorted(events, key=lambda event: event.time)

    def _new_lines(self, path: Path) -> list[Event]:
        with path.open("rb") as log:
            log.seek(self._offsets.get(path, 0))
            complete, newline, _ = log.read().rpartition(b"\n")
        self._offsets[path] = self._offsets.get(path, 0) + len(complete) + len(newline)
        return [_event(json.loads(line)) for line in complete.splitlines()]


def _event(record: Mapping[str, Any]) -> Event:
    return Event(record["time"], record["who"], Kind(record["kind"]), record["details"])
