"""What a lock without rivals costs here: cycles of the real lock, timed, and counted in requests on NFS."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any, Final

from nfsrwlock.doctor.report import Check, Level, Progress
from nfsrwlock_core import SoftReadWriteLock
from nfsrwlock_core.system.mounts import Mount, requests_of

_CYCLES: Final = 100
_ENOUGH_SECONDS: Final = 4.0
#: From here on, a lock is slow enough for people to ask what is wrong.
_SLOW_MS: Final = 100.0


def measure(scratch: str, mount: Mount | None, progress: Progress) -> Check:
    """Return what one uncontended acquire and release costs, to read and to write, in the directory ``scratch``."""
    lock = SoftReadWriteLock(f"{scratch}/cost", lock_dir=scratch, is_singleton=False)
    mountpoint = mount.mountpoint if mount is not None and mount.is_nfs else ""
    facts: dict[str, dict[str, Any]] = {}
    said = []
    for mode, acquire in (("read", lock.acquire_read), ("write", lock.acquire_write)):
        acquire()
        lock.release()  # the first one makes the lock directory
        times: list[float] = []
        requests: list[Counter[str]] = []
        until = time.monotonic() + _ENOUGH_SECONDS
        while len(times) < _CYCLES and (time.monotonic() < until or len(times) < 15):
            progress("measuring the cost")
            before, began = requests_of(mountpoint), time.perf_counter()
            acquire()
            lock.release()
            times.append((time.perf_counter() - began) * 1000)
            if before is not None:
                requests.append(Counter(requests_of(mountpoint)) - Counter(before))
        times.sort()
        median, late = statistics.median(times), times[int(len(times) * 0.95)]
        facts[mode] = {"median_ms": round(median, 3), "p95_ms": round(late, 3), "cycles": len(times)}
        said.append(f"{mode} {median:.2f} ms (95 % within {late:.2f} ms)")
        if requests:
            medians = Counter(
                {kind: statistics.median(one[kind] for one in requests) for kind in sum(requests, Counter[str]())}
            )
            kinds = {kind: count for kind, count in medians.most_common() if count}
            facts[mode] |= {"requests": sum(kinds.values()), "requests_by_kind": kinds}
            by_kind = ", ".join(f"{kind} {count:g}" for kind, count in kinds.items())
            said[-1] += f", {sum(kinds.values()):g} requests ({by_kind})"
    text = f"Acquire and release, uncontended: {'; '.join(said)}."
    if mountpoint:
        text += " The whole mount's requests are counted; these are the medians."
    if facts["read"]["median_ms"] <= _SLOW_MS:
        return Check("cost", Level.OK, text, facts=facts)
    remedy = "Take few locks and hold them longer; ask what the file server is busy with."
    return Check("cost", Level.NOTE, text, remedy, facts=facts)
