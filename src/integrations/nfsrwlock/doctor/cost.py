"""
What a lock costs here: cycles of the real lock, timed, and counted in requests where the kernel counts them.

It measures one caller without rivals, on this host and now; what a lock costs under load, it does not say.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from nfsrwlock.doctor.report import Check, Level
from nfsrwlock_core import SoftReadWriteLock
from nfsrwlock_core.system.mounts import Mount, requests_of

_CYCLES: Final = 100
_ENOUGH_SECONDS: Final = 4.0
#: From here on, a lock is slow enough for people to ask what is wrong.
_SLOW_MS: Final = 100.0


def measure(scratch: str, mount: Mount | None, progress: Callable[[], None]) -> Check:
    """
    Return what one uncontended acquire and release costs, to read and to write.

    :param scratch: a directory to make the lock in
    :param progress: called before each cycle; raises to stop
    """
    lock = SoftReadWriteLock(f"{scratch}/cost", lock_dir=scratch, is_singleton=False)
    mountpoint = mount.mountpoint if mount is not None and mount.is_nfs else ""
    facts: dict[str, dict[str, Any]] = {}
    for mode, acquire in (("read", lock.acquire_read), ("write", lock.acquire_write)):
        acquire()
        lock.release()  # the first one makes the lock directory
        times: list[float] = []
        requests: list[dict[str, int]] = []
        until = time.monotonic() + _ENOUGH_SECONDS
        while len(times) < _CYCLES and (time.monotonic() < until or len(times) < 15):
            progress()
            before, began = requests_of(mountpoint), time.perf_counter()
            acquire()
            lock.release()
            times.append((time.perf_counter() - began) * 1000)
            if before is not None and (after := requests_of(mountpoint)) is not None:
                requests.append({kind: after[kind] - before.get(kind, 0) for kind in after})
        facts[mode] = _summary(times, requests)
    text = (
        f"Acquire and release, uncontended: {'; '.join(f'{mode} {_in_words(cost)}' for mode, cost in facts.items())}."
    )
    if mountpoint:
        text += " The whole mount's requests are counted; these are the medians."
    if facts["read"]["median_ms"] <= _SLOW_MS:
        return Check("cost", Level.OK, text, facts=facts)
    remedy = "Take few locks and hold them longer; ask what the file server is busy with."
    return Check("cost", Level.NOTE, text, remedy, facts=facts)


def _summary(times: list[float], requests: list[dict[str, int]]) -> dict[str, Any]:
    times.sort()
    late = times[int(len(times) * 0.95)]
    cost = {"median_ms": round(statistics.median(times), 3), "p95_ms": round(late, 3), "cycles": len(times)}
    if not requests:
        return cost
    medians = {kind: statistics.median(one.get(kind, 0) for one in requests) for kind in requests[-1]}
    kinds = {kind: count for kind, count in sorted(medians.items(), key=lambda one: -one[1]) if count}
    return {**cost, "requests": sum(kinds.values()), "requests_by_kind": kinds}


def _in_words(cost: dict[str, Any]) -> str:
    text = f"{cost['median_ms']:.2f} ms (95 % within {cost['p95_ms']:.2f} ms)"
    if "requests" not in cost:
        return text
    kinds = ", ".join(f"{kind} {count:g}" for kind, count in cost["requests_by_kind"].items())
    return f"{text}, {cost['requests']:g} requests ({kinds})"
