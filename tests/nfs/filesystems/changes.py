"""
Runs on a client: makes changes in a directory, and prints each one once it is acknowledged, until one fails.

``python changes.py DIRECTORY NAME`` where NAME begins all names that it makes. What comes after which change is fixed,
so whoever reads the lines knows the only one that may have been made and not been heard of: :func:`changes`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from nfsrwlock_core.system.directory import LockDirectory

#: So many of its directories are there at once.
_KEPT = 20


def changes(name: str) -> Iterator[tuple[str, ...]]:
    """Yield what is done, one call after the other: what a lock does, as a method of :class:`LockDirectory`."""
    for number in itertools.count():
        yield "mkdir", f"{name}.{number}"
        yield "create", f"{name}.{number}/beat.0"
        yield "rename", f"{name}.{number}/beat.0", f"{name}.{number}/beat.1"
        if number >= _KEPT:
            yield "unlink", f"{name}.{number - _KEPT}/beat.1"
            yield "rmdir", f"{name}.{number - _KEPT}"


def states(name: str, acknowledged: int) -> tuple[dict[str, bool], set[str]]:
    """
    Return which names must be there after so many changes, or must not, and those that the next one is about.

    The latter may be there or not.
    """
    there: dict[str, bool] = {}
    made = changes(name)
    for call, *names in itertools.islice(made, acknowledged):
        there[names[0]] = call in ("mkdir", "create")
        there |= dict.fromkeys(names[1:], True)
    return there, set(next(made)[1:])


def main() -> None:
    directory, name = sys.argv[1:]
    files = LockDirectory(directory)
    files.open()
    for call, *names in changes(name):
        getattr(files, call)(*names, *([b"{}"] if call == "create" else []))
        print(flush=True)


if __name__ == "__main__":
    main()
