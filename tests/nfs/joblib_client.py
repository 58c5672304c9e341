"""What processes on the lab's clients do with a cache of joblib's; imported there."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import joblib
import numpy as np

from nfs.on_client import cost
from nfsrwlock.joblib import Memory

_computed: list[int] = []
_computed_arrays: list[int] = []


def square(x: int) -> int:
    _computed.append(x)
    return x * x


def megabyte(x: int) -> Any:
    _computed_arrays.append(x)
    return np.full(2**17, x, dtype=np.float64)


def call_all(location: str, keys: int, seed: int) -> list[int]:
    """Call a cached function for each key, in an order of this client's own; return the keys it computed itself."""
    cached = Memory(location, verbose=0, poll_interval=0.1).cache(square)
    order = list(range(keys))
    random.Random(seed).shuffle(order)
    for x in order:
        assert cached(x) == x * x
    return list(_computed)


def caches(location: str) -> list[Any]:
    """The same function cached by plain joblib, by ours, and by ours with a lock for each hit."""
    memories = (
        joblib.Memory(f"{location}-joblib", verbose=0),
        Memory(f"{location}-ours", verbose=0),
        Memory(f"{location}-ours", verbose=0, linger=0),
    )
    return [memory.cache(megabyte) for memory in memories]


def fill(location: str, keys: int) -> None:
    """Compute and store arrays of 1 MiB in both caches."""
    for cached in caches(location)[:2]:
        for x in range(keys):
            cached(x)


def milliseconds_per_hit(location: str, keys: list[int]) -> list[float]:
    """The median times of a hit on a stored array of 1 MiB by each of :func:`caches`, in turns."""
    functions = caches(location)
    times: list[list[float]] = [[] for _ in functions]
    for x in keys:
        for cached, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            array = cached(x)
            taken.append(time.perf_counter() - started)
            assert array[0] == x
    assert not _computed_arrays
    return [1000 * statistics.median(taken) for taken in times]


def requests_per_hit(location: str, mountpoint: str, rounds: int) -> list[dict[str, float]]:
    """What a hit asks of the file server once all is in this client's cache, by its kernel's count."""
    return [cost(mountpoint, partial(cached, 1), rounds) for cached in caches(location)]


def _squares(location: str) -> list[Any]:
    memories = joblib.Memory(f"{location}-joblib", verbose=0), Memory(f"{location}-ours", verbose=0)
    return [memory.cache(square) for memory in memories]


def fill_small(location: str, keys: int) -> None:
    """Compute and store small results in plain joblib's cache and in ours."""
    for cached in _squares(location):
        for x in range(keys):
            cached(x)


def requests_per_small_hit(location: str, mountpoint: str, keys: int, rounds: int) -> list[dict[str, float]]:
    """What a hit asks of the file server, each time on another small result, by plain joblib and by ours."""

    def hit(cached: Any, turn: Iterator[int]) -> None:
        x = next(turn)
        assert cached(x) == x * x

    turns = (partial(hit, cached, itertools.cycle(range(keys))) for cached in _squares(location))
    costs = [cost(mountpoint, one, rounds) for one in turns]
    assert not _computed
    return costs


__all__ = ["call_all", "fill", "fill_small", "milliseconds_per_hit", "requests_per_hit", "requests_per_small_hit"]
