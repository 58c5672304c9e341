"""The threads for calls to a file server that may hang: as many as there are calls, and no longer than needed."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from actors import Stage, wait_until
from nfsrwlock_core.system.workers import Workers


def burst(pool: Workers, calls: int) -> list[threading.Thread]:
    """Make so many calls at one time; return the threads that they were made in."""
    go_on = threading.Event()

    def call() -> threading.Thread:
        assert go_on.wait(60)
        return threading.current_thread()

    futures = [pool.submit(call) for _ in range(calls)]
    try:
        assert pool.call(lambda: 4711, 60) == 4711, "a call that hangs delays no other"
        assert not any(future.done() for future in futures)
    finally:
        go_on.set()
    return [future.result(60) for future in futures]


def test_calls_at_one_time_have_a_thread_each_and_later_ones_use_them_again() -> None:
    pool = Workers()
    threads = burst(pool, 20)
    assert len(set(threads)) == 20
    wait_until(lambda: pool.submit(threading.current_thread).result(60) in threads)


def test_a_call_whose_whole_process_stood_still_past_its_time_has_not_failed(stage: Stage) -> None:
    """Its thread had no time either."""
    actor = stage.actor("import os, time; from nfsrwlock_core.system import workers")
    actor.do("def work(): open('begun', 'w').close(); [time.sleep(0.02) for _ in range(3)]; return 4711")
    for _ in range(3):
        actor.tell("workers.call(work, 0.5)")
        wait_until((stage.directory / "begun").exists, pause=0.001)
        actor.stop()
        time.sleep(0.7)
        actor.go_on()
        assert actor.answer() == 4711
        actor.do("os.unlink('begun')")


def test_an_idle_thread_keeps_nothing_of_its_calls() -> None:
    class Big:
        def use(self) -> threading.Thread:
            return threading.current_thread()

    pool = Workers()
    for _ in range(2):  # the thread's first call and a later one
        big = Big()
        gone = weakref.ref(big)
        thread = pool.submit(big.use).result(60)
        del big
        wait_until(lambda gone=gone: gone() is None)
        assert thread.is_alive()


def test_a_call_that_finds_no_thread_waits_for_one_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, go_on = Workers(), threading.Event()
    busy = pool.submit(go_on.wait, 60)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    late: list[int] = []
    with pytest.raises(TimeoutError, match="no thread can be started"):
        pool.call(lambda: late.append(1), 0.05)
    queued = pool.enqueue(late.append, 2)
    assert pool.submit(threading.current_thread).result(0) is threading.current_thread()
    go_on.set()
    queued.result(60)
    assert busy.result(60)
    assert late == [1, 2]


def test_at_the_interpreters_exit_a_call_is_made_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Workers().call(threading.current_thread, 1) is threading.current_thread()


def test_the_threads_of_a_burst_end_although_calls_go_on() -> None:
    pool = Workers()
    threads = burst(pool, 30)

    def is_over() -> bool:
        pool.call(lambda: time.sleep(0.01), 60)
        return sum(thread.is_alive() for thread in threads) <= 3

    wait_until(is_over, pause=0.02)


def test_all_threads_end_when_nothing_is_called() -> None:
    threads = burst(Workers(), 3)
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
