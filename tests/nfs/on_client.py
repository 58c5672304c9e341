"""What processes on the lab's clients run; imported there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from nfsrwlock import HoldStatus, HoldWitness, LockError, SoftReadWriteLock, Timeout, prune
from nfsrwlock.freshness import look_afresh
from nfsrwlock_core.inspection import list_lock
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import requests_of


def cost(mountpoint: str, work: Callable[[], object], rounds: int) -> dict[str, float]:
    """How many requests of each kind one round of ``work`` costs on average, once it is warm."""
    work()
    before = requests_of(mountpoint)
    for _ in range(rounds):
        work()
    after = requests_of(mountpoint)
    assert before is not None, f"no NFS mount at {mountpoint}"
    assert after is not None
    used = {kind: (count - before.get(kind, 0)) / rounds for kind, count in after.items()}
    return {kind: count for kind, count in used.items() if count}


def lines_of(path: str) -> list[int]:
    """
    The numbers in the file, opened afresh.

    NFS promises that whoever opens a file after another client closed it reads what that client wrote. The file only
    grows, so a client cannot take two versions within one tick of the server's clock for the same.
    """
    with open(path, encoding="ascii") as file:
        return [int(line) for line in file]


def is_seen(path: str) -> bool:
    """Whether something is there after the look that the adapters take at what a lock guards."""
    look_afresh([path])
    return os.path.exists(path)


def is_locked_in(path: str, seconds: float = 5) -> bool:
    """Whether the lock on a file could be had, exclusively, within so many seconds."""
    try:
        with SoftReadWriteLock(path, is_singleton=False, timeout=seconds).write_lock():
            return True
    except Timeout:
        return False


def come_and_go(path: str, seconds: float, timeout: float, numbered: bool = False) -> int:
    """
    Take a lock whose directory is removed all the time again and again, by a new object; return how often it was had.

    The data file counts the writes, so the sum of all processes' counts shows whether one was lost.

    :param numbered: whether others remove it by :func:`prune_it`, or whoever leaves last
    """
    writes, until = 0, time.monotonic() + seconds
    while time.monotonic() < until or not writes:
        lock = SoftReadWriteLock(path, is_singleton=False, numbered=numbered, poll_interval=0.02, timeout=timeout)
        with lock.write_lock():
            with open(path, "a", encoding="ascii") as file:
                file.write("1\n")
            writes += 1
            assert lock.generation == list_lock(lock.lock_path).highest_generation
        with lock.read_lock():
            pass
        if numbered:
            time.sleep(2 * random.random())  # or it is seldom free
    return writes


def prune_it(path: str, seconds: float) -> int:
    """Prune the lock again and again; return how often its directory was removed."""
    removed, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        is_there = os.path.exists(f"{path}.rwlock")
        removed += prune(path, unused_s=0) is None and is_there
        time.sleep(0.01)
    return removed


def storm(path: str, settings: dict[str, Any], seconds: float, seed: int) -> list[dict[str, Any]]:
    """
    Read and write the file under its lock, at random, for a while; return each hold with what was seen in it.

    A writer appends the number of its grant to what it has just read. On a machine that has other things to do it goes
    on, up to four times as long, until it has done each three times.
    """
    chance = random.Random(seed)
    lock = SoftReadWriteLock(path, **settings)
    holds: list[dict[str, Any]] = []
    began = time.monotonic()

    def has_enough() -> bool:
        return all(sum(hold["mode"] == mode for hold in holds) >= 3 for mode in ("read", "write"))

    while (lasted := time.monotonic() - began) < seconds or (lasted < 4 * seconds and not has_enough()):
        mode = "write" if chance.random() < 0.3 else "read"
        with lock.write_lock() if mode == "write" else lock.read_lock():
            granted = time.time()
            seen = lines_of(path)
            generation = lock.generation
            time.sleep(chance.random() * 0.02)
            if mode == "write":
                with open(path, "r+", encoding="ascii") as file:
                    file.write("".join(f"{number}\n" for number in [*seen, generation]))
                    file.flush()
                    os.fsync(file.fileno())
            last = lines_of(path)
            lock.check()
            released = time.time()
        holds.append(
            {
                "mode": mode,
                "granted": granted,
                "released": released,
                "generation": generation,
                "seen": seen[-1] if seen else 0,
                "count": len(seen),
                "count_at_the_end": len(last),
            }
        )
        time.sleep(chance.random() * 0.01)
    return holds


def statuses_until(lock: SoftReadWriteLock, final: str, seconds: float) -> list[list[Any]]:
    """What the hold says of itself, each time it changes, with when it said so; until it says ``final``."""
    changes: list[list[Any]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = lock.status
        if not changes or changes[-1][0] != status.value:
            changes.append([status.value, time.time()])
        if status is HoldStatus(final):
            break
        time.sleep(0.02)
    return changes


def check_of(lock: SoftReadWriteLock) -> str:
    """The name of what ``check`` raises; "" if it passes."""
    try:
        lock.check()
    except LockError as error:
        return type(error).__name__
    return ""


def checks(made: list[str], seconds: float, *, anew: bool) -> list[list[Any]]:
    """
    When a child checked its parent's hold, ten times a second, and the name of what that raised.

    :param anew: each time as a child that has never looked before
    """
    witness = HoldWitness(*made)
    seen: list[list[Any]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        failure = ""
        try:
            (HoldWitness(*made) if anew else witness).check()
        except LockError as error:
            failure = type(error).__name__
        seen.append([time.time(), failure])
        time.sleep(0.1)
    return seen


def churn(directory: str, who: str, seconds: float) -> dict[str, Any]:
    """
    Make a name, list, and remove the one before it, for a while; count listings without what was there all along.

    So the directory changes while others list it. ``stay.*`` were made before; nobody removes them.
    """
    files = LockDirectory(directory)
    files.open()
    stays = {name for name in files.listdir() if name.startswith("stay.")}
    assert stays
    rounds, missed, before = 0, [], ""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = f"{who}.{rounds}"
        files.mkdir(name)
        seen = set(files.listdir())
        if gone := {*stays, name, *([before] if before else [])} - seen:
            missed.append(f"{sorted(gone)} not in {sorted(seen)}")
        if before:
            files.rmdir(before)
        rounds, before = rounds + 1, name
    return {"rounds": rounds, "missed": len(missed), "examples": missed[:3]}
