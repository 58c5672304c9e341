"""Work for children of a guard, importable by them; without joblib, so that a test can see what they import."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from nfsrwlock import LockError
from nfsrwlock.joblib import Guard, guard, locked


def check(i: int, held: Guard) -> int:
    held.check()
    return i


def attempt(mode: str, path: str) -> str:
    """Ask for a path as a child; what came of it."""
    started = time.monotonic()
    try:
        with guard(**{mode: path}, timeout=20):  # type: ignore[arg-type]
            assert time.monotonic() - started < 10, "at once"
            return "held"
    except LockError as error:
        assert time.monotonic() - started < 10, "at once"
        return type(error).__name__


def fail(held: Guard) -> None:
    held.check()
    raise ArithmeticError("a child's")


def checks_until_it_fails(held: Guard, log: str) -> None:
    """As a child that outlives its parent: notes the process, then each check that passed, then why one failed."""
    with open(log, "a", buffering=1) as file:
        file.write(f"pid {os.getpid()}\n")
        while True:
            try:
                held.check()
            except LockError as error:
                file.write(f"{type(error).__name__} {time.time()}\n")
                return
            file.write(f"passed {time.time()}\n")
            time.sleep(0.1)


@locked(read=lambda here: f"{here}/ref", write=lambda i, here: f"{here}/out-{i}", timeout=60)
def add_one(i: int, pause: float = 0.0, here: str = ".") -> int:
    """Read, wait, write: without the lock, calls at the same time lose each other's changes."""
    path = Path(here, f"out-{i}")
    before = int(path.read_text()) if path.exists() else 0
    time.sleep(pause)
    path.write_text(str(before + 1))
    return before + 1


@locked(limited=lambda here, permits=2: {f"{here}/licence": permits}, timeout=60)
def use_licence(here: str, permits: int = 2, company: int = 1) -> int:
    """Return how many use it at a time, oneself included; goes on once so many have been there together."""
    mine, together = Path(here, f"inside.{os.getpid()}.{threading.get_ident()}"), Path(here, "together")
    mine.touch()
    inside = 0
    while inside < company and not together.exists():
        time.sleep(0.02)
        inside = len(list(Path(here).glob("inside.*")))
    together.touch()
    inside = len(list(Path(here).glob("inside.*")))
    mine.unlink()
    return inside


def use_licence_or_say(here: str, permits: int) -> int | str:
    """The same, or the kind of the error."""
    try:
        return use_licence(here, permits)
    except LockError as error:
        return type(error).__name__


class Counter:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    @locked(write=lambda self, name="counter": [f"{self.directory}/{name}", f"{self.directory}/other"])
    def add(self, name: str = "counter", **more: Any) -> list[str]:
        return sorted(path.name for path in Path(self.directory).glob("*.rwlock") if len(os.listdir(path)) > 1)
