"""
A holder distrusts itself by its wall clock, too (PROTOCOL.md section 3): a virtual machine may have been paused.

The clock of the leases stands still in such a pause and the wall clock is set right after it. No test can pause its
machine, so these set the clock that Python shows to the engine.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import announcements, wait_until
from nfsrwlock import HoldStatus, LeaseExpiredError, LockLostError, SoftReadWriteLock
from nfsrwlock_core.system import clock as clocks
from nfsrwlock_core.system.clock import WallClock

LEASE_S = 900.0

Set = Callable[[float], None]


@pytest.fixture
def set_wall_clock(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets the wall clock so many seconds ahead of what it shows."""
    real = time.time

    def set_it(ahead: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + ahead)

    return set_it


@pytest.fixture
def set_boot_clock(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets the clock of the leases so many seconds ahead of what it shows."""
    real = clocks.now

    def set_it(ahead: float) -> None:
        monkeypatch.setattr(clocks, "now", lambda: real() + ahead)

    return set_it


def quiet(path: Path, **settings: Any) -> SoftReadWriteLock:
    """A lock whose heartbeats do not come in between."""
    return SoftReadWriteLock(path, heartbeat_interval=LEASE_S / 3, stale_threshold=LEASE_S, **settings)


def test_a_wall_clock_that_ran_ahead_is_a_lease_that_ran_out_until_a_heartbeat(path: Path, set_wall_clock: Set) -> None:
    told: list[str] = []
    lock = quiet(path, on_compromise=lambda compromise: told.append(compromise.reason))
    with lock.write_lock():
        set_wall_clock(LEASE_S / 10 + 1)
        assert lock.status is HoldStatus.SUSPECT
        assert (lock.lease_remaining or 0) < 0
        with pytest.raises(LeaseExpiredError):
            lock.check()
        # Its owner is told, and a heartbeat, long before one is due, shows that nobody has evicted it.
        wait_until(lambda: told == ["refresh-failed"])
        wait_until(lambda: lock.status is HoldStatus.HELD)
        lock.check()


def test_a_little_that_it_ran_ahead_counts_as_time_that_has_passed(path: Path, set_wall_clock: Set) -> None:
    lock = quiet(path)
    with lock.write_lock():
        set_wall_clock(LEASE_S / 20)
        assert lock.status is HoldStatus.HELD
        assert (lock.lease_remaining or 0) < 0.9 * LEASE_S - LEASE_S / 20


@pytest.mark.parametrize("ahead", [-3600.0, -1.0, 0.5])
def test_a_wall_clock_that_is_kept_right_costs_nothing(path: Path, set_wall_clock: Set, ahead: float) -> None:
    lock = quiet(path)
    with lock.write_lock():
        set_wall_clock(ahead)
        lock.check()


def test_a_clock_of_leases_that_goes_back_is_a_lease_that_ran_out(path: Path, set_boot_clock: Set) -> None:
    lock = quiet(path)
    with lock.write_lock():
        set_boot_clock(-60)
        with pytest.raises(LeaseExpiredError):
            lock.check()
        set_boot_clock(0)
        lock.check()


def test_leaving_the_block_of_a_hold_that_was_evicted_in_a_pause_is_an_error(path: Path, set_wall_clock: Set) -> None:
    def pause_for_long() -> None:
        with quiet(path).write_lock():
            (name,) = announcements(path)
            os.rmdir(f"{path}.rwlock/{name}")  # as another host does, that has watched it for a lease
            set_wall_clock(2 * LEASE_S)

    with pytest.raises(LockLostError):
        pause_for_long()


def test_a_pause_between_the_announcement_and_the_grant_is_seen(
    path: Path, set_wall_clock: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir
    lock = quiet(path)
    with lock.read_lock():
        pass  # the lock directory is there

    def listdir(*arguments: Any) -> list[str]:
        set_wall_clock(LEASE_S)
        return real(*arguments)

    with monkeypatch.context() as paused:
        paused.setattr(os, "listdir", listdir)
        lock.acquire_read()
    set_wall_clock(LEASE_S)  # what the context has undone
    assert lock.status is HoldStatus.HELD
    assert real(f"{path}.rwlock/{announcements(path)[0]}") == ["beat.0"], "a heartbeat has proven it"
    lock.release()


def test_what_was_sent_before_a_pause_was_seen_is_older_than_the_pause(
    set_wall_clock: Set, set_boot_clock: Set
) -> None:
    clock = WallClock()
    set_boot_clock(0)
    start = clock.look()
    set_boot_clock(10)
    sent = start + 10  # by another process, say; then all stand still
    set_wall_clock(10 + 600)
    clock.look()
    assert 599 < clock.gained(sent) < 601
    assert clock.gained(clock.look() + 1e-6) < 0.1, "what is sent after a look is not"


def test_a_process_that_stands_still_in_each_of_its_first_looks_takes_its_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = itertools.count()
    clock = WallClock()
    with monkeypatch.context() as paused:
        paused.setattr(clocks, "now", lambda: float(next(moments)))
        clock.look()
        assert clock.gained(0.0) == 0.0
    assert clock.gained(clock.look()) == 0.0
