"""The process that publishes new versions: rewrites reference and index under the exclusive lock.

Run by the conductor as a program of its own: `python updater.py STAGE`. Each line on its standard input asks for one
more version; the end of the input ends it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from events import EventLog, Kind
from genome import ROTATION, rotate
from stage import GuardsData, Settings, Stage, logged_hold
from store import Reference, Store

UPDATER = "updater"


def main(stage: Stage) -> None:
    log = stage.log(UPDATER, 1)
    log.write(Kind.STARTED, pid=os.getpid(), attempt=1)
    lock, settings = stage.lock(), stage.settings()
    for _ in sys.stdin:
        publish_next_version(stage.store, lock, log, settings)
    log.write(Kind.FINISHED)


def publish_next_version(store: Store, lock: GuardsData, log: EventLog, settings: Settings) -> None:
    """Rotate the genome once more, in place: half the reference, the other half, then the index.

    Between the steps the two files do not fit together. That is the state that no reader may see.
    """

    def pause() -> None:
        time.sleep(settings.build_pause)
        lock.check()

    with logged_hold(lock, "write", log, "new version"):
        current = store.read_reference()
        successor = Reference(current.version + 1, rotate(current.sequence, ROTATION))
        store.write_reference(successor, pause)
        pause()
        store.build_index()
        log.write(Kind.BUILT, version=successor.version)


if __name__ == "__main__":
    main(Stage(Path(sys.argv[1])))
