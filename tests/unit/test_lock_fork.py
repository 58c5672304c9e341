"""
Forks: what a child inherits is void, and nothing that it does with it reaches the disk; what it makes itself is good.

The children here are left to end as programs do: with ``sys.exit``, which runs what is registered for the exit, too.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from actors import Actor, Raised, Stage, announcements, beat_of, children_of, in_forked_child, wait_until
from nfsrwlock import AsyncSoftReadWriteLock, HoldStatus, LockNotHeldError, LockSet, SoftReadWriteLock, Timeout

FORMS = ["thread", "process"]


def single(path: Path) -> SoftReadWriteLock:
    return SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02)


def forked(actor: Actor, code: str) -> int:
    """Let the actor fork a child that runs ``code`` and exits as a program does; return the child's exit code."""
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    actor.do(f"child = os.fork()\nif child == 0:\n{indented}    sys.exit(0)\n")
    return actor.do("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_childs_exit_leaves_the_parents_hold_alone(stage: Stage, path: Path, mode: str, form: str) -> None:
    actor = stage.actor(f"lock = SoftReadWriteLock('data', heartbeat={form!r}); lock.acquire_{mode}()")
    before = announcements(path)
    assert len(before) == 1
    assert forked(actor, "pass") == 0
    assert forked(actor, "lock.release(); lock.release(force=True); lock.close(); del lock; gc.collect()") == 0
    assert announcements(path) == before
    actor.do("lock.check(); lock.release()")
    assert announcements(path) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_parents_heartbeat_goes_on_after_a_fork(stage: Stage, path: Path, form: str) -> None:
    actor = stage.actor(f"lock = SoftReadWriteLock('data', heartbeat_interval=0.2, heartbeat={form!r})")
    actor.do("lock.acquire_write()")
    assert forked(actor, "pass") == 0
    seen = beat_of(path) or 0
    wait_until(lambda: (beat_of(path) or 0) >= seen + 3)
    actor.do("lock.check()")


@pytest.mark.parametrize("form", FORMS)
def test_a_child_has_a_heartbeat_and_a_name_of_its_own(stage: Stage, path: Path, form: str) -> None:
    settings = f"heartbeat_interval=0.2, stale_threshold=2.5, heartbeat={form!r}"
    actor = stage.actor(f"lock = SoftReadWriteLock('other', {settings}); lock.acquire_write()")
    watcher = stage.actor(f"lock = SoftReadWriteLock('data', {settings})", host="elsewhere")
    actor.do("begin, end = os.pipe()")
    actor.do(
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    lock = SoftReadWriteLock('data', {settings})\n"
        "    lock.acquire_write()\n"
        "    os.read(begin, 1)\n"
        "    lock.check()\n"
        "    sys.exit(0)\n"
    )
    child = actor.do("child")
    wait_until(lambda: announcements(path))
    assert f".{child}." in announcements(path)[0]
    with pytest.raises(Raised, match="Timeout"):  # well beyond the lease: somebody must have been beating
        watcher.do("lock.acquire_write(4)")
    actor.do("os.write(end, b'.')")
    assert actor.do("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])") == 0
    assert announcements(path) == []
    actor.do("lock.check()")


def test_a_child_does_not_start_or_stop_the_parents_helper(stage: Stage) -> None:
    actor = stage.actor("lock = SoftReadWriteLock('data', heartbeat='process'); lock.acquire_write()")
    (helper,) = children_of(actor.pid)
    assert forked(actor, "lock.release(); SoftReadWriteLock('other', heartbeat='process').acquire_write(); pass") == 0
    assert children_of(actor.pid) == [helper]


def test_the_holder_and_its_child_exclude_each_other(path: Path) -> None:
    def try_to_write() -> str:
        try:
            with single(path).write_lock(0.1):
                return "got it"
        except Timeout as error:
            return str(error)

    with single(path).read_lock():
        assert f"pid {os.getpid()}" in in_forked_child(try_to_write)
    assert in_forked_child(try_to_write) == "got it"


def test_an_inherited_hold_shows_as_free(path: Path) -> None:
    lock, several = single(path), LockSet(read=[path])

    def look() -> list[object]:
        with pytest.raises(LockNotHeldError):
            lock.check()
        with pytest.raises(LockNotHeldError):
            several.check()
        return [lock.status, lock.is_locked, lock.generation, lock.compromise, lock.lease_remaining, several.status]

    with lock.read_lock(), several:
        assert in_forked_child(look) == ["free", False, None, None, None, "free"]
        assert lock.status is HoldStatus.HELD


def test_an_inherited_set_of_locks_can_be_left_in_the_child(path: Path) -> None:
    several = LockSet(write=[path, f"{path}2"])

    def leave() -> None:
        with pytest.raises((RuntimeError, Timeout)):
            several.acquire(0)
        several.__exit__(None, None, None)

    with several:
        in_forked_child(leave)
        assert len(announcements(path)) == len(announcements(f"{path}2")) == 1
        several.check()


def test_a_lock_for_tasks_is_void_in_the_child_and_a_new_one_works(path: Path) -> None:
    def in_child() -> str:
        own = AsyncSoftReadWriteLock(path, poll_interval=0.02)

        async def use() -> str:
            await lock.release(force=True)
            await lock.close()
            with pytest.raises(RuntimeError, match="fork"):
                await lock.acquire_read()
            async with own.read_lock(timeout=5):
                found = str(lock.status), str(own.status)
            with pytest.raises(Timeout):
                await own.acquire_write(0.1)
            return "/".join(found)

        return asyncio.run(use())

    lock = AsyncSoftReadWriteLock(path)

    with asyncio.Runner() as runner:
        hold = runner.run(lock.acquire_read())  # the fork comes while no loop is running, as it should
        assert in_forked_child(in_child) == "free/held"
        hold.check()
        assert len(announcements(path)) == 1


def test_a_fork_while_another_thread_waits_harms_neither_process(stage: Stage, path: Path) -> None:
    # The other thread may hold any lock of this package in memory at that moment; the child has no such thread.
    actor = stage.actor("lock = SoftReadWriteLock('data', poll_interval=0.005)")
    with single(path).write_lock():
        actor.do("thread = threading.Thread(target=lock.acquire_read); thread.start()")
        for _ in range(30):
            code = "with SoftReadWriteLock('other').write_lock(timeout=10): pass\nlock.release(force=True)"
            assert forked(actor, code) == 0
    actor.do("thread.join(20)")
    assert actor.do("lock.is_locked")


def test_a_fork_in_the_middle_of_an_acquire_leaves_the_parents_announcement_alone(stage: Stage, path: Path) -> None:
    # `on_wait` is the user's code, and may start a process. Its end runs through the acquire in the child.
    actor = stage.actor(
        "children = []\n"
        "def on_wait(_):\n"
        "    if not children:\n"
        "        children.append(os.fork())\n"
        "        if children == [0]:\n"
        "            sys.exit(0)\n"
        "        open('forked', 'w').close()\n"
        "lock = SoftReadWriteLock('data', poll_interval=0.05)\n"
    )
    with single(path).read_lock():
        actor.tell("lock.acquire_write(30, on_wait=on_wait) and None")
        wait_until(lambda: len(announcements(path)) == 2)
        before = announcements(path)
        wait_until(lambda: path.with_name("forked").exists() and not children_of(actor.pid))
        assert announcements(path) == before
    actor.answer()
    actor.do("lock.check()")
    assert actor.do("os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])") == 0


def test_nobody_inherits_a_descriptor_of_a_lock_directory(stage: Stage) -> None:
    # One that is kept open would keep a file system from being unmounted, and an NFS directory from being removed.
    actor = stage.actor(
        "lock = SoftReadWriteLock('data', heartbeat_interval=0.1); lock.acquire_write(); time.sleep(0.5)"
    )
    look = (
        "left = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') "
        "if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "assert not any('.rwlock' in name for name in left), left"
    )
    assert forked(actor, look) == 0
    actor.do("import subprocess")
    assert ".rwlock" not in actor.do(
        "subprocess.check_output(['ls', '-l', '/proc/self/fd'], text=True, close_fds=False)"
    )


def test_nobody_inherits_a_descriptor_that_is_open_just_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as a call takes, and while a file server hangs that is long, another thread may fork.
    under_way, go_on = threading.Event(), threading.Event()
    rename = os.rename

    def slow_rename(*args: Any, **kwargs: Any) -> None:
        under_way.set()
        assert go_on.wait(30)
        rename(*args, **kwargs)

    def look() -> list[str]:
        found = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [name for fd in found if os.path.lexists(fd) and ".rwlock" in (name := os.readlink(fd))]

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("reads /proc")
    with SoftReadWriteLock(path, heartbeat_interval=0.1, stale_threshold=60, is_singleton=False).write_lock():
        monkeypatch.setattr(os, "rename", slow_rename)
        try:
            assert under_way.wait(30)  # a heartbeat
            assert look() != []
            assert in_forked_child(look) == []
        finally:
            go_on.set()


def test_forks_of_many_threads_at_once_release_nothing(stage: Stage, path: Path) -> None:
    actor = stage.actor("lock = SoftReadWriteLock('data'); lock.acquire_read()")
    # One more thread is nearly always inside of the lock object, whose state in memory is guarded by another lock.
    actor.do("threading.Thread(target=lambda: [lock.compromise for _ in iter(int, 1)], daemon=True).start()")
    actor.do(
        "def fork():\n"
        "    for _ in range(10):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            try:\n"
        "                lock.compromise, lock.status\n"
        "                lock.release(force=True)\n"
        "            finally:\n"
        "                os._exit(0)\n"
        "        os.waitpid(child, 0)\n"
        "threads = [threading.Thread(target=fork) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join(30)\n"
    )
    actor.do("lock.check()")
    assert len(announcements(path)) == 1


def test_a_fork_while_the_heartbeat_is_under_way_harms_no_new_lock(path: Path) -> None:
    # Beats are sent from other threads, whose locks in memory the child must not wait for.
    lock = SoftReadWriteLock(path, heartbeat_interval=0.02, stale_threshold=20, is_singleton=False)

    def use_another_lock() -> bool:
        other = SoftReadWriteLock(f"{path}2", heartbeat_interval=0.02, stale_threshold=5)
        with other.write_lock(timeout=10):
            beating = threading.Event()
            beating.wait(0.1)
            other.check()
        return True

    with lock.write_lock():
        for _ in range(20):
            assert in_forked_child(use_another_lock)
        lock.check()
