"""Tasks and helpers for the tests of the Dask adapter; in a module of their own, so that workers can import them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nfsrwlock import inspect

#: How long a test waits for what should take no time.
PATIENCE_S = 30.0


def run_program(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, to its end; ``path`` is its argument."""
    return subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=PATIENCE_S * 2
    )


def wait_until(condition: Any, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_held(path: str | Path) -> bool:
    return bool(inspect(path).holders)


def count_waiters(path: str | Path) -> int:
    return len(inspect(path).waiters)


def is_complete(scheduler_file: Path) -> bool:
    """Whether a scheduler has written its file: that takes a moment, and a client waits for the end of it for 0.1 s."""
    try:
        return bool(json.loads(scheduler_file.read_text()))
    except (OSError, ValueError):
        return False


def pid_of_holder(path: str | Path) -> int:
    """Wait until ``path`` is held; return the holder's process id."""
    wait_until(lambda: is_held(path))
    pid = inspect(path).holders[0].pid
    assert pid is not None
    return pid


def cancel(client: Any, task: Any) -> None:
    """Cancel a task and wait until the scheduler knows: else another worker may be given it when this one dies."""
    task.cancel()
    wait_until(lambda: not client.run_on_scheduler(_knows, key=task.key))


def _knows(dask_scheduler: Any, key: str) -> bool:
    return key in dask_scheduler.tasks


def overlap(path: str, mark: str, seconds: float, until: str | None = None) -> bool:
    """
    Stay alone in ``path`` for some time, and until the file ``until`` exists; return whether somebody else was there.
    """
    inside = Path(f"{path}.inside.{mark}")
    inside.touch()
    try:
        time.sleep(seconds)
        wait_until(lambda: until is None or os.path.exists(until), 60)
        others = [p for p in inside.parent.glob(f"{Path(path).name}.inside.*") if p != inside]
        return bool(others)
    finally:
        inside.unlink()


def work_alone(lock: Any, path: str, mark: str, seconds: float = 0.02) -> bool:
    with lock:
        return overlap(path, mark, seconds)


async def work_alone_async(lock: Any, path: str, mark: str, seconds: float = 0.02) -> bool:
    async with lock:
        return await asyncio.to_thread(overlap, path, mark, seconds)


def use_together(lock: Any, directory: str, mark: str, company: int = 1) -> int:
    """Hold ``lock`` until so many have been inside at a time; return how many were there at the end."""
    together = Path(directory, "together")
    with lock:
        inside = Path(directory, f"inside.{mark}")
        inside.touch()
        wait_until(lambda: together.exists() or len(list(inside.parent.glob("inside.*"))) >= company, 60)
        together.touch()
        count = len(list(inside.parent.glob("inside.*")))
        inside.unlink()
    return count


class LockUser:
    """An actor whose methods take a lock."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def work(self, path: str, mark: str) -> bool:
        return work_alone(self.lock, path, mark)

    async def work_async(self, path: str, mark: str) -> bool:
        return await work_alone_async(self.lock, path, mark)


async def work_alone_within(lock: Any, path: str, mark: str, seconds: float) -> bool:
    await asyncio.wait_for(lock.acquire(), PATIENCE_S * 2)  # until Python 3.12 in an asyncio task of its own
    try:
        return await asyncio.to_thread(overlap, path, mark, seconds)
    finally:
        await asyncio.gather(lock.release())


def hold_until(lock: Any, go: str, note: str | None = None) -> int:
    """Hold ``lock`` until the file ``go`` exists; write this process's id to ``note`` once it is held."""
    with lock:
        if note is not None:
            with open(note, "a") as file:
                file.write(f"{os.getpid()}\n")
        wait_until(lambda: os.path.exists(go), 60)
    return os.getpid()


def hold_after(first: Any, lock: Any, go: str) -> int:
    """Hold and release ``first``, then do as :func:`hold_until`."""
    with first:
        pass
    return hold_until(lock, go)


def take_each(locks: list[Any]) -> None:
    for lock in locks:
        with lock:
            pass


def lease_of_lock_made_here(lock: Any) -> tuple[str, float]:
    """Take ``lock``, or one of that name that is made here; return its path and its lease in seconds."""
    from nfsrwlock.dask import Lock

    with Lock(lock) if isinstance(lock, str) else lock as held:
        return held.path, inspect(held.path).holders[0].lease


async def hold_until_async(lock: Any, go: str, note: str) -> int:
    async with lock:
        return await asyncio.to_thread(hold_until, contextlib.nullcontext(), go, note)


def hold_first_time(lock: Any, note: str) -> str:
    """Hold ``lock`` for ever the first time; the second time say how long it took to get it."""
    started = time.time()
    with lock, open(note, "a") as file:
        file.write(f"{os.getpid()} {started} {time.time()}\n")
        file.flush()
        if len(Path(note).read_text().splitlines()) == 1:
            time.sleep(60)
    return Path(note).read_text()


def die_first_time(lock: Any, note: str) -> list[float]:
    """Let this process be killed while it holds ``lock``; the second time return when that was, and when it is held."""
    import signal

    with lock, open(note, "a") as file:
        file.write(f"{time.time()}\n")
        file.flush()
        times = [float(line) for line in Path(note).read_text().splitlines()]
        if len(times) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return times


def hold_with_subtasks(lock: Any, count: int, go: str) -> int:
    """Hold ``lock``; once the file ``go`` exists, let tasks of our own run on this very worker, and end with them."""
    from distributed import worker_client

    with lock, worker_client(separate_thread=False) as client:
        wait_until(lambda: os.path.exists(go), 60)
        futures = client.map(_slow, range(count), pure=False, workers=_here())
        return sum(client.gather(futures))


def _slow(number: int) -> int:
    time.sleep(0.05)
    return number


def _here() -> str:
    from distributed import get_worker

    return get_worker().address


def count_threads() -> int:
    import threading

    return threading.active_count()


def hold_the_gil(fifo: str) -> None:
    """Let no other thread run until somebody writes to ``fifo``: one call of C code."""
    import ctypes

    with open(fifo, "rb", buffering=0) as file:
        # PyDLL does not release the GIL around the call.
        assert ctypes.PyDLL(None).read(file.fileno(), ctypes.create_string_buffer(1), 1) == 1


def hold_gil_then_check(lock: Any, fifo: str, note: str) -> str:
    from nfsrwlock import LockLostError

    said = ""
    try:
        with lock as held:
            Path(note).write_text(str(os.getpid()))
            hold_the_gil(fifo)
            try:
                held.check()
            except LockLostError as error:
                said = type(error).__name__
    except LockLostError:  # leaving the block says it, too
        return said or "lost at the end"
    return said or "held"


def add_one(path: str, lock: Any) -> None:
    """Read, modify, write one number of a NetCDF file with xarray."""
    import xarray as xr

    with lock:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            changed = dataset.load() + 1
        changed.to_netcdf(path, engine="h5netcdf")


def read_both(path: str, lock: Any) -> bool:
    """Whether a reader sees both variables with one value."""
    import xarray as xr
    from xarray.backends.locks import HDF5_LOCK

    from nfsrwlock.dask import combine

    with lock, xr.open_dataset(path, engine="h5netcdf", lock=combine(HDF5_LOCK, lock)) as dataset:
        return int(dataset["a"][0]) == int(dataset["b"][0])


def cost(path: str, heartbeat: Any) -> dict[str, float]:
    """Milliseconds that lock and unlock take here: the median for each kind of lock, which take turns."""
    from statistics import median

    import distributed

    from nfsrwlock import SoftReadWriteLock
    from nfsrwlock.dask import Lock

    locks = {
        "ours": Lock(f"{path}.ours", heartbeat=heartbeat),
        "core": SoftReadWriteLock(f"{path}.core", heartbeat=heartbeat or "process").write_lock,
        "distributed": distributed.Lock(path),
    }
    taken: dict[str, list[float]] = {name: [] for name in locks}
    for _ in range(40):
        for name, lock in locks.items():
            for _ in range(5):
                started = time.perf_counter()
                with lock() if name == "core" else lock:
                    pass
                taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: median(of_one) for name, of_one in taken.items()}
