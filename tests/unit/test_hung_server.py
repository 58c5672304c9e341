"""
A file server that does not answer: what must not hang with it, and what becomes of calls that were given up.

The server is that of outages.py. Each directory is a file system of its own there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outages
from actors import Raised, Stage, announcements, beat_of, children_of, has_ended, wait_until
from nfsrwlock import LockError, LockSet, SoftReadWriteLock, Timeout, WaitInfo
from nfsrwlock_core.holding import waiting as acquire_module
from outages import ANSWERS, HANGS, HANGS_AFTERWARDS, SHADOW

FORMS = ["thread", "process"]
LEASE_S = 3.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Decides what the server of this test's own process does; at the end it answers."""
    outages.install(monkeypatch.setattr)
    yield lambda state: outages.let(tmp_path, state)
    outages.let(tmp_path, ANSWERS)
    wait_until(lambda: not outages.hanging_calls(tmp_path))


def wait_until_withdrawn(directory: Path) -> None:
    """Wait until no call to the server of ``directory`` hangs, and what was given up meanwhile has left the disk."""
    wait_until(lambda: not outages.hanging_calls(directory))
    wait_until(lambda: not acquire_module._unanswered)  # before that it may announce itself anew


def acquire(lock: SoftReadWriteLock, mode: str, timeout: float) -> None:
    (lock.acquire_read if mode == "read" else lock.acquire_write)(timeout)


@pytest.mark.parametrize(("mode", "state"), [("read", HANGS_AFTERWARDS), ("write", HANGS)])
def test_an_acquire_with_a_timeout_returns_within_seconds_and_what_it_made_is_withdrawn(
    path: Path, server: Callable[[str], None], mode: str, state: str
) -> None:
    lock = SoftReadWriteLock(path)
    with lock.read_lock():
        pass  # the lock directory is there
    server(state)
    started = time.monotonic()
    with pytest.raises(Timeout, match="has not answered"):
        acquire(lock, mode, 1)
    assert 1 <= time.monotonic() - started < 3 + 3
    server(ANSWERS)
    # The call that hung is carried out now, and makes what nobody wants any more.
    wait_until_withdrawn(path.parent)
    assert announcements(path) == []
    with lock.write_lock(timeout=10):
        lock.check()


def test_a_server_that_falls_silent_while_a_caller_waits_does_not_hold_it_up(
    path: Path, server: Callable[[str], None]
) -> None:
    holder, lock = (SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02) for _ in range(2))
    holder.acquire_write()
    started = time.monotonic()
    with pytest.raises(Timeout, match="has not answered"):
        lock.acquire_write(2, on_wait=lambda _: server(HANGS))
    assert time.monotonic() - started < 4 + 3
    server(ANSWERS)
    wait_until_withdrawn(path.parent)
    assert len(announcements(path)) == 1
    holder.release()
    assert announcements(path) == []


def test_a_caller_that_may_not_wait_comes_back_soon(path: Path, server: Callable[[str], None]) -> None:
    server(HANGS)
    started = time.monotonic()
    with pytest.raises(Timeout):
        SoftReadWriteLock(path).acquire_read(blocking=False)
    assert time.monotonic() - started < 2 + 3


def io_threads() -> int:
    return sum(thread.name == "nfsrwlock-io" for thread in threading.enumerate())


@pytest.mark.parametrize("names", [["data"] * 30, [f"data{n}" for n in range(30)]], ids=["one lock", "many locks"])
def test_attempts_that_time_out_one_after_the_other_leave_few_calls_behind(
    tmp_path: Path, server: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    monkeypatch.setattr(acquire_module, "GRACE_S", 0.05)
    wait_until(lambda: not io_threads())
    server(HANGS)
    for name in names:
        with pytest.raises(Timeout) as caught:
            SoftReadWriteLock(tmp_path / name).acquire_read(0.05)
    assert "4 earlier calls to it still hang" in str(caught.value)
    assert outages.hanging_calls(tmp_path) == 4
    # The call that hangs withdraws what it makes, in its own thread.
    wait_until(lambda: io_threads() == 4)
    server(ANSWERS)
    wait_until(lambda: not any(announcements(tmp_path / name) for name in names) and not io_threads())
    for name in names:
        with SoftReadWriteLock(tmp_path / name).read_lock(10):
            pass


def test_an_attempt_behind_calls_that_hang_goes_on_when_one_of_them_ends(
    path: Path, server: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquire_module, "GRACE_S", 0.05)
    lock = SoftReadWriteLock(path)
    server(HANGS)
    for _ in range(4):
        with pytest.raises(Timeout):
            lock.acquire_write(0.05)
    waits: list[str | None] = []

    def on_wait(info: WaitInfo) -> None:
        waits.append(info.trouble)
        server(ANSWERS)

    with lock.write_lock(60, on_wait=on_wait):
        assert waits[0] == "nothing: 4 earlier calls to it still hang"
    wait_until_withdrawn(path.parent)  # the others of them, too
    assert announcements(path) == []


def test_where_there_are_no_more_threads_a_timeout_does_not_become_a_hang(
    path: Path, server: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lock = SoftReadWriteLock(path)
    wait_until(lambda: not any(thread.name.startswith("nfsrwlock") for thread in threading.enumerate()))
    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        server(HANGS)
        with pytest.raises(Timeout, match="no thread can be started"):
            lock.acquire_write(0.1)
        server(ANSWERS)
    with pytest.raises(LockError, match="no thread can be started"):
        refuse_then_acquire(lock, refuse, monkeypatch)
    assert announcements(path) == []
    with lock.write_lock(10):
        lock.check()


def refuse_then_acquire(
    lock: SoftReadWriteLock, refuse: Callable[[threading.Thread], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        lock.acquire_write()  # in this thread, but for the heartbeat


def test_other_threads_of_the_lock_can_ask_how_it_stands(path: Path, server: Callable[[str], None]) -> None:
    lock = SoftReadWriteLock(path)
    with lock.read_lock():
        server(HANGS)
        thread = threading.Thread(target=lock.release, kwargs={"force": True})
        thread.start()
        wait_until(lambda: outages.hanging_calls(path.parent))
        started = time.monotonic()
        for _ in range(100):
            _ = (lock.status, lock.is_locked, lock.lease_remaining, lock.compromise, repr(lock))
        assert time.monotonic() - started < 10  # of an outage that lasts until the next line
        server(ANSWERS)
        thread.join(20)
        lock.acquire_read()
    assert announcements(path) == []


def test_a_set_gives_back_what_it_has_when_one_of_its_servers_hangs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages.install(monkeypatch.setattr)
    (tmp_path / "dead").mkdir()
    outages.let(tmp_path / "dead", HANGS)
    locks = LockSet(read=[path], write=[f"{tmp_path}/dead/other"])
    started = time.monotonic()
    with pytest.raises(Timeout):
        locks.acquire(0.5)
    assert time.monotonic() - started < 3 + 3
    assert announcements(path) == []
    outages.let(tmp_path / "dead", ANSWERS)
    wait_until(lambda: not outages.hanging_calls(tmp_path / "dead"))
    wait_until(lambda: not announcements(tmp_path / "dead" / "other"))


@pytest.mark.parametrize("form", FORMS)
def test_a_server_that_hangs_does_not_starve_the_heartbeats_on_another_one(
    stage: Stage, tmp_path: Path, form: str
) -> None:
    settings = f"heartbeat_interval={LEASE_S / 8}, stale_threshold={LEASE_S}, heartbeat={form!r}"
    for name in ("dead", "alive"):
        (tmp_path / name).mkdir()
    actor = stage.actor(
        # Several on the server that hangs, in case each of them used up a thread.
        f"dead = [SoftReadWriteLock(f'dead/data{{n}}', {settings}) for n in range(10)]\n"
        f"alive = SoftReadWriteLock('alive/data', {settings})\n"
        "for lock in dead: lock.acquire_read()\n"
        "proxy = alive.acquire_write()\n",
        host="there",
        path=SHADOW,
    )
    outages.let(tmp_path / "dead", HANGS)
    rival = stage.actor(f"lock = SoftReadWriteLock('alive/data', {settings})", host="here")
    with pytest.raises(Raised, match="Timeout"):
        rival.do(f"lock.acquire_read({1.5 * LEASE_S})")
    assert outages.hanging_calls(tmp_path / "dead") >= 1
    assert actor.do("[lock.status for lock in dead]") == ["suspect"] * 10
    # A lock that is taken and released on the server that is well is not held up either.
    started = time.monotonic()
    actor.do("alive.check(); proxy.__exit__(None, None, None); alive.acquire_write(); alive.release()")
    assert time.monotonic() - started < 5
    outages.let(tmp_path / "dead", ANSWERS)
    wait_until(lambda: actor.do("[lock.status for lock in dead]") == ["held"] * 10)


def test_the_exit_of_the_interpreter_is_not_held_up_for_long(stage: Stage, tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / name).mkdir()
    actor = stage.actor(
        "locks = [SoftReadWriteLock(f'{name}/{form}', heartbeat_interval=0.2, stale_threshold=60, heartbeat=form)\n"
        "    for name in ('dead', 'alive') for form in ('thread', 'process')]\n"
        "for lock in locks: lock.acquire_write()\n",
        host="there",
        path=SHADOW,
    )
    helpers = children_of(actor.pid)
    wait_until(lambda: all(beat_of(tmp_path / name / form) for name in ("dead", "alive") for form in FORMS))
    outages.let(tmp_path / "dead", HANGS)
    wait_until(lambda: outages.hanging_calls(tmp_path / "dead") == 2)  # a heartbeat in each form
    started = time.monotonic()
    assert actor.leave() == 0
    assert time.monotonic() - started < 6 + 4
    for form in FORMS:
        assert announcements(tmp_path / "alive" / form) == []  # what could be released was released
    for helper in helpers:
        wait_until(lambda helper=helper: has_ended(helper))


def test_the_exit_is_not_held_up_by_a_call_that_was_given_up(stage: Stage, tmp_path: Path) -> None:
    actor = stage.actor("lock = SoftReadWriteLock('data')", path=SHADOW)
    outages.let(tmp_path, HANGS)
    with pytest.raises(Raised, match="Timeout"):
        actor.do("lock.acquire_read(0.2)")
    started = time.monotonic()
    assert actor.leave() == 0
    assert time.monotonic() - started < 6 + 2


@pytest.mark.parametrize("form", FORMS)
def test_a_helper_whose_parent_is_killed_ends_although_the_server_hangs(
    stage: Stage, tmp_path: Path, form: str
) -> None:
    actor = stage.actor(
        f"lock = SoftReadWriteLock('data', heartbeat={form!r}); lock.acquire_write()", host="there", path=SHADOW
    )
    helpers = children_of(actor.pid)
    assert len(helpers) == FORMS.index(form)
    outages.let(tmp_path, HANGS)
    actor.kill()
    started = time.monotonic()
    for helper in helpers:
        wait_until(lambda helper=helper: has_ended(helper))
    assert time.monotonic() - started < 1 + 4


def test_a_release_is_carried_out_when_the_server_answers_again(path: Path, server: Callable[[str], None]) -> None:
    lock = SoftReadWriteLock(path, heartbeat_interval=10)
    lock.acquire_write()
    server(outages.FAILS)
    lock.release()  # within the lease: no error, for what was done under the lock was guarded
    assert not lock.is_locked
    server(ANSWERS)
    wait_until(lambda: not announcements(path))
