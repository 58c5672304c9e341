"""The directory that all processes of the demonstration share, and the settings they were given."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from events import EventLog, Kind
from nfsrwlock import SoftReadWriteLock
from store import Store

ACQUIRE_TIMEOUT_S = 60.0
"""Nobody waits longer than this; a demonstration that hangs shows nothing."""

Mode = Literal["read", "write"]


@dataclass(frozen=True)
class Settings:
    """What each process must know. Times in seconds."""

    seed: int
    use_lock: bool
    lease: float
    beat: float
    batches_per_job: int
    reads_per_batch: int
    hold_pause: float
    """Added to each batch while the shared lock is held: lambda is too quick for the eye."""
    gap_pause: float
    """Between two batches of a job, with no lock held."""
    build_pause: float
    """At each step of a rewrite, while the exclusive lock is held."""


class GuardsData(Protocol):
    """What the demonstration uses of a `SoftReadWriteLock`."""

    @property
    def generation(self) -> int | None: ...
    def read_lock(self) -> AbstractContextManager[Any]: ...
    def write_lock(self) -> AbstractContextManager[Any]: ...
    def check(self) -> None: ...


class NoLock:
    """The names of a lock and none of its protection: for `--no-lock`, which shows that the checks can fail."""

    generation = None

    @contextmanager
    def read_lock(self) -> Iterator[None]:
        yield

    write_lock = read_lock

    def check(self) -> None:
        pass


class Stage:
    """Paths of the shared directory, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shared = directory / "shared"
        self.logs = directory / "logs"
        self.reads = directory / "reads"
        self.results = directory / "results"
        self.store = Store(self.shared)

    @property
    def guarded_path(self) -> Path:
        """The path that the lock is about. One lock for both files: they change together."""
        return self.store.reference_path

    def make(self, settings: Settings) -> None:
        for directory in (self.shared, self.logs, self.reads, self.results):
            directory.mkdir()
        self._settings_path.write_text(json.dumps(asdict(settings)))

    def settings(self) -> Settings:
        return Settings(**json.loads(self._settings_path.read_text()))

    def reads_path(self, job: str) -> Path:
        return self.reads / f"{job}.fa"

    def result_path(self, job: str, batch: int) -> Path:
        return self.results / f"{job}.{batch:03d}.json"

    def output_path(self, job: str, attempt: int) -> Path:
        return self.logs / f"{job}.{attempt}.out"

    def wait_until_all_have_looked(self, job: str) -> None:
        """However long it takes the others to start."""
        (self.logs / f"{job}.looked").touch()
        limit = time.monotonic() + ACQUIRE_TIMEOUT_S
        while len([*self.logs.glob("*.looked")]) < len([*self.reads.iterdir()]) and time.monotonic() < limit:
            time.sleep(0.01)

    def log(self, who: str, attempt: int) -> EventLog:
        return EventLog(self.logs / f"{who}.{attempt}.jsonl", who)

    def lock(self) -> GuardsData:
        settings = self.settings()
        if not settings.use_lock:
            return NoLock()
        return SoftReadWriteLock(
            str(self.guarded_path),
            timeout=ACQUIRE_TIMEOUT_S,
            heartbeat_interval=settings.beat,
            stale_threshold=settings.lease,
            poll_interval=0.05,
        )

    @property
    def _settings_path(self) -> Path:
        return self.directory / "settings.json"


@contextmanager
def logged_hold(lock: GuardsData, mode: Mode, log: EventLog, purpose: str) -> Iterator[int | None]:
    """Hold the lock in this mode, write down when, and give its generation.

    The stamps are taken inside the hold, so the log never claims more than the lock granted. A hold that ends by an
    error is logged as released too: the `with` statement of the lock gives it back all the same.
    """
    asked = log.write(Kind.ASKS, mode=mode, purpose=purpose)
    with lock.write_lock() if mode == "write" else lock.read_lock():
        waited = time.monotonic() - asked.time
        generation = lock.generation
        log.write(Kind.HOLDS, mode=mode, purpose=purpose, generation=generation, waited=waited)
        try:
            yield generation
        finally:
            log.write(Kind.RELEASES, mode=mode, purpose=purpose)
