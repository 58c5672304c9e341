"""What this project set out to reach, and whether a run, mostly on the lab's NFSv4.2, has reached it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.contenders import KINDS
from benchmarks.measurements import Record, start
from benchmarks.results import Document, first

_PLACE = "nfs4.2"


@dataclass(frozen=True)
class Target:
    """
    One target and its fate.

    :param text: what is wanted
    :param figure: what was measured
    :param is_met: whether that is enough
    """

    text: str
    figure: str
    is_met: bool


def judge(document: Document) -> Iterator[Target]:
    """All targets that the document has figures for."""
    yield from _requests(document)
    yield from _times(document)
    yield from _kept(document)
    yield from _recorded(document)
    yield from _start(document)
    yield from _cache(document)
    yield from _contended(document)
    yield from _permits(document)
    yield from _threads(document)
    yield from _storm(document)
    yield from _crowd(document)
    yield from _growth(document)


def ratio(document: Document, slower: str, faster: str, place: str = _PLACE) -> float | None:
    """How many times as long an uncontended cycle of one takes as of the other, by medians."""
    medians = [_median(first(document, "uncontended", place, name)) for name in (slower, faster)]
    return medians[0] / medians[1] if medians[0] is not None and medians[1] is not None else None


def cache_ratio(document: Document, deed: str) -> float | None:
    """How many times as long this project's store takes as joblib's own, by medians."""
    medians = [_median(first(document, "cache", "local", store, deed=deed)) for store in ("nfsrwlock", "joblib")]
    return medians[0] / medians[1] if medians[0] is not None and medians[1] else None


def storm_ratio(document: Document, place: str = _PLACE) -> tuple[float, bool] | None:
    """How many times as long filelock's median waits in a storm; and whether that is only a lower bound."""
    ours = first(document, "storm", place, "nfsrwlock-read")
    theirs = first(document, "storm", place, "filelock-read")
    own = _median(ours, "median")
    if theirs is None or own is None:
        return None
    other = _median(theirs, "median")
    return (theirs["limit"] / own, True) if other is None else (other / own, False)


def _requests(document: Document) -> Iterator[Target]:
    for mode, most in (("read", 4.2), ("write", 9.0)):
        record = first(document, "uncontended", _PLACE, f"nfsrwlock-{mode}")
        if record is not None and "requests" in record:
            yield Target(
                f"a {mode} cycle makes at most {most:g} requests",
                f"{record['requests']:.2f}",
                record["requests"] <= most,
            )


def _times(document: Document) -> Iterator[Target]:
    for mode, least in (("read", 25), ("write", 15)):
        times = ratio(document, f"filelock-{mode}", f"nfsrwlock-{mode}")
        if times is not None:
            yield Target(
                f"a {mode} cycle is at least {least} times as fast as filelock's `SoftReadWriteLock`",
                f"{times:.1f} times",
                times >= least,
            )
    for other, label in (("soft", "`SoftFileLock`"), ("flufl", "`flufl.lock`")):
        both = [ratio(document, other, f"nfsrwlock-{mode}") for mode in ("read", "write")]
        if both[0] is not None and both[1] is not None:
            yield Target(
                f"read and write cycles are faster than {label}",
                f"{both[0]:.1f} and {both[1]:.1f} times as fast",
                min(both[0], both[1]) > 1,
            )
    times = ratio(document, "nfsrwlock-read", "floor")
    if times is not None:
        yield Target(
            "a read cycle takes at most 1.5 times as long as the bare floor", f"{times:.2f} times", times <= 1.5
        )


def _kept(document: Document) -> Iterator[Target]:
    median = _median(first(document, "uncontended", "local", "nfsrwlock-kept"))
    if median is not None:
        yield Target(
            "locally, a read that joins a kept hold takes at most 15 µs", f"{median * 1e6:.1f} µs", median <= 15e-6
        )
    times = ratio(document, "lockf-read", "nfsrwlock-kept")
    if times is not None:
        yield Target("and is at least 20 times as fast as `lockf`", f"{times:.1f} times", times >= 20)


def _recorded(document: Document) -> Iterator[Target]:
    times = ratio(document, "nfsrwlock-recorded", "nfsrwlock-write")
    if times is not None:
        yield Target("a write cycle takes at most 5 % longer where it is recorded", f"{times - 1:+.1%}", times <= 1.05)


def _start(document: Document) -> Iterator[Target]:
    python, package, _, command = (
        _median(first(document, "start", "local", "nfsrwlock-read", program=program)) for program in start.PROGRAMS
    )
    if python and package is not None and command is not None:
        took = (package - python) * 1000
        yield Target("`import nfsrwlock` takes at most 25 ms", f"{took:.0f} ms", took <= 25)
        times = command / python
        yield Target(
            "`nfsrwlock run` takes at most 3 times as long as `python -c pass`", f"{times:.1f} times", times <= 3
        )


def _cache(document: Document) -> Iterator[Target]:
    for deed, most in (("miss", 4), ("hit", 3), ("reduce_size", 3), ("clear", 3)):
        times = cache_ratio(document, deed)
        if times is not None:
            yield Target(
                f"locally, `{deed}` of a small result takes at most {most} times as long as joblib's own",
                f"{times:.1f} times",
                times <= most,
            )


def _contended(document: Document) -> Iterator[Target]:
    ours = first(document, "contended", _PLACE, "nfsrwlock-write", threads=1)
    if ours is not None:
        for other, label, least in (("soft", "`SoftFileLock`", 1.4), ("lockf-write", "`lockf`", 0.8)):
            theirs = first(document, "contended", _PLACE, other, threads=1)
            if theirs is not None and theirs["cycles per second"]:
                times = ours["cycles per second"] / theirs["cycles per second"]
                yield Target(
                    f"contended writers have at least {least:g} times the cycles of {label}",
                    f"{times:.2f} times",
                    times >= least,
                )
        if "requests" in ours:
            yield Target(
                "contended writers make at most 14 requests a cycle",
                f"{ours['requests']:.1f}",
                ours["requests"] <= 14,
            )
        yield Target(
            "of contended writers, the slowest process has at least 0.8 times the cycles of the fastest",
            f"{ours['fewest']} and {ours['most']}",
            ours["fewest"] >= 0.8 * ours["most"] > 0,
        )
        median = _median(ours)
        if median is not None:
            times = ours["longest"] / median
            yield Target(
                "no contended writer waits for longer than 3 times the median", f"{times:.1f} times", times <= 3
            )
    ours = first(document, "contended", "local", "nfsrwlock-write", threads=1)
    if ours is not None:
        cycles = ours["cycles per second"]
        yield Target(
            "locally, contended writers have at least 150 of 200 cycles/s", f"{cycles:.0f} cycles/s", cycles >= 150
        )


def _permits(document: Document) -> Iterator[Target]:
    record = first(document, "uncontended", _PLACE, "nfsrwlock-permit")
    if record is not None and "requests" in record:
        yield Target("a permit costs at most 4.2 requests", f"{record['requests']:.2f}", record["requests"] <= 4.2)
    record = first(document, "contended", _PLACE, "nfsrwlock-permit")
    if record is not None:
        limit = KINDS["nfsrwlock-permit"].permits / record["hold"]
        share = record["cycles per second"] / limit
        yield Target("contended permits reach at least 75 % of what holds allow", f"{share:.0%}", share >= 0.75)


def _threads(document: Document) -> Iterator[Target]:
    records = [first(document, "contended", "local", "nfsrwlock-write", threads=threads) for threads in (4, 100)]
    few, many = (None if record is None else record["cycles per second"] for record in records)
    if few and many is not None:
        yield Target(
            "locally, 100 threads that wait have at least 0.6 times the grants/s of 4",
            f"{many / few:.2f} times: {many:.1f} and {few:.1f} grants/s",
            many / few >= 0.6,
        )


def _storm(document: Document) -> Iterator[Target]:
    found = storm_ratio(document)
    if found is not None:
        times, is_bound = found
        yield Target(
            "in a storm of 100 readers, the median waits at most 1/20 as long as filelock's",
            f"1/{times:.0f}{' or less' if is_bound else ''}",
            times >= 20,
        )


def _crowd(document: Document) -> Iterator[Target]:
    waiters = [
        record
        for record in document["records"]
        if (record["measurement"], record["place"], record["contender"]) == ("waiters", _PLACE, "nfsrwlock-read")
        and record.get("requests per poll") is not None
    ]
    if waiters:
        counts = [record["requests per poll"] for record in waiters]
        figure = ", ".join(
            f"{record['requests per poll']:.2f} from {record['waited']:g} s to "
            f"{record['waited'] + record['watched']:.0f} s of waiting"
            for record in waiters
        )
        yield Target("a waiting process makes at most 1.2 requests a poll", figure, max(counts) <= 1.2)
    if len(waiters) > 1:
        early, late = waiters[0], waiters[-1]
        per_process = [record["polls per second"] / record["processes"] for record in (early, late)]
        yield Target(
            "and backs off",
            f"{per_process[0]:.2f} polls a second after {early['waited']:g} s of waiting, "
            f"{per_process[1]:.2f} after {late['waited']:g} s",
            per_process[1] < per_process[0] / 2,
        )
    holders = first(document, "holders", _PLACE, "nfsrwlock-read")
    if holders is not None and "requests per heartbeat" in holders:
        beat = holders["requests per heartbeat"]
        yield Target("an idle holder makes at most one request a heartbeat", f"{beat:.2f}", beat <= 1.005)


def _growth(document: Document) -> Iterator[Target]:
    records = [first(document, "growth", _PLACE, "nfsrwlock-read", readers=readers) for readers in (1, 1000)]
    medians = [_median(record) for record in records]
    if medians[0] is not None and medians[1] is not None:
        times = medians[1] / medians[0]
        yield Target(
            "a read cycle among 1,000 readers costs at most 3 times what it costs alone",
            f"{times:.1f} times the time" + _more_requests(records),
            times <= 3,
        )


def _more_requests(records: list[Record | None]) -> str:
    counts = [record.get("requests") for record in records if record is not None]
    return f", {counts[1]:.1f} requests instead of {counts[0]:.1f}" if len(counts) == 2 and counts[0] else ""


def _median(record: Record | None, values: str = "seconds") -> float | None:
    return None if record is None else record.get(values, {}).get("median")
