"""Shared holds that are kept between the hits of a loop: who profits, and that nobody else waits for long."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements, wait_until
from nfsrwlock import break_lock
from nfsrwlock.joblib import Memory

pytest.importorskip("joblib")

#: joblib warns of a slow disk, which a busy machine has as well.
pytestmark = pytest.mark.filterwarnings("ignore:Persisting input arguments took")

#: Longer than any pause of a busy machine, so that what these tests see does not hang on its speed.
LONG_S = 10
#: Smaller results are loaded without their lock.
LARGE = 1 << 20


def text(x: int) -> str:
    return str(x) * LARGE


def caching(directory: Path, linger: float = LONG_S, **options: Any) -> Any:
    cached = Memory(directory / "cache", verbose=0, linger=linger, poll_interval=0.05, **options).cache(text)
    for _ in range(2):  # computed, and hit once
        cached(1)
    return cached


def lock_of(cached: Any, x: int = 1) -> Path:
    return Path(cached.store_backend.lock_file((cached.func_id, cached._get_args_id(x))))


def readers(cached: Any) -> list[str]:
    return announcements(lock_of(cached))


def test_the_hold_of_a_hit_is_kept_if_it_is_repeated_and_serves_the_hits_that_follow(tmp_path: Path) -> None:
    cached = caching(tmp_path)
    for _ in range(3):
        assert cached(2) == text(2)
    assert announcements(lock_of(cached, 2)) != [], "it was given back a moment before"
    assert announcements(lock_of(cached, 1)) == [], "an item that was hit once is not held"
    kept = announcements(lock_of(cached, 2))
    for _ in range(5):
        assert cached(2) == text(2)
        assert cached.check_call_in_cache(2)
        assert announcements(lock_of(cached, 2)) == kept


def test_without_a_linger_nothing_is_kept(tmp_path: Path) -> None:
    cached = caching(tmp_path, linger=0)
    for _ in range(5):
        cached(1)
        assert readers(cached) == []


def kept_by_hits(cached: Any) -> list[str]:
    """Hit until a hold is kept, however slow the machine is."""
    kept: list[str] = []

    def hit() -> list[str]:
        cached(1)
        kept[:] = readers(cached)
        return kept

    wait_until(hit)
    return kept


def test_a_kept_hold_ends_by_itself_at_an_age_that_hits_do_not_prolong(tmp_path: Path) -> None:
    cached = caching(tmp_path, linger=1.5)
    kept = kept_by_hits(cached)
    assert wait_until(lambda: cached(1) == text(1) and readers(cached) != kept) < 10
    wait_until(lambda: readers(cached) == [])


def test_a_kept_hold_outlives_its_linger_for_a_hit_that_is_loading(tmp_path: Path) -> None:
    cached = Memory(tmp_path / "cache", verbose=0, linger=1).cache(slow_to_load)
    cached(1)
    for _ in range(5):  # it may end before the slow hit joins it
        kept = kept_by_hits(cached)
        if during(cached, partial(time.sleep, 2)) == kept:
            break
    else:
        pytest.fail("it was released below the hit")
    wait_until(lambda: readers(cached) == [])


class SlowToLoad:
    meanwhile: Callable[[], None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return load_slowly, (bytes(LARGE),)


def load_slowly(ballast: bytes) -> SlowToLoad:
    if SlowToLoad.meanwhile is not None:
        SlowToLoad.meanwhile()
    return SlowToLoad()


def slow_to_load(x: int) -> SlowToLoad:
    return SlowToLoad()


def during(cached: Any, work: Callable[[], None]) -> list[str]:
    """Do something while a hit loads; return what is announced then."""
    seen: list[str] = []

    def do() -> None:
        work()
        seen.extend(readers(cached))

    SlowToLoad.meanwhile = do
    try:
        cached(1)
    finally:
        SlowToLoad.meanwhile = None
    return seen


def test_its_own_process_does_not_remove_what_a_thread_of_it_loads_under_a_kept_hold(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, linger=LONG_S)
    cached = memory.cache(slow_to_load)
    for _ in range(3):
        cached(1)

    def clear() -> None:
        cleaner = threading.Thread(target=memory.clear, kwargs={"warn": False})
        cleaner.start()
        cleaner.join()

    assert len(during(cached, clear)) == 1
    assert len(list(tmp_path.rglob("output.pkl"))) == 1
    assert readers(cached) == [], "nobody joins a hold that is in somebody's way"
    memory.clear(warn=False)
    assert list(tmp_path.rglob("output.pkl")) == []


def test_a_writer_elsewhere_gets_its_turn_although_hits_go_on_and_on(stage: Stage, tmp_path: Path) -> None:
    cached = caching(tmp_path, linger=1)
    ended = threading.Event()
    hits: list[float] = []

    def hit() -> None:
        while not ended.is_set():
            cached(1)
            hits.append(time.monotonic())

    threads = [threading.Thread(target=hit) for _ in range(3)]
    writer = stage.actor(f"lock = SoftReadWriteLock({str(lock_of(cached))!r}, poll_interval=0.05)")
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(hits) > 10)
        for _ in range(2):
            before = len(hits)
            writer.do("lock.acquire_write(timeout=20); lock.release()")
            wait_until(lambda before=before: len(hits) > before + 10)  # type: ignore[misc]
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("ask", ["call", "clear", "reduce_size"])
def test_its_own_process_never_waits_for_a_kept_hold(tmp_path: Path, ask: str) -> None:
    memory = Memory(tmp_path / "cache", verbose=0)
    cached = caching(tmp_path)
    cached(1)
    assert len(readers(cached)) == 1
    started = time.monotonic()
    asked: Callable[[], Any] = {
        "call": lambda: cached.call(1),
        "clear": lambda: memory.clear(warn=False),
        "reduce_size": lambda: memory.reduce_size(items_limit=0),
    }[ask]
    asked()
    assert time.monotonic() - started < LONG_S / 2
    assert list((tmp_path / "cache").rglob("output.pkl")) == [] or ask == "call"
    assert readers(cached) == []


def test_another_process_finds_what_is_kept_in_use(stage: Stage, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    cleaner = stage.actor(
        "from pathlib import Path; from nfsrwlock.joblib import Memory; "
        f"memory = Memory(Path({str(store)!r}), verbose=0); pass"
    )
    cached = caching(tmp_path)
    kept_by_hits(cached)
    cleaner.do("memory.clear(warn=False)")
    assert len(list(store.rglob("output.pkl"))) == 1


def test_with_one_lock_for_the_function_its_hits_share_a_hold(tmp_path: Path) -> None:
    cached = caching(tmp_path, granularity="function")
    kept = set()
    for x in (2, 3):
        assert cached(x) == text(x)
    for x in (1, 2, 3):
        assert cached(x) == text(x)
        kept |= set(readers(cached))
    assert len(kept) == 1
    assert cached(4) == text(4), "and what is new is computed at once"


def test_a_kept_hold_that_was_lost_serves_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"heartbeat_interval": 0.1, "stale_threshold": 20}
    cached = Memory(tmp_path / "cache", verbose=0, linger=LONG_S, **options).cache(slow_to_load)
    for _ in range(3):
        cached(1)
    assert len(readers(cached)) == 1
    break_lock(lock_of(cached), force=True)
    wait_until(lambda: "somebody evicted this holder" in caplog.text, timeout=LONG_S / 2)
    assert readers(cached) == []
    assert len(during(cached, lambda: None)) == 1, "loaded under a hold of its own"
    assert len(readers(cached)) == 1, "which is kept in its turn"


def test_a_forked_child_has_no_part_in_its_parents_kept_hold(tmp_path: Path) -> None:
    cached = caching(tmp_path)
    cached(1)
    kept = readers(cached)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        seen = pool.apply(hits_of_a_child, (cached,))
        assert [len(names) for names in seen] == [1, 2], "none of its own at first, then one beside its parent's"
        pool.close()
        pool.join()
    assert readers(cached) == kept, "the child gave back its own at its end, and nothing else"
    cached(1)
    assert readers(cached) == kept


def hits_of_a_child(cached: Any) -> list[list[str]]:
    seen = []
    for _ in range(2):
        assert cached(1) == text(1)
        seen.append(readers(cached))
    return seen


def test_a_process_that_ends_gives_back_what_it_has_kept(tmp_path: Path) -> None:
    code = (
        "import os, time, functions; from nfsrwlock.joblib import Memory\n"
        f"cached = Memory('cache', verbose=0, linger={LONG_S}).cache(functions.large)\n"
        "for _ in range(3): cached('a')\n"
        "print(sum(name.startswith('read.') for _, names, _ in os.walk('.') for name in names))\n"
        "print(time.monotonic())"
    )
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    command = [sys.executable, "-W", "ignore:Persisting input arguments took", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    ended = time.monotonic()
    kept, at_its_last_line = done.stdout.split()
    assert (kept, done.stderr) == ("1", "")
    assert ended - float(at_its_last_line) < LONG_S / 2, "its end does not wait for the linger"
    assert list(tmp_path.rglob("read.*")) == []


FUNCTIONS = f"""
def large(x):
    return x * {LARGE}
"""

INTERRUPTED = """
import random, signal, time
from functions import large
from nfsrwlock.joblib import Memory

class Interrupt(BaseException):
    pass

def interrupt(*_):
    if armed:
        raise Interrupt

armed = False
signal.signal(signal.SIGALRM, interrupt)
cached = Memory("cache", verbose=0, linger=0.05).cache(large)
interrupts = 0
began = time.monotonic()
while time.monotonic() - began < 4 or (interrupts <= 20 and time.monotonic() - began < 40):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.random() * 0.004 + 1e-5)
        for x in "ababab":
            assert cached(x) == large(x)
        armed = False
    except Interrupt:
        interrupts += 1
    armed = False
assert interrupts > 20, interrupts
time.sleep(1)
"""


def test_interrupts_leave_no_hold_behind_and_no_item_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.rglob("read.*"), *tmp_path.rglob("write.*")] == []


def test_no_more_than_a_few_dozen_are_kept_at_a_time(tmp_path: Path) -> None:
    cached = caching(tmp_path)
    # Computed first, so that the hits come soon enough after each other, however slow the machine is.
    for _ in range(3):
        for x in range(100):
            assert cached(x) == text(x)
    assert cached(99) == text(99)
    assert 50 < len(list(tmp_path.rglob("read.*"))) <= 64, "some may be those of other tests"


@pytest.mark.parametrize("linger", [-1, float("nan"), 60, True, "1"])
def test_a_wrong_linger_is_told(tmp_path: Path, linger: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="linger must be"):
        Memory(tmp_path, linger=linger)
