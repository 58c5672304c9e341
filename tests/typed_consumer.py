"""
What type checkers make of the public names. `make lint` has mypy check this file, and a test of `make test-newest` has
Pyright check it against the installed package; nothing runs it.

Unused ignores are errors, so each `type: ignore` states that the line is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from nfsrwlock import (
    AsyncSoftReadWriteLock,
    AsyncSoftSemaphore,
    Fetched,
    FileLock,
    LockSet,
    SharedDirectory,
    SoftReadWriteLock,
    SoftSemaphore,
    fetch,
    shared_directory,
)
from nfsrwlock_core import AcquireReturnProxy, AsyncAcquireReturnProxy, HoldStatus


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


def build(target: Path) -> None:
    """What `fetch` is given."""
    target.touch()


def use_forms() -> None:
    """Use what an acquire returns, and the ready-made forms."""
    lock = SoftReadWriteLock("x", timeout=1, share="group", heartbeat="process")
    with lock.read_lock(timeout=1) as held:
        assert_type(held, None)
    assert_type(lock.acquire_write(timeout=1, blocking=False), AcquireReturnProxy)
    assert_type(lock.status, HoldStatus)
    assert_type(lock.generation, int | None)
    with fetch("x", build, timeout=1) as fetched:
        assert_type(fetched, Fetched)
        assert_type(fetched.path, Path)
    with shared_directory("x") as directory:
        assert_type(directory, Path)
    assert_type(shared_directory("x"), SharedDirectory)
    with FileLock("x", timeout=1) as same:
        assert_type(same, FileLock)
    with SoftSemaphore("x", 4).acquire(timeout=1):
        pass
    fetch("x", build, tiemout=1)  # type: ignore[call-arg]
    fetch("x", len)  # type: ignore[arg-type]
    SoftSemaphore("x", "four")  # type: ignore[arg-type]
    lock.acquire_write(until=1)  # type: ignore[arg-type]


async def use_async() -> None:
    """Use the asynchronous forms."""
    lock = AsyncSoftReadWriteLock("x")
    async with lock.write_lock(timeout=1):
        lock.check()
    assert_type(await lock.acquire_read(), AsyncAcquireReturnProxy)
    assert_type(await AsyncSoftSemaphore("x", 4).acquire(), AsyncAcquireReturnProxy)
    with lock.write_lock():  # type: ignore[attr-defined]
        pass
