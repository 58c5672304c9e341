"""In which order heartbeats are sent, how many at a time, and what many holds cost."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import wait_until
from faults import MemoryFiles, Server, Stage
from nfsrwlock_core import SoftReadWriteLock
from nfsrwlock_core.holding.heartbeat_thread import Scheduler
from nfsrwlock_core.holding.hold import Hold
from nfsrwlock_core.protocol.heartbeat import Beat
from nfsrwlock_core.system.clock import now
from nfsrwlock_core.system.directory import LockDirectory

#: Heartbeats under way at a time for one file system.
AT_ONCE = 4
#: Long enough that nothing here becomes due twice.
LONG_S = 1000.0


class Gate(MemoryFiles):
    """A file system on which each heartbeat waits until the test lets it go on."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.arrived: list[str] = []
        self.most = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(0)

    def let_pass(self, beats: int) -> None:
        self._turns.release(beats)

    def _do(self, op: str, call: Callable[[], Any], name: str, *more: str) -> Any:
        if op not in ("create", "rename"):
            return super()._do(op, call, name, *more)
        with self._lock:
            self.arrived.append(name.partition("/")[0])
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self._turns.acquire()
        with self._lock:
            self._under_way -= 1
        return super()._do(op, call, name, *more)


class CountingHold(Hold):
    """Counts how often somebody asks when its lease ends."""

    asked = 0

    @property
    def next_expiry(self) -> float:
        CountingHold.asked += 1
        return super().next_expiry


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """Ends with no hold left, so that its threads end soon."""
    scheduler = Scheduler()
    dropped: list[Hold] = []
    keep = scheduler.keep

    def keep_and_note(hold: Hold, **options: Any) -> None:
        dropped.append(hold)
        keep(hold, **options)

    scheduler.keep = keep_and_note  # type: ignore[method-assign]
    yield scheduler
    for hold in dropped:
        scheduler.forget(hold)


def a_hold(
    stage: Stage, files: MemoryFiles, *, ttl: float = LONG_S, device: int = 1, due_in: float = 0.0, kind: type = Hold
) -> Hold:
    participant = stage.reader(files=files, clock=now, ttl=ttl, interval=LONG_S)
    assert participant.advance()
    hold = kind(participant, "data", device, None)
    hold.due = now() + due_in
    return hold


def a_hold_alone(**settings: Any) -> Hold:
    stage = Stage()
    return a_hold(stage, MemoryFiles(stage.server), **settings)


def has_beaten(hold: Hold) -> Callable[[], bool]:
    return lambda: hold.participant.beats is not None


def after_the_others(stage: Stage, scheduler: Scheduler) -> None:
    """Wait until the scheduler has seen all that was due before now: a hold on another file system has its turn."""
    hold = a_hold(stage, MemoryFiles(stage.server), device=2)
    scheduler.keep(hold)
    wait_until(has_beaten(hold))


def test_whose_lease_ends_first_beats_first_anew_after_each_beat(stage: Stage, scheduler: Scheduler) -> None:
    gate = Gate(stage.server)
    early = [a_hold(stage, gate, ttl=LONG_S) for _ in range(AT_ONCE)]
    for hold in early:
        scheduler.keep(hold)
    wait_until(lambda: len(gate.arrived) == AT_ONCE)
    late = [a_hold(stage, gate, ttl=ttl) for ttl in (700, 300, 900, 500)]
    for hold in late:
        scheduler.keep(hold)
    after_the_others(stage, scheduler)
    gate.let_pass(1)
    wait_until(lambda: len(gate.arrived) == AT_ONCE + 1)
    short = a_hold(stage, gate, ttl=100)
    scheduler.keep(short)
    after_the_others(stage, scheduler)
    for number in range(AT_ONCE + 2, AT_ONCE + 6):
        gate.let_pass(1)
        wait_until(lambda number=number: len(gate.arrived) == number)
    expected = [late[1], short, late[3], late[0], late[2]]
    assert gate.arrived[AT_ONCE:] == [hold.participant.name for hold in expected]
    gate.let_pass(AT_ONCE)
    for hold in (*early, *expected):
        wait_until(has_beaten(hold))


def test_a_file_system_that_hangs_takes_a_few_threads_and_stops_no_other(stage: Stage, scheduler: Scheduler) -> None:
    gate = Gate(stage.server)
    hanging = [a_hold(stage, gate) for _ in range(300)]
    threads = threading.active_count()
    for hold in hanging:
        scheduler.keep(hold)
    wait_until(lambda: len(gate.arrived) == AT_ONCE)
    after_the_others(stage, scheduler)
    after_the_others(stage, scheduler)
    assert len(gate.arrived) == AT_ONCE
    assert threading.active_count() <= threads + AT_ONCE + 3, "the scheduler's own, and two for the others"
    gate.let_pass(len(hanging))
    for hold in hanging:
        wait_until(has_beaten(hold))
    assert gate.most == AT_ONCE


def test_only_a_few_ask_at_a_time_how_what_another_process_beats_for_fares(stage: Stage, scheduler: Scheduler) -> None:
    asked: list[Hold] = []
    go_on = threading.Event()

    def oversee(hold: Hold) -> None:
        hold.due = now() + LONG_S
        asked.append(hold)
        go_on.wait()

    holds = [a_hold(stage, MemoryFiles(stage.server)) for _ in range(50)]
    for hold in holds:
        scheduler.keep(hold, act=oversee)
    wait_until(lambda: len(asked) == AT_ONCE)
    after_the_others(stage, scheduler)
    assert len(asked) == AT_ONCE
    go_on.set()
    wait_until(lambda: len(asked) == len(holds))
    assert set(asked) == set(holds)


def test_the_work_for_many_holds_grows_with_their_number_not_with_its_square(scheduler: Scheduler) -> None:
    number = 2000
    # Each has a moment of its own, as holds that were taken one after the other have.
    holds = [a_hold_alone(due_in=n / 1000, kind=CountingHold) for n in range(number)]
    CountingHold.asked = 0
    for hold in holds:
        scheduler.keep(hold)
    wait_until(lambda: all(hold.participant.beats == 0 for hold in holds), timeout=100)
    assert CountingHold.asked < 20 * number


def test_holds_that_come_and_go_are_forgotten_before_they_would_be_due(scheduler: Scheduler) -> None:
    left = []
    for _ in range(1000):
        hold = a_hold_alone(due_in=LONG_S)
        Scheduler.keep(scheduler, hold)
        scheduler.drop(hold)
        left.append(weakref.ref(hold))
    del hold
    gc.collect()
    assert not any(ref() for ref in left)
    assert len(scheduler._agenda) < 200


def test_a_heartbeat_that_fails_in_an_unforeseen_way_stops_no_other_and_is_tried_again(
    stage: Stage, scheduler: Scheduler
) -> None:
    files = MemoryFiles(stage.server)
    broken, sound = a_hold(stage, files), a_hold(stage, files)
    tries: list[float] = []

    def fail() -> Beat:
        tries.append(now())
        raise ValueError("nobody expected this")

    broken.beat = fail  # type: ignore[method-assign]
    scheduler.keep(broken)
    scheduler.keep(sound)
    wait_until(has_beaten(sound))
    wait_until(lambda: broken.due > now() + LONG_S / 100)  # another thread says so
    assert len(tries) == 1


@pytest.mark.alone
def test_a_short_lease_stands_beside_hundreds_of_holds_on_a_slow_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One after the other the heartbeats of the many take eight seconds.
    for op in ("create", "rename"):
        call = getattr(LockDirectory, op)

        def slowly(self: LockDirectory, *names: Any, call: Callable[..., None] = call) -> None:
            time.sleep(0.02)
            call(self, *names)

        monkeypatch.setattr(LockDirectory, op, slowly)
    many = [SoftReadWriteLock(tmp_path / str(n), heartbeat_interval=4, stale_threshold=90) for n in range(400)]
    short = SoftReadWriteLock(tmp_path / "short", heartbeat_interval=1, stale_threshold=3)
    short.acquire_write()
    for lock in many:
        lock.acquire_read()
    participants = [lock._held.hold.participant for lock in many]
    worst = LONG_S
    until = time.monotonic() + 60
    while any(participant.beats is None for participant in participants) and time.monotonic() < until:
        worst = min(worst, short.lease_remaining)
        time.sleep(0.01)
    for lock in (*many, short):
        lock.release()
    assert time.monotonic() < until
    assert worst > 0.5
