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

_BATCHES: Final = 5
_CYCLES: Final = 20
_ENOUGH_SECONDS: Final = 4.0
#: From here on, a lock is slow enough for people to ask what is wrong.
_SLOW_MS: Final = 100.0


def requests_per_round(mountpoint: str, work: Callable[[], object], rounds: int) -> dict[str, float] | None:
    """
    Return how many requests of each kind one round of ``work`` costs on average.

    :returns: kinds that were not used are left out; ``None`` where nobody counts, see :func:`requests_of`
    """
    before = requests_of(mountpoint)
    for _ in range(rounds):
        work()
    after = requests_of(mountpoint)
    if before is None or after is None:
        return None
    used = {kind: (after[kind] - before.get(kind, 0)) / rounds for kind in after}
    return {kind: count for kind, count in used.items() if count}


def measure(scratch: str, mount: Mount | None, progress: Callable[[], None]) -> Check:
    """
    Return what one uncontended acquire and release costs, to read and to write.

    :param scratch: a directory to make the lock in
    :param progress: called before each cycle; raises to stop
    """
    lock = SoftReadWriteLock(f"{scratch}/cost", lock_dir=scratch, is_singleton=False)
    mountpoint = mount.mountpoint if mount is not None and mount.is_nfs else ""
    facts = {
        "read": _measure(lock.acquire_read, lock.release, mountpoint, progress),
        "write": _measure(lock.acquire_write, lock.release, mountpoint, progress),
    }
    text = (
        f"Acquire and release, uncontended: {'; '.join(f'{mode} {_in_words(cost)}' for mode, cost in facts.items())}."
    )
    if mountpoint:
        text += f" The whole mount's requests are counted; this is the batch of {_BATCHES} with the fewest."
    if facts["read"]["median_ms"] <= _SLOW_MS:
        return Check("cost", Level.OK, text, facts=facts)
    remedy = "Take few locks and hold them longer; ask what the file server is busy with."
    return Check("cost", Level.NOTE, text, remedy, facts=facts)


def _measure(
    acquire: Callable[[], object], release: Callable[[], object], mountpoint: str, progress: Callable[[], None]
) -> dict[str, Any]:
    times: list[float] = []

    def cycle() -> None:
        progress()
        began = time.perf_counter()
        acquire()
        release()
        times.append((time.perf_counter() - began) * 1000)

    cycle()  # makes the lock directory
    cycles = max(3, min(_CYCLES, int(_ENOUGH_SECONDS * 1000 / _BATCHES / times.pop())))
    batches = [requests_per_round(mountpoint, cycle, cycles) for _ in range(_BATCHES)]
    times.sort()
    late = times[int(len(times) * 0.95)]
    cost = {"median_ms": round(statistics.median(times), 3), "p95_ms": round(late, 3), "cycles": len(times)}
    counted = [batch for batch in batches if batch is not None]
    if not counted:
        return cost
    least = min(counted, key=lambda batch: sum(batch.values()))
    kinds = {kind: round(count, 2) for kind, count in sorted(least.items(), key=lambda one: -one[1])}
    return {**cost, "requests": round(sum(least.values()), 2), "requests_by_kind": kinds}


def _in_words(cost: dict[str, Any]) -> str:
    text = f"{cost['median_ms']:.2f} ms (95 % within {cost['p95_ms']:.2f} ms)"
    if "requests" not in cost:
        return text
    kinds = ", ".join(f"{kind} {count:g}" for kind, count in cost["requests_by_kind"].items())
    return f"{text}, {cost['requests']:g} requests ({kinds})"
