"""Several locks as one: one order for everybody, all or nothing, one timeout; held and lost together."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from actors import Raised, Stage, announcements, in_forked_child, wait_until
from interrupts import interrupted_at
from nfsrwlock import (
    HoldStatus,
    LockLostError,
    LockNotHeldError,
    LockPathError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    WaitInfo,
    break_lock,
)
from nfsrwlock_core import lockset


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return tmp_path / "a"


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return tmp_path / "b"


@pytest.fixture
def c(tmp_path: Path) -> Path:
    return tmp_path / "c"


def several(**settings: Any) -> LockSet:
    return LockSet(poll_interval=0.02, **settings)


def modes_of(*paths: Path) -> list[list[str]]:
    """How each of the locks is announced now."""
    return [[name.partition(".")[0] for name in announcements(path)] for path in paths]


# -- what it is --------------------------------------------------------------------------------------------------------


def test_it_takes_each_lock_as_it_was_asked_to(a: Path, b: Path, c: Path) -> None:
    with LockSet(read=[a, b], write=[c]) as held:
        assert modes_of(a, b, c) == [["read"], ["read"], ["write"]]
        held.check()
        assert held.status is HoldStatus.HELD
    assert modes_of(a, b, c) == [[], [], []]
    assert held.status is HoldStatus.FREE


def test_a_path_in_both_lists_is_written(a: Path, b: Path) -> None:
    for arguments in ({"read": [a, b], "write": [a]}, {"write": [a], "read": [b, a]}):
        with LockSet(**arguments) as held:
            assert modes_of(a, b) == [["write"], ["read"]]
            assert (held.paths_read, held.paths_write) == ((str(b),), (str(a),))


def test_a_path_that_is_given_twice_or_in_two_spellings_is_one_lock(
    a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with LockSet(read=[a, "a", "./a", tmp_path / "link" / "a"]) as held:
        assert len(held.locks) == 1
        assert modes_of(a) == [["read"]]
    with LockSet(read=["a"], write=[tmp_path / "link" / "a"]):
        assert modes_of(a) == [["write"]]


def test_a_single_path_may_be_given_as_it_is(a: Path, b: Path) -> None:
    with LockSet(str(a), b):
        assert modes_of(a, b) == [["read"], ["write"]]
    with LockSet(write=str(a)), LockSet(read=(path for path in [b])):
        assert modes_of(a, b) == [["write"], ["read"]]


def test_the_paths_are_canonical_sorted_and_stay_so(
    a: Path, b: Path, c: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    locks = LockSet(read=["c", "a"], write=["b"])
    monkeypatch.chdir("/")
    assert (locks.paths_read, locks.paths_write) == ((str(a), str(c)), (str(b),))
    assert [Path(lock.lock_path).name for lock in locks.locks] == ["a.rwlock", "b.rwlock", "c.rwlock"]
    with locks as held:
        assert held.generations == {str(a): 0, str(b): 1, str(c): 0}
    assert locks.generations == {}


def test_settings_reach_every_lock(a: Path, b: Path) -> None:
    settings: dict[str, Any] = {
        "timeout": 7,
        "blocking": False,
        "heartbeat_interval": 2.0,
        "stale_threshold": 9.0,
        "poll_interval": 0.5,
        "heartbeat": "process",
        "share": "group",
    }
    for lock in LockSet(read=[a], write=[b], lock_dir=a.parent / "locks", **settings).locks:
        for name, value in settings.items():
            assert getattr(lock, name) == value
        assert lock.lock_dir == str(a.parent / "locks")


def test_what_makes_no_sense_is_refused(a: Path) -> None:
    with pytest.raises(ValueError, match="at least one path"):
        LockSet()
    with pytest.raises(ValueError, match="heartbeat_interval"):
        LockSet(read=[a], heartbeat_interval=-1)
    with pytest.raises(TypeError):
        LockSet(read=[a], timeout="5")
    with pytest.raises(TypeError):
        LockSet(read=[a], is_singleton=True)
    with pytest.raises(ValueError, match="timeout"):
        LockSet(read=[a]).acquire(-3)
    with pytest.raises(ValueError, match="path"):
        LockSet(read=[""])


def test_equal_sets_are_equal(a: Path, b: Path) -> None:
    assert LockSet(read=[a, b]) == LockSet(read=[b, a, b])
    assert hash(LockSet(read=[a, b])) == hash(LockSet(read=[b, a]))
    assert LockSet(read=[a], write=[b]) != LockSet(read=[b], write=[a])
    assert LockSet(read=[a]) != LockSet(read=[a], timeout=5)
    assert LockSet(read=[a]) != str(a)


# -- all or nothing ----------------------------------------------------------------------------------------------------


def test_if_one_cannot_be_had_in_time_none_is_kept(a: Path, b: Path, c: Path) -> None:
    with SoftReadWriteLock(b).read_lock():
        locks = several(read=[a, c], write=[b])
        started = time.monotonic()
        with pytest.raises(Timeout, match="b'") as caught:
            locks.acquire(0.3)
        assert 0.29 <= time.monotonic() - started < 10
        assert isinstance(caught.value, filelock.Timeout)
        assert caught.value.holders[0].pid == os.getpid()
        assert modes_of(a, b, c) == [[], ["read"], []]
        assert locks.status is HoldStatus.FREE
    with locks:
        locks.check()


def test_the_timeout_is_one_for_all_of_them(stage: Stage, a: Path, b: Path, c: Path) -> None:
    # The first is had after half of the time. If the second had a time of its own, all of it would follow.
    seconds = 4.0
    holder = stage.actor("lock = SoftReadWriteLock('a'); lock.acquire_write()")
    freed: list[float] = []

    def free_the_first(info: WaitInfo) -> None:
        if info.lock_file == str(a) and time.monotonic() - started >= seconds / 2 and not freed:
            holder.do("lock.release()")
            freed.append(time.monotonic())

    with SoftReadWriteLock(b).write_lock(), SoftReadWriteLock(c).write_lock():
        started = time.monotonic()
        with pytest.raises(Timeout, match="b'"):
            several(read=[a, b, c]).acquire(seconds, on_wait=free_the_first)
        assert time.monotonic() - freed[0] < seconds


def test_a_set_that_may_not_wait_gives_up_at_once(a: Path, b: Path) -> None:
    with SoftReadWriteLock(b).write_lock():
        for locks, arguments in (
            (several(read=[a, b]), {"blocking": False}),
            (several(read=[a, b]), {"timeout": 0}),
            (several(read=[a, b], blocking=False), {}),
            (several(read=[a, b], timeout=0), {}),
        ):
            with pytest.raises(Timeout):
                locks.acquire(**arguments)
            assert modes_of(a) == [[]]
    with several(read=[a, b], blocking=False):
        pass


def test_an_error_with_one_leaves_none(a: Path, b: Path) -> None:
    Path(f"{b}.rwlock").write_text("in the way")
    with pytest.raises(LockPathError, match="b"):
        several(read=[a, b]).acquire()
    assert modes_of(a) == [[]]


def test_an_interrupt_while_waiting_leaves_none(stage: Stage, a: Path, b: Path) -> None:
    with SoftReadWriteLock(b).read_lock():
        actor = stage.actor("locks = LockSet(read=['a'], write=['b'], poll_interval=0.02)")
        actor.tell("locks.acquire()")
        wait_until(lambda: modes_of(a, b)[0] and len(announcements(b)) == 2)
        os.kill(actor.pid, signal.SIGINT)
        with pytest.raises(Raised, match="KeyboardInterrupt"):
            actor.answer()
        assert modes_of(a, b) == [[], ["read"]]
    actor.do("locks.acquire(); locks.check()")


def test_an_interrupt_at_any_moment_leaves_none(a: Path, b: Path) -> None:
    """Ctrl-C while a set is taken or given back: nobody would release what it left behind."""
    blocks = several(read=a, write=b)
    for enter in (blocks.acquire, blocks.__enter__):
        calls = 0
        while interrupted_at(calls, lockset, enter):
            assert modes_of(a, b) == [[], []], f"after call {calls} of {enter}"
            blocks.acquire()  # it can be
            blocks.release()
            calls += 1
        assert calls > 5
        blocks.release()
    blocks.acquire()
    calls = 0
    while interrupted_at(calls, lockset, blocks.release):
        assert modes_of(a, b) == [[], []], f"after call {calls} of release"
        blocks.acquire()
        calls += 1
    assert calls > 5


def test_a_forked_child_is_told_that_the_set_is_its_parents(a: Path) -> None:
    with LockSet(write=a) as held:

        def take() -> str:
            with pytest.raises(RuntimeError, match="invalidated by fork"):
                held.acquire()
            with pytest.raises(RuntimeError, match="invalidated by fork"), held:
                pass
            return held.status

        assert in_forked_child(take) == HoldStatus.FREE
        held.check()


def test_waiting_is_told(a: Path, b: Path) -> None:
    told: list[WaitInfo] = []
    with SoftReadWriteLock(b).read_lock(), pytest.raises(Timeout):
        several(read=[a], write=[b]).acquire(2, on_wait=told.append)
    assert {(info.lock_file, info.mode) for info in told} == {(str(b), "write")}
    assert all(info.blockers[0].mode == "read" for info in told)


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["write=['a'], read=['b']", "write=['b'], read=['a']"], ["write=ORDER"] * 2])
def test_sets_never_wait_for_each_other(stage: Stage, arguments: list[str], a: Path, b: Path) -> None:
    actors = []
    for argument in arguments * 2:
        order = "['b', 'a']" if len(actors) % 2 else "['a', 'b']"
        actors.append(
            stage.actor(f"locks = LockSet({argument.replace('ORDER', order)}, timeout=60, poll_interval=0.02)")
        )
    for actor in actors:
        actor.tell("for _ in range(20):\n    with locks: time.sleep(random.uniform(0, 0.005))\n")
    for actor in actors:
        actor.answer(timeout=90)  # a deadlock would end in a time-out
    assert modes_of(a, b) == [[], []]


# -- held and lost -----------------------------------------------------------------------------------------------------


def test_a_set_is_not_reentrant_and_must_be_held_to_be_released(a: Path) -> None:
    locks = several(read=[a])
    with pytest.raises(LockNotHeldError):
        locks.release()
    with pytest.raises(LockNotHeldError):
        locks.check()
    assert locks.acquire() is locks
    with pytest.raises(RuntimeError, match="re-entrant"):
        locks.acquire()
    assert modes_of(a) == [["read"]]
    locks.release()
    with pytest.raises(LockNotHeldError):
        locks.release()


@pytest.mark.parametrize("begin", [LockSet.__enter__, LockSet.acquire])
def test_a_block_on_a_held_set_is_refused_to_all_but_who_acquired_it(
    a: Path, begin: Callable[[LockSet], LockSet]
) -> None:
    """Two threads in a block on one exclusive set, or a block in a block: the first end would release both."""
    locks = several(write=[a])
    begin(locks)
    refused: list[str] = []

    def enter() -> None:
        with pytest.raises(RuntimeError, match="re-entrant") as caught, locks:
            pass
        refused.append(str(caught.value))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if begin is LockSet.acquire:
        locks.__enter__()
    enter()
    assert len(refused) == 2
    assert modes_of(a) == [["write"]]
    locks.check()
    locks.__exit__(None, None, None)
    assert modes_of(a) == [[]]


def test_an_acquired_set_releases_itself_at_the_end_of_a_block(a: Path) -> None:
    locks = several(write=[a])
    with locks.acquire(5) as held:
        assert held is locks
        held.check()
    assert modes_of(a) == [[]]


def test_two_threads_with_one_set_do_not_take_each_others_locks_away(a: Path, b: Path) -> None:
    locks = several(read=[a, b])
    refused: list[RuntimeError] = []

    def enter() -> None:
        try:
            with locks.acquire():
                pass
        except RuntimeError as error:
            refused.append(error)

    with locks:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(20)
        assert "re-entrant" in str(refused[0])
        locks.check()
        assert modes_of(a, b) == [["read"], ["read"]]


def test_locks_that_the_process_holds_otherwise_are_apart(a: Path) -> None:
    lock = SoftReadWriteLock(a)
    with lock.write_lock():
        with pytest.raises(Timeout):
            several(read=[a]).acquire(0.1)
        lock.check()


def test_the_state_is_that_of_the_worst_lock(a: Path, b: Path) -> None:
    locks = LockSet(read=[a], write=[b], heartbeat_interval=0.1, stale_threshold=20)
    assert locks.lease_remaining is None

    def lose_one() -> None:
        with locks:
            assert locks.lease_remaining is not None
            assert 0 < locks.lease_remaining <= 20
            break_lock(a, force=True)
            wait_until(lambda: locks.status is HoldStatus.LOST)
            with pytest.raises(LockLostError, match="a'"):
                locks.check()

    with pytest.raises(LockLostError, match="a'"):
        lose_one()
    assert modes_of(a, b) == [[], []]
    assert locks.status is HoldStatus.FREE
    with locks:
        locks.check()


def test_a_loss_does_not_hide_an_exception_that_is_on_its_way(a: Path, b: Path) -> None:
    locks = LockSet(read=[a], write=[b], heartbeat_interval=0.1, stale_threshold=20)

    def lose_and_fail() -> None:
        with locks:
            break_lock(b, force=True)
            wait_until(lambda: locks.status is HoldStatus.LOST)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_and_fail()
    assert modes_of(a, b) == [[], []]


def test_what_is_held_is_released_when_the_interpreter_exits(stage: Stage, a: Path, b: Path) -> None:
    actor = stage.actor("LockSet(read=['a'], write=['b']).acquire(); pass", host="elsewhere")
    assert modes_of(a, b) == [["read"], ["write"]]
    assert actor.leave() == 0
    assert modes_of(a, b) == [[], []]


def test_sets_that_need_different_settings_are_joined_to_one(a: Path, b: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "locks"
    elsewhere.mkdir()
    reading = LockSet(read=[a, b])
    sets = [LockSet(write=b), LockSet(read=tmp_path / "c", lock_dir=elsewhere, stale_threshold=45, timeout=3), reading]
    with reading:
        joined = LockSet.joined(sets)
        assert joined.status is HoldStatus.FREE, "a lock that is held otherwise is not taken over"
    assert joined.paths_read == (str(a), str(tmp_path / "c"))
    assert joined.paths_write == (str(b),), "read and written is written"
    assert [lock.lock_path for lock in joined.locks] == sorted(lock.lock_path for lock in joined.locks)
    with joined:
        assert modes_of(a, b) == [["read"], ["write"]]
        assert [lock.stale_threshold for lock in joined.locks if lock.lock_dir] == [45]
        assert len(list(elsewhere.iterdir())) == 1
    assert modes_of(a, b) == [[], []]


def test_the_locks_of_one_set_can_be_taken_before_those_of_another(a: Path, b: Path, c: Path) -> None:
    joined = LockSet.joined([LockSet(write=c), LockSet(read=[b, a, c])], one_after_another=True)
    for one in (joined, pickle.loads(pickle.dumps(joined))):
        assert [lock.lock_file for lock in one.locks] == [str(c), str(a), str(b)]
        assert one.paths_write == (str(c),)


def test_sets_that_contradict_each_other_are_not_joined(a: Path) -> None:
    with pytest.raises(ValueError, match="two different settings"):
        LockSet.joined([LockSet(read=a), LockSet(write=a, stale_threshold=45)])
    with pytest.raises(ValueError, match="at least one"):
        LockSet.joined([])
