"""What a lock costs here: cycles of the real lock, timed, and counted in requests where the kernel counts them."""

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
    mountpoint = mount.mountpoint if mount is not None and mount.is_nfs else None
    facts: dict[str, dict[str, Any]] = {}
    parts = []
    for mode in ("read", "write"):
        acquire = lock.acquire_read if mode == "read" else lock.acquire_write

        def cycle(acquire: Callable[[], object] = acquire) -> None:
            progress()
            acquire()
            lock.release()

        times, requests = _batches(cycle, mountpoint)
        ordered = sorted(times)
        median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
        facts[mode] = {"median_ms": round(median, 3), "p95_ms": round(late, 3), "cycles": len(ordered)}
        part = f"{mode} {median:.2f} ms (95 % within {late:.2f} ms)"
        if requests is not None:
            total = round(sum(requests.values()), 2)
            facts[mode] |= {"requests": total, "requests_by_kind": requests}
            kinds = ", ".join(f"{kind} {count:g}" for kind, count in sorted(requests.items(), key=lambda one: -one[1]))
            part += f", {total:g} requests ({kinds})"
        parts.append(part)
    slow = facts["read"]["median_ms"] > _SLOW_MS
    text = f"Acquire and release, uncontended: {'; '.join(parts)}."
    if mountpoint is not None:
        text += (
            f" Requests are those of the whole mount, so of {_BATCHES} batches the one with the fewest was taken: the"
            " others may hold other programs' traffic."
        )
    return Check(
        "cost",
        Level.NOTE if slow else Level.OK,
        text,
        "Take few locks and hold them longer; ask what the file server is busy with." if slow else "",
        facts=facts,
    )


def _batches(work: Callable[[], None], mountpoint: str | None) -> tuple[list[float], dict[str, float] | None]:
    times: list[float] = []

    def cycle() -> None:
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)

    cycle()  # makes the lock directory
    cycles = max(3, min(_CYCLES, int(_ENOUGH_SECONDS * 1000 / _BATCHES / times[0])))
    times.clear()
    least: dict[str, float] | None = None
    for _ in range(_BATCHES):
        if mountpoint is None:
            for _ in range(cycles):
                cycle()
            continue
        requests = requests_per_round(mountpoint, cycle, cycles)
        if requests is not None and (least is None or sum(requests.values()) < sum(least.values())):
            least = requests
    if least is not None:
        least = {kind: round(count, 2) for kind, count in least.items()}
    return times, least
