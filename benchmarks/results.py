"""One run as a document: what was measured, with what, on what, when, by which command."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.measurements import Record

Document = dict[str, Any]

_PACKAGES: Final = ("nfsrwlock", "filelock", "flufl.lock")
SCHEMA: Final = 1


def new_document() -> Document:
    """A document without records, with what is known of versions and of this machine. No names, no paths."""
    return {
        "schema": SCHEMA,
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES if _is_installed(package)},
        },
        "machine": {
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "processor": _from_file("/proc/cpuinfo", "model name"),
            "memory": _from_file("/proc/meminfo", "MemTotal"),
            "system": f"{platform.system()} {platform.release()}",
        },
        "pieces": [],
        "places": {},
        "records": [],
    }


def load(path: Path) -> Document:
    """
    Read a document.

    :raises ValueError: if it is none, or of another version
    """
    document: Document = json.loads(path.read_text())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no results file of this version of the benchmarks")
    return document


def save(document: Document, path: Path) -> None:
    """Write a document, one record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in document.items() if key != "records"}
    lines = ",\n".join("    " + json.dumps(record) for record in document["records"])
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "records": [\n{lines}\n  ]\n}}\n'
    path.write_text(text)


def add_all(document: Document, new: list[Record]) -> None:
    """Add the records of a measurement at a place, instead of those that are there."""
    what = {(record["measurement"], record["place"]) for record in new}
    kept = [record for record in document["records"] if (record["measurement"], record["place"]) not in what]
    document["records"] = kept + new


def now() -> str:
    """The time as documents have it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def find(document: Document, measurement: str, place: str | None = None, **values: Any) -> Iterator[Record]:
    """The records of a measurement that have all these values."""
    for record in document["records"]:
        wanted = {"measurement": measurement, **({} if place is None else {"place": place}), **values}
        if all(record.get(name) == value for name, value in wanted.items()):
            yield record


def first(document: Document, measurement: str, place: str, contender: str, **values: Any) -> Record | None:
    """The only such record, if there is one."""
    return next(find(document, measurement, place, contender=contender, **values), None)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _from_file(path: str, key: str, read: Callable[[str], str] = lambda path: Path(path).read_text()) -> str:
    try:
        lines = read(path).splitlines()
    except OSError:
        return "?"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "?")
