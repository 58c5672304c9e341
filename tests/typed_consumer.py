"""
What type checkers make of the public classes. `make lint` has mypy check this file; nothing runs it.

Unused ignores are errors, so each `type: ignore` states that the line is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from nfsrwlock import AsyncSoftReadWriteLock, LockSet, SoftReadWriteLock


class Special(SoftReadWriteLock):
    """A subclass with a keyword argument of its own."""

    def __init__(self, lock_file: str, *, label: str) -> None:
        super().__init__(lock_file)
        self.label = label


def use() -> None:
    """Use each class as a program does."""
    assert_type(SoftReadWriteLock("x"), SoftReadWriteLock)
    assert_type(SoftReadWriteLock.get_lock("x"), SoftReadWriteLock)
    assert_type(SoftReadWriteLock(b"x", 1, lock_dir=Path("/locks")), SoftReadWriteLock)
    assert_type(AsyncSoftReadWriteLock(b"x"), AsyncSoftReadWriteLock)
    assert_type(Special("x", label="y"), Special)
    assert_type(LockSet(read=[b"x", Path("y")], write="z", timeout=1, share="group"), LockSet)
    SoftReadWriteLock("x", tiemout=1)  # type: ignore[call-arg]
    Special("x")  # type: ignore[call-arg]
    LockSet("x", tiemout=1)  # type: ignore[call-arg]
    SoftReadWriteLock("x", share="world")  # type: ignore[arg-type]
    with SoftReadWriteLock("x"):  # type: ignore[attr-defined]
        pass
