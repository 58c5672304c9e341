"""
Losing a hold: that its holder learns of it, when, and how; and that a hold that was only out of reach comes back.

The file servers with outages are those of outages.py: the holder is cut off from its files while others are not.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from actors import Actor, Raised, Stage, announcements, wait_until
from faults import Stage as ProtocolStage
from nfsrwlock import (
    HoldStatus,
    LeaseExpiredError,
    LockError,
    LockLostError,
    LockNotHeldError,
    SoftReadWriteLock,
    break_lock,
    inspect,
)
from nfsrwlock_core.holding.hold import Hold
from nfsrwlock_core.protocol.heartbeat import Lease
from outages import ANSWERS, FAILS, HANGS, SHADOW, let

FORMS = ["thread", "process"]
LEASE_S = 2.5


def quick(path: Path, **settings: Any) -> SoftReadWriteLock:
    """A lock whose holder notices an eviction soon, and whose lease is long."""
    return SoftReadWriteLock(
        path, is_singleton=False, heartbeat_interval=0.1, stale_threshold=20, poll_interval=0.02, **settings
    )


def evict(lock: SoftReadWriteLock) -> None:
    """Take the lock away, and wait until its holder has noticed."""
    break_lock(lock.lock_file, force=True)
    wait_until(lambda: lock.status is HoldStatus.LOST)


def write_then_lose(lock: SoftReadWriteLock) -> None:
    with lock.write_lock():
        evict(lock)


# -- evicted -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_holder_that_was_evicted_knows_after_its_next_heartbeat(path: Path, mode: str, form: str) -> None:
    reports: list[Any] = []
    lock = quick(path, heartbeat=form, on_compromise=reports.append)
    (lock.acquire_read if mode == "read" else lock.acquire_write)()
    assert (lock.status, lock.compromise, lock.is_locked) == (HoldStatus.HELD, None, True)
    lock.check()
    token = announcements(path)[0].split(".")[1 if mode == "read" else 2]
    evict(lock)
    assert not lock.is_locked
    with pytest.raises(LockLostError, match="data") as caught:
        lock.check()
    assert not isinstance(caught.value, LeaseExpiredError)
    assert lock.compromise is not None
    assert (lock.compromise.reason, lock.compromise.token) == ("evicted", token)
    wait_until(lambda: reports)
    assert reports == [lock.compromise]
    lock.release()
    assert lock.status is HoldStatus.FREE


@pytest.mark.parametrize("form", FORMS)
def test_what_is_said_of_a_loss_does_not_change(path: Path, form: str) -> None:
    reports: list[Any] = []
    lock = SoftReadWriteLock(
        path,
        is_singleton=False,
        heartbeat_interval=0.1,
        stale_threshold=LEASE_S,
        heartbeat=form,
        on_compromise=reports.append,
    )
    lock.acquire_write()
    evict(lock)
    first = lock.compromise
    assert first is not None
    assert first.error is not None
    # Words of it that are still on their way from the heartbeat process, and the end of the lease, change nothing.
    time.sleep(LEASE_S)
    assert lock.compromise == first
    assert reports == [first]
    lock.release()


def test_leaving_the_block_of_a_lost_hold_is_an_error(path: Path) -> None:
    lock = quick(path)
    with pytest.raises(LockLostError, match="must not be published"):
        write_then_lose(lock)
    with pytest.raises(LockLostError), lock.acquire_read():
        evict(lock)
    assert lock.status is HoldStatus.FREE
    assert announcements(path) == []


def test_leaving_the_block_tells_even_if_no_heartbeat_has_found_out_yet(path: Path) -> None:
    lock = SoftReadWriteLock(path)
    with Stage(path.parent) as stage:
        actor = stage.actor(
            "lock = SoftReadWriteLock('data', heartbeat_interval=0.3, stale_threshold=0.6)", host="elsewhere"
        )
        actor.do("proxy = lock.acquire_write()")
        actor.stop()
        with lock.write_lock():  # which waits out the lease of the one that is stopped
            actor.tell("proxy.__exit__(None, None, None)")
            actor.go_on()
            with pytest.raises(Raised, match="LockLostError"):
                actor.answer()


def test_the_loss_does_not_hide_an_exception_that_is_on_its_way(path: Path) -> None:
    for error in (ZeroDivisionError, KeyboardInterrupt):
        lock = quick(path)
        with pytest.raises(error):
            lose_and_raise(lock, lock.write_lock(), error)
        with pytest.raises(error):
            lose_and_raise(lock, lock.acquire_read(), error)


def lose_and_raise(lock: SoftReadWriteLock, block: AbstractContextManager[Any], error: type[BaseException]) -> None:
    with block:
        evict(lock)
        raise error


def test_the_inner_block_tells_as_well_as_the_outer_one(path: Path) -> None:
    lock = quick(path)
    told: list[str] = []

    def nest() -> None:
        with lock.write_lock():
            try:
                write_then_lose(lock)
            except LockLostError:
                told.append("inner")

    with pytest.raises(LockLostError):
        nest()
    assert told == ["inner"]


def test_a_bare_release_of_a_lost_hold_says_nothing_as_filelocks_does_not(path: Path) -> None:
    lock = quick(path)
    lock.acquire_write()
    evict(lock)
    lock.release()
    assert lock.compromise is not None
    lock.acquire_write()
    assert lock.compromise is None
    lock.release()


def test_a_lost_hold_cannot_be_entered_again_before_it_was_released(path: Path) -> None:
    lock = quick(path)
    lock.acquire_read()
    evict(lock)
    with pytest.raises(LockLostError):
        lock.acquire_read()
    lock.release()
    with lock.read_lock():
        lock.check()


def test_what_is_not_held_cannot_be_checked(path: Path) -> None:
    lock = quick(path)
    with pytest.raises(LockNotHeldError):
        lock.check()
    with lock.read_lock():
        lock.check()
    with pytest.raises(LockNotHeldError):
        lock.check()


def test_a_lost_holder_makes_nothing_on_disk_any_more(path: Path) -> None:
    lock = quick(path)
    lock.acquire_write()
    evict(lock)
    time.sleep(0.5)  # several heartbeat intervals
    assert announcements(path) == []
    lock.release()
    assert announcements(path) == []


def test_a_later_writer_has_a_higher_number_than_the_one_that_was_evicted(path: Path) -> None:
    first, second = quick(path), quick(path)
    first.acquire_write()
    lost = first.generation
    evict(first)
    assert lost is not None
    assert first.generation == lost  # to be refused by a store that has seen a higher one
    with second.write_lock():
        assert second.generation is not None
        assert second.generation > lost
    first.release()


def test_an_announcement_that_was_moved_away_is_lost_for_good(path: Path) -> None:
    lock = quick(path)
    lock.acquire_write()
    (name,) = announcements(path)
    directory = Path(lock.lock_path)
    (directory / name).rename(directory / "gone.0123456789abcdef")
    wait_until(lambda: lock.status is HoldStatus.LOST)
    (directory / "gone.0123456789abcdef").rename(directory / name)
    time.sleep(0.5)
    # Somebody may have been granted the lock in between: a name that was gone once proves nothing any more.
    assert lock.status is HoldStatus.LOST
    lock.release()


@pytest.mark.parametrize("form", FORMS)
def test_a_lock_directory_that_was_moved_away_is_noticed(path: Path, form: str) -> None:
    lock = quick(path, heartbeat=form)
    lock.acquire_write()
    Path(lock.lock_path).rename(path.parent / "elsewhere")
    wait_until(lambda: lock.status is not HoldStatus.HELD)
    with pytest.raises(LockLostError):
        lock.check()
    lock.release()


# -- out of reach ------------------------------------------------------------------------------------------------------


def holder(stage: Stage, form: str, lease_s: float = LEASE_S) -> Actor:
    """Somebody who holds the lock for writing, with a short lease, on a server with outages."""
    return stage.actor(
        "told = []\n"
        "def on_compromise(compromise):\n"
        "    told.append(compromise.reason)\n"
        f"lock = SoftReadWriteLock('data', heartbeat_interval={LEASE_S / 8}, stale_threshold={lease_s},\n"
        f"    heartbeat={form!r}, on_compromise=on_compromise)\n"
        "proxy = lock.acquire_write()\n",
        path=SHADOW,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outage", [FAILS, HANGS])
def test_a_hold_out_of_reach_becomes_suspect_and_comes_back(stage: Stage, path: Path, outage: str, form: str) -> None:
    actor = holder(stage, form)
    time.sleep(LEASE_S / 2)
    actor.do("lock.check()")
    let(path.parent, outage)
    asked, left = actor.do("(time.monotonic(), lock.lease_remaining)")
    assert 0 < left <= LEASE_S * 0.9
    wait_until(lambda: actor.do("lock.status") == "suspect")
    assert time.monotonic() >= asked + left  # not before the lease has run out
    with pytest.raises(Raised) as caught:
        actor.do("lock.check()")
    assert caught.value.names[:2] == ["LeaseExpiredError", "LockLostError"]
    assert actor.do("lock.is_locked") is False
    assert actor.do("lock.lease_remaining") < 0
    assert actor.do("lock.compromise.reason") == "refresh-failed"
    wait_until(lambda: actor.do("told") == ["refresh-failed"])
    with pytest.raises(Raised, match="LeaseExpiredError"):
        actor.do("lock.acquire_write()")
    let(path.parent, ANSWERS)
    wait_until(lambda: actor.do("lock.status") == "held")
    actor.do("lock.check()")
    assert actor.do("lock.compromise") is None
    assert actor.do("lock.lease_remaining") > 0
    actor.do("proxy.__exit__(None, None, None)")  # it never ended, so there is nothing to complain of
    assert actor.do("told") == ["refresh-failed"]
    assert announcements(path) == []


def test_a_second_outage_is_told_again(stage: Stage, path: Path) -> None:
    actor = holder(stage, "thread")
    for count in (1, 2):
        let(path.parent, FAILS)
        wait_until(lambda count=count: actor.do("told") == ["refresh-failed"] * count)
        let(path.parent, ANSWERS)
        wait_until(lambda: actor.do("lock.status") == "held")


@pytest.mark.parametrize("form", FORMS)
def test_a_hold_out_of_reach_that_is_evicted_is_suspect_first_and_then_lost(
    stage: Stage, path: Path, form: str
) -> None:
    actor = holder(stage, form)
    rival = stage.actor("lock = SoftReadWriteLock('data', poll_interval=0.02)", host="elsewhere")
    let(path.parent, HANGS)
    rival.do("lock.acquire_write(50)")  # for the rival the server is well
    assert actor.do("lock.status") == "suspect"
    wait_until(lambda: actor.do("told") == ["refresh-failed"])
    generation = rival.do("lock.generation")
    let(path.parent, ANSWERS)
    wait_until(lambda: actor.do("lock.status") == "lost")
    wait_until(lambda: actor.do("told") == ["refresh-failed", "evicted"])
    with pytest.raises(Raised) as caught:
        actor.do("proxy.__exit__(None, None, None)")
    assert caught.value.names[0] == "LockLostError"
    assert actor.do("lock.compromise.reason") == "evicted"
    rival.do("lock.check()")
    assert rival.do("lock.generation") == generation > 1


def test_leaving_the_block_when_the_lease_has_run_out_and_the_server_is_silent_is_an_error(
    stage: Stage, path: Path
) -> None:
    actor = holder(stage, "thread")
    let(path.parent, FAILS)
    wait_until(lambda: actor.do("lock.status") == "suspect")
    with pytest.raises(Raised, match="LockLostError"):
        actor.do("proxy.__exit__(None, None, None)")
    assert len(announcements(path)) == 1
    let(path.parent, ANSWERS)
    wait_until(lambda: not announcements(path))  # it is tried again in the background


def test_leaving_the_block_within_the_lease_is_no_error_even_if_the_server_fails(stage: Stage, path: Path) -> None:
    actor = holder(stage, "thread", lease_s=60)
    let(path.parent, FAILS)
    actor.do("proxy.__exit__(None, None, None)")
    let(path.parent, ANSWERS)
    wait_until(lambda: not announcements(path))


def test_the_lease_runs_down_between_heartbeats_and_is_renewed_by_them(path: Path) -> None:
    lock = SoftReadWriteLock(path, heartbeat_interval=0.4, stale_threshold=4)
    assert lock.lease_remaining is None
    with lock.write_lock():
        seen: list[float] = []

        def has_been_both() -> bool:
            seen.append(lock.lease_remaining or 0.0)
            pairs = list(itertools.pairwise(seen))
            return any(later > earlier for earlier, later in pairs) and any(later < earlier for earlier, later in pairs)

        wait_until(has_been_both)
        assert max(seen) <= 4 * 0.9  # the holder trusts its lease for less time than the others wait


# -- the errors themselves ---------------------------------------------------------------------------------------------


def test_the_errors_have_one_base_and_can_be_pickled(path: Path) -> None:
    lock = quick(path)
    lock.acquire_write()
    evict(lock)
    with pytest.raises(LockError) as caught:
        lock.check()
    lock.release()
    for error in (caught.value, LeaseExpiredError("data", "why"), LockNotHeldError("not held")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
    assert issubclass(LeaseExpiredError, LockLostError)
    assert issubclass(LockLostError, RuntimeError)


def test_status_is_a_word_that_can_be_compared_and_printed(path: Path) -> None:
    lock = quick(path)
    assert lock.status == "free"
    assert "free" in repr(lock)
    with lock.write_lock():
        assert f"{lock.status}" == "held"
        assert inspect(path).holders[0].pid == os.getpid()


def test_a_hold_restored_while_its_owner_is_told_is_still_told_why(stage_of_protocol, caplog):
    """A heartbeat between finding the lease run out and the words for it: then the warning was "None"."""
    participant = stage_of_protocol.holding_writer()
    compromises: list[Any] = []
    hold = Hold(participant, "data", 0, compromises.append)
    overdue = [True]

    class RunsOutOnce(Lease):
        def has_run_out(self, now: float) -> bool:
            return overdue.pop() if overdue else False

    participant.lease = RunsOutOnce(participant.lease.ttl, participant.lease.renewed)
    hold.tell_owner()
    assert "no heartbeat has succeeded" in caplog.text
    assert [compromise.reason for compromise in compromises] == ["refresh-failed"]


@pytest.fixture
def stage_of_protocol() -> ProtocolStage:
    return ProtocolStage()
