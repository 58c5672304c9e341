"""One of the three jobs: build the index if there is none, then align a share of the reads, batch after batch.

Run by the conductor as a program of its own: `python worker.py STAGE JOB ATTEMPT`. A job that was killed is started
again and goes on with the batches that have no result yet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mappy

from events import EventLog, Kind
from stage import GuardsData, Settings, Stage, logged_hold
from store import Placement, Store, StoreError

FIRST_VERSION = 1


@dataclass(frozen=True)
class Batch:
    number: int
    reads: list[tuple[str, str]]
    """Name and sequence."""


@dataclass(frozen=True)
class Result:
    """What a job found out about one batch, and which data it had before it."""

    job: str
    batch: int
    generation: int | None
    reference_version: int | None = None
    index_version: int | None = None
    placements: list[Placement] = field(default_factory=list)
    problem: str | None = None

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Result:
        return cls(**{**record, "placements": [Placement(**placement) for placement in record["placements"]]})


def main(stage: Stage, job: str, attempt: int) -> None:
    log = stage.log(job, attempt)
    log.write(Kind.STARTED, pid=os.getpid(), attempt=attempt)
    settings = stage.settings()
    lock = stage.lock()
    ensure_index(stage, job, lock, log, settings)
    for batch in batches(stage.reads_path(job), settings.reads_per_batch):
        if not stage.result_path(job, batch.number).exists():
            align_under_lock(batch, job, stage, lock, log, settings)
            time.sleep(settings.gap_pause)
    log.write(Kind.FINISHED)


def ensure_index(stage: Stage, job: str, lock: GuardsData, log: EventLog, settings: Settings) -> None:
    """Build the index unless somebody has, or does so while this job waits.

    A shared hold does not turn into an exclusive one: it is given back first. Another job may be quicker in between,
    so the question is asked again under the exclusive lock.
    """
    store = stage.store
    with logged_hold(lock, "read", log, "look for index"):
        found = store.has_index()
    if found:
        return
    stage.wait_until_all_have_looked(job)  # all three are to want the exclusive lock
    time.sleep(settings.build_pause)
    with logged_hold(lock, "write", log, "build index"):
        if not store.has_index():
            time.sleep(settings.build_pause)
            store.build_index()
            log.write(Kind.BUILT, version=FIRST_VERSION)
            time.sleep(settings.build_pause)


def batches(path: Path, size: int) -> Iterator[Batch]:
    reads = [(name, sequence) for name, sequence, _ in mappy.fastx_read(str(path))]
    for number, first in enumerate(range(0, len(reads), size)):
        yield Batch(number, reads[first : first + size])


def align_under_lock(batch: Batch, job: str, stage: Stage, lock: GuardsData, log: EventLog, settings: Settings) -> None:
    with logged_hold(lock, "read", log, "align") as generation:
        try:
            result = align(batch, job, generation, stage.store, settings)
        except StoreError as error:
            result = Result(job, batch.number, generation, problem=str(error))
            log.write(Kind.FAILED, batch=batch.number, problem=str(error))
        lock.check()
        publish(result, stage.result_path(job, batch.number))
        log.write(Kind.ALIGNED, batch=batch.number, reads=len(result.placements), version=result.reference_version)


def align(batch: Batch, job: str, generation: int | None, store: Store, settings: Settings) -> Result:
    """Read the reference, later the index, and place each read. Only a lock makes the two belong together."""
    reference = store.read_reference()
    time.sleep(settings.hold_pause / 2)
    index = store.load_index()
    placed = [index.place(name, sequence) for name, sequence in batch.reads]
    time.sleep(settings.hold_pause / 2)
    placements = [placement for placement in placed if placement is not None]
    return Result(job, batch.number, generation, reference.version, index.version, placements)


def publish(result: Result, path: Path) -> None:
    """Write the result so that it is there in full or not at all, whenever the job may be killed."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(result)))
    unfinished.replace(path)


if __name__ == "__main__":
    main(Stage(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
