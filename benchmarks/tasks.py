"""What the processes on the machines do; each of them has one contender at a time. All times are seconds."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.contenders import KINDS, Contender, Options

_here: dict[str, Any] = {}


def _contender() -> Contender:
    contender: Contender = _here["contender"]
    return contender


def make(contender: str, path: str, options: dict[str, float]) -> int:
    """Become a process that has this contender; return the process's id."""
    _here["contender"] = KINDS[contender].make(path, Options(**options))
    return os.getpid()


def make_directory(path: str) -> None:
    """Make a directory, parents included."""
    os.makedirs(path, exist_ok=True)


def cycles(count: int) -> list[float]:
    """Acquire and release so many times; return how long each took."""
    contender = _contender()
    acquire, release, clock = contender.acquire, contender.release, time.perf_counter
    times = []
    for _ in range(count):
        began = clock()
        acquire()
        release()
        times.append(clock() - began)
    return times


def acquire(at: float | None = None, keep: bool = True) -> float:
    """Acquire at a moment of the wall clock, or now; return the moment of the grant. Release again unless ``keep``."""
    if at is not None:
        time.sleep(max(at - time.time(), 0))
    _contender().acquire()
    granted = time.time()
    if not keep:
        _contender().release()
    return granted


def release() -> float:
    """Release; return the moment when that began."""
    began = time.time()
    _contender().release()
    return began


def warm_up(contender: str) -> None:
    """Take and release such a lock on this machine's own disk, so that this process has run all that code once."""
    with tempfile.TemporaryDirectory() as directory:
        make(contender, f"{directory}/data", {})
        cycles(1)


def wait() -> None:
    """Begin to acquire, in the background."""

    def acquire() -> None:
        try:
            _contender().wait()
        except Exception as error:
            _here["trouble"] = error
            raise
        _here["trouble"] = RuntimeError("the wait has ended")

    threading.Thread(target=acquire, daemon=True).start()


def polls() -> int | None:
    """
    How often the wait has looked in vain so far.

    :raises Exception: what has ended the wait
    """
    if "trouble" in _here:
        raise _here["trouble"]
    return _contender().polls


def start(arguments: list[str]) -> float:
    """Start this interpreter with these arguments; return how long it took to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def small_results(store: str, directory: str, count: int) -> dict[str, float]:
    """Compute so many results of joblib's in a store, load them, and remove half and then the others; by result."""
    import joblib

    import nfsrwlock.joblib

    memory = (joblib if store == "joblib" else nfsrwlock.joblib).Memory(directory, verbose=0)
    cached = memory.cache(_half)

    def all_in_turns() -> None:
        for number in range(count):
            cached(number)

    deeds = {
        "miss": (all_in_turns, count),
        "hit": (all_in_turns, count),
        "reduce_size": (lambda: memory.reduce_size(items_limit=count // 2), count - count // 2),
        "clear": (lambda: memory.clear(warn=False), count // 2),
    }
    times = {}
    for name, (deed, results) in deeds.items():
        began = time.perf_counter()
        deed()
        times[name] = (time.perf_counter() - began) / results
    return times


def _half(number: int) -> float:
    return number / 2


def come_and_go(until: float, hold: float, pause: float) -> int:
    """Acquire, hold, release and pause, until a moment of the wall clock; return how often. The means are given."""
    chance = random.Random()
    rounds = 0
    time.sleep(chance.uniform(0, pause))
    while time.time() < until:
        _contender().acquire()
        time.sleep(hold * chance.uniform(0.5, 1.5))
        _contender().release()
        rounds += 1
        time.sleep(pause * chance.uniform(0.5, 1.5))
    return rounds


@dataclass
class Contestant:
    """What a thread does that wants the lock again and again: the moments when it asked, and when it was granted."""

    contender: Contender
    hold: float
    asked: list[float] = field(default_factory=list)
    granted: list[float] = field(default_factory=list)
    error: str | None = None

    def run(self, begin: float, until: float) -> None:
        """Begin at a moment of the wall clock; do not ask any more after another."""
        time.sleep(max(begin - time.time(), 0))
        try:
            while (now := time.time()) < until:
                self.asked.append(now)
                self.contender.acquire()
                self.granted.append(time.time())
                time.sleep(self.hold)
                self.contender.release()
        except Exception as error:
            self.error = told(error)
            raise

    def found(self, since: float, until: float) -> dict[str, Any]:
        """How long the waits for the grants between these moments were, and what lasted then; the error, if any."""
        granted = [*self.granted]  # before those who asked: it may still wait, or be granted at this moment
        waits, waiting = [], 0.0
        for begun, ended in zip_longest(self.asked, granted, fillvalue=math.inf):
            if since <= ended < until:
                waits.append(ended - begun)
            elif ended >= until and self.error is None:
                waiting = until - begun
        return {"waits": waits, "waiting": waiting, "error": self.error}


def contend(
    contender: str, path: str, threads: int, hold: float, begin: float, since: float, until: float
) -> list[dict[str, Any]]:
    """
    Acquire, hold and release without a pause, in so many threads, each by a lock object of its own.

    They begin at a moment of the wall clock and go on until another; what is granted from ``since`` on counts. Who
    waits at the end is left waiting.

    :returns: of each thread, how long the waits for its grants were, how long it has waited at the end, and its error
    """
    contestants = [Contestant(KINDS[contender].make(path, Options()), hold) for _ in range(threads)]
    for one in contestants:
        threading.Thread(target=one.run, args=(begin, until), daemon=True).start()
    time.sleep(max(until - time.time(), 0))
    return [one.found(since, until) for one in contestants]


def hold_many(contender: str, path: str, count: int, really: bool) -> None:
    """Hold the lock so many times over, each by a lock object of its own; or leave what others find of that."""
    held = _here.setdefault("held", [])
    for _ in range(count):
        one = KINDS[contender].make(path, Options())
        if really:
            one.acquire()
        else:
            one.announce()
        held.append(one)


def told(error: Exception) -> str:
    """An error in words, without the path that an OSError names: it says nothing to others."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {said}"


def requests(mountpoint: str | None) -> dict[str, int]:
    """How many requests of each kind this kernel has sent for a mount, by its own count; none for a local place."""
    if mountpoint is None:
        return {}
    text = Path("/proc/self/mountstats").read_text()
    section = text.split(f" mounted on {mountpoint} ", 1)[1].split("\ndevice ", 1)[0]
    per_operation = section.split("per-op statistics", 1)[1]
    return {kind: int(count) for kind, count in re.findall(r"^\s+([A-Z_0-9]+): (\d+)", per_operation, re.MULTILINE)}


def file_system(path: str) -> str:
    """The type of the file system that a path is on."""
    best = ("", "?")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, kind, *_ = line.split()
        if os.path.commonpath([at, path]) == at:
            best = max(best, (at, kind), key=lambda found: len(found[0]))
    return best[1]


def round_trip(path: str) -> float:
    """The least time of a hundred looks at a directory that this process has just changed, opened afresh."""
    times = []
    for _ in range(100):
        began = time.perf_counter()
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        times.append(time.perf_counter() - began)
    return min(times)
