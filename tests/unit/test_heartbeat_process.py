"""
Heartbeats from a helper process: for programs that hold the GIL, that are stopped, and that are killed.

Rivals call their host differently, so that between them and the holder only the lease counts. Leases last three
seconds, with eight heartbeats in each: what is measured is the engine, and a machine may stand still for a second.
Where nobody waits for a lease to run out it is longer, because a helper that says nothing for half of it is replaced.
"""

from __future__ import annotations

import fcntl
import os
import queue
import select
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

import outages
from actors import (
    PATIENCE_S,
    Actor,
    Raised,
    Stage,
    announcements,
    beat_of,
    children_of,
    has_ended,
    process_state,
    wait_until,
)
from nfsrwlock import SoftReadWriteLock
from nfsrwlock_core.holding import keeper
from nfsrwlock_core.holding.heartbeat_main import Beater
from nfsrwlock_core.holding.heartbeat_process import Helper
from nfsrwlock_core.holding.heartbeat_thread import Scheduler

LEASE_S = 3.0
LONG_S = 60.0


def lock(
    name: str = "data", form: str = "process", interval_s: float = LEASE_S / 8, *, lease_s: float = LEASE_S
) -> str:
    return (
        f"SoftReadWriteLock({name!r}, heartbeat={form!r}, heartbeat_interval={interval_s}, stale_threshold={lease_s}, "
        "poll_interval=0.05)"
    )


def holder(stage: Stage, lease_s: float = LEASE_S) -> Actor:
    return stage.actor(f"lock = {lock(lease_s=lease_s)}; proxy = lock.acquire_write()", host="there")


def helper_of(actor: Actor, *, but: int = 0) -> int:
    # The actor's one child beside another one. One that is being replaced is there until it has been killed.
    found: list[int] = []

    def is_one() -> bool:
        found[:] = {*children_of(actor.pid)} - {but}
        return len(found) == 1

    wait_until(is_one)
    return found[0]


def assert_nobody_gets_in(stage: Stage, seconds: float) -> None:
    rival = stage.actor(f"lock = {lock(form='thread')}", host="here")
    with pytest.raises(Raised, match="Timeout"):
        rival.do(f"lock.acquire_read({seconds})", timeout=seconds + 30)


# -- while the program cannot run -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there is no GIL")
def test_nobody_gets_in_while_the_gil_is_held_for_three_leases(stage: Stage) -> None:
    # The same with a thread shows that this test can fail: the thread starves, and the lock is taken away.
    guarded = stage.actor(f"lock = {lock('guarded')}; proxy = lock.acquire_write()", host="there")
    starved = stage.actor(f"lock = {lock('starved', 'thread')}; proxy = lock.acquire_write()", host="there")
    rivals = {name: stage.actor(f"lock = {lock(name, 'thread')}", host="here") for name in ("guarded", "starved")}
    for actor in (guarded, starved):
        # A call that does not release the GIL, like those of many an extension module.
        actor.tell("(__import__('ctypes').PyDLL(None).sleep(10), lock.check(), lock.status)")
    rivals["guarded"].tell("lock.acquire_write(9.5)")
    rivals["starved"].do("lock.acquire_write(9.5)")
    with pytest.raises(Raised, match="Timeout"):
        rivals["guarded"].answer()
    assert guarded.answer() == [0, None, "held"]
    with pytest.raises(Raised, match=r"LockLostError|LeaseExpiredError"):
        starved.answer()
    guarded.do("proxy.__exit__(None, None, None)")
    with pytest.raises(Raised, match="LockLostError"):
        starved.do("proxy.__exit__(None, None, None)")


def test_beats_go_on_while_a_stopped_program_reads_none_of_the_reports(stage: Stage, path: Path) -> None:
    # A socket takes a few hundred unread reports; a job that is suspended over night makes more.
    actor = stage.actor(f"lock = {lock(interval_s=0.005)}; proxy = lock.acquire_write()", host="there")
    actor.stop()
    wait_until(lambda: (beat_of(path) or 0) > 600, timeout=80)
    assert_nobody_gets_in(stage, 1.5 * LEASE_S)
    actor.tell("(lock.check(), lock.status)")
    actor.go_on()
    assert actor.answer() == [None, "held"]
    actor.do("proxy.__exit__(None, None, None)")


def test_what_the_helper_has_said_counts_as_soon_as_somebody_asks(stage: Stage) -> None:
    # While the GIL is held nothing can be read. The next line of the program must not find the lease run out.
    actor = holder(stage)
    actor.do("import ctypes; libc = ctypes.PyDLL(None)")
    asked = "(lock.status, lock.is_locked, lock.compromise, lock.lease_remaining > 0)"
    assert actor.do(f"(libc.usleep({(LEASE_S + 0.5) * 1e6:.0f}), *{asked})") == [0, "held", True, None, True]


# -- when the program ends --------------------------------------------------------------------------------------------


def seconds_until(condition: Callable[[], bool]) -> float:
    return wait_until(condition, pause=0.005)


@pytest.mark.alone
def test_after_a_kill_the_helper_removes_the_markers_and_ends_within_a_second(stage: Stage, path: Path) -> None:
    # The best of three, for the machine may have other things to do.
    took = []
    for attempt in range(3):
        names = [f"data{attempt}", f"other{attempt}"]
        actor = stage.actor(f"locks = [{lock(names[0])}, {lock(names[1], interval_s=1)}]", host="there")
        actor.do("locks[0].acquire_write(); locks[1].acquire_read()")
        helper = helper_of(actor)
        wait_until(lambda name=names[0]: beat_of(path.with_name(name)) is not None)
        started = time.monotonic()
        actor.kill()
        seconds_until(lambda helper=helper: has_ended(helper))
        took.append(time.monotonic() - started)
        assert [announcements(path.with_name(name)) for name in names] == [[], []]
    assert min(took) < 1.0


def test_the_markers_go_only_when_the_files_of_the_killed_program_are_closed(stage: Stage, path: Path) -> None:
    # As long as one is open, data that was written to it may still be on its way. A lock of the kernel tells.
    for attempt in range(5):
        data = path.with_name(f"data{attempt}")
        actor = stage.actor(f"lock = {lock(data.name)}; lock.acquire_write()", host="there")
        actor.do("import fcntl; files = [open(os.devnull) for _ in range(900)]")
        actor.do(f"last = open({data.name!r}, 'w'); fcntl.flock(last, fcntl.LOCK_EX)")
        os.kill(actor.pid, signal.SIGKILL)
        while announcements(data):
            pass
        with open(data) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("forking", ["os", "libc"])
def test_forked_children_that_inherit_its_socket_do_not_keep_the_helper_alive(
    stage: Stage, path: Path, forking: str
) -> None:
    # A fork by an extension module runs none of the hooks that close what a child must not have.
    actor = holder(stage)
    actor.do("import ctypes; libc = ctypes.PyDLL(None)")
    actor.do(f"child = {forking}.fork()\nif child == 0:\n    libc.sleep(60)\n    libc._exit(0)\n")
    child, helper = actor.do("child"), helper_of(actor, but=actor.do("child"))
    actor.kill()
    try:
        assert seconds_until(lambda: has_ended(helper)) < 10
        assert announcements(path) == []
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_program_that_replaces_itself_keeps_its_lock_until_it_ends(stage: Stage, path: Path) -> None:
    actor = holder(stage)
    helper = helper_of(actor)
    actor.tell("os.execv('/bin/sleep', ['sleep', '60'])")
    wait_until(lambda: Path(f"/proc/{actor.pid}/comm").read_text() == "sleep\n")
    assert_nobody_gets_in(stage, 1.5 * LEASE_S)
    actor.kill()
    wait_until(lambda: has_ended(helper))
    assert announcements(path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_signals_of_a_terminal_are_not_for_the_helper(stage: Stage, path: Path, number: int) -> None:
    actor = holder(stage, LONG_S)
    helper = helper_of(actor)
    assert os.getpgid(helper) != os.getpgid(actor.pid)
    wait_until(lambda: beat_of(path) is not None)  # it has settled in
    os.kill(helper, number)
    actor.do("time.sleep(0.3); lock.check()")
    wait_until(lambda: process_state(helper) != "T")
    assert helper_of(actor) == helper  # one that was stopped for long is replaced


@pytest.mark.parametrize("form", ["thread", "process"])
def test_no_thread_and_no_process_outlives_the_last_release_by_five_seconds(
    stage: Stage, path: Path, form: str
) -> None:
    # One that waited, so that every kind of thread was there.
    actor = stage.actor(f"lock = {lock(form=form)}")
    rival = stage.actor(f"lock = {lock(form=form)}; lock.acquire_write()")
    actor.tell("lock.acquire_write(20)")
    wait_until(lambda: len(announcements(path)) == 2)
    rival.do("lock.release(); left = threading.active_count()")
    actor.answer()
    wait_until(lambda: beat_of(path) is not None)
    assert actor.do("threading.active_count()") > 1
    assert rival.do("left") > 1
    actor.do("lock.release()")
    released = time.monotonic()
    for who in (actor, rival):
        wait_until(lambda who=who: who.do("threading.active_count()") == 1 and not children_of(who.pid))
    assert time.monotonic() - released < 5
    actor.do("lock.acquire_write(); time.sleep(0.5); lock.check(); lock.release()")  # and it all begins anew


def test_the_helper_ends_with_a_program_that_ends_by_itself(stage: Stage, path: Path) -> None:
    actor = holder(stage)
    helper = helper_of(actor)
    assert actor.leave() == 0
    assert announcements(path) == []
    assert seconds_until(lambda: has_ended(helper)) < 5


# -- when the helper itself is in trouble -----------------------------------------------------------------------------


def test_a_helper_that_is_killed_is_replaced_and_the_hold_goes_on(stage: Stage, path: Path) -> None:
    actor = holder(stage)
    first = helper_of(actor)
    seen = beat_of(path) or 0
    os.kill(first, signal.SIGKILL)
    helper_of(actor, but=first)
    assert_nobody_gets_in(stage, 1.5 * LEASE_S)
    actor.do("lock.check()")
    assert (beat_of(path) or 0) > seen
    actor.do("proxy.__exit__(None, None, None)")


def test_a_hold_need_not_wait_for_a_helper_that_is_slow_to_start(stage: Stage, path: Path) -> None:
    # The first word of a helper is missed after 1.5 intervals, which are 112 s; the next helpers need 300 s to start.
    actor = stage.actor(f"lock = {lock(interval_s=75, lease_s=600)}; proxy = lock.acquire_write()", host="there")
    helper = helper_of(actor)
    assert beat_of(path) is None
    actor.do("from nfsrwlock_core.holding import heartbeat_process as module")
    actor.do("module._START = 'import time; time.sleep(300)'")
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: beat_of(path) is not None, timeout=60)
    assert actor.do("lock.lease_remaining") > 600 * 0.9 - 65
    actor.do("proxy.__exit__(None, None, None)")
    assert announcements(path) == []


def test_any_number_of_helpers_that_have_beaten_are_replaced(stage: Stage, path: Path) -> None:
    # As in a hold of weeks, on a machine that stands still now and then.
    actor = holder(stage)
    actor.do("from nfsrwlock_core.holding import keeper")
    for _ in range(8):
        helper, seen = helper_of(actor), beat_of(path) or 0
        wait_until(lambda seen=seen: (beat_of(path) or 0) > seen)
        # What was killed before it could say that it had beaten counts as one that never has.
        wait_until(lambda: (actor.do("keeper.holds()[0].participant.beats") or 0) >= (beat_of(path) or 0))
        os.kill(helper, signal.SIGKILL)
        helper_of(actor, but=helper)
    actor.do("lock.check(); proxy.__exit__(None, None, None)")


def test_when_no_helper_lives_long_a_thread_takes_over(stage: Stage) -> None:
    actor = holder(stage)
    killed = set()

    def kill_another_one() -> bool:
        for helper in children_of(actor.pid):
            with suppress(ProcessLookupError):  # reaped since
                os.kill(helper, signal.SIGKILL)
            killed.add(helper)
        # Whoever listens to a helper starts the next one before he ends.
        return not actor.do("[thread for thread in threading.enumerate() if thread.name == 'nfsrwlock-helper']")

    wait_until(kill_another_one)
    assert len(killed) > 1
    assert children_of(actor.pid) == []
    assert_nobody_gets_in(stage, 1.5 * LEASE_S)
    actor.do("lock.check(); proxy.__exit__(None, None, None)")


def test_where_no_helper_can_be_started_a_thread_beats(stage: Stage) -> None:
    actor = stage.actor(f"sys.executable = '/nonexistent'; lock = {lock()}; proxy = lock.acquire_write()", host="there")
    assert children_of(actor.pid) == []
    assert_nobody_gets_in(stage, 1.5 * LEASE_S)
    actor.do("lock.check(); proxy.__exit__(None, None, None)")


def test_a_helper_that_is_stopped_does_not_hang_a_release(stage: Stage, path: Path) -> None:
    actor = holder(stage)
    helper = helper_of(actor)
    stop(helper)
    started = time.monotonic()
    actor.do("lock.release()")
    assert time.monotonic() - started < 10
    assert announcements(path) == []
    wait_until(lambda: has_ended(helper))


def test_a_successor_does_not_take_an_unheard_heartbeat_for_its_own(stage: Stage, path: Path) -> None:
    # The helper is stopped right after its beat has arrived, before it could say so. Peers have watched it since then.
    actor = stage.actor(f"lock = {lock(interval_s=1.0)}; lock.acquire_write()", host="there")
    actor.do("import nfsrwlock_core.holding.hold; participant = lock._held.hold.participant")
    helper = helper_of(actor)
    while True:
        wait_until(lambda: beat_of(path) is not None and actor.do("participant.beats") == beat_of(path))
        stop(helper)
        (announcement,) = announcements(path)
        known, sent = actor.do("participant.beats"), time.clock_gettime(time.CLOCK_BOOTTIME)
        directory = path.with_name("data.rwlock") / announcement
        try:
            (directory / f"beat.{known}").rename(directory / f"beat.{known + 1}")
            break
        except FileNotFoundError:  # it had just beaten when it was stopped
            os.kill(helper, signal.SIGCONT)
    heard, renewed = actor.do(f"while participant.beats == {known}: time.sleep(0.001)\n") or actor.do(
        "[participant.beats, participant.lease.renewed]"
    )
    assert heard > known + 1 or renewed < sent
    assert helper_of(actor) != helper
    actor.do("lock.check(); lock.release()")


def stop(helper: int) -> None:
    os.kill(helper, signal.SIGSTOP)
    wait_until(lambda: process_state(helper) == "T")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_helper_that_cannot_hear_of_a_new_hold_is_replaced_before_the_lease_ends(
    stage: Stage, path: Path, number: int
) -> None:
    # Nothing is waited for at the grant, so it is the missing word of a first beat that tells.
    lease_s = 4.0
    mine, other = lock(interval_s=lease_s / 8, lease_s=lease_s), lock("other", interval_s=1, lease_s=lease_s)
    actor = stage.actor(f"other = {other}; other.acquire_read(); lock = {mine}", host="there")
    first = helper_of(actor)
    actor.do(f"os.kill({first}, {number}); proxy = lock.acquire_write()")
    assert_nobody_gets_in(stage, 1.5 * lease_s)
    actor.do("lock.check(); other.check()")
    assert helper_of(actor) != first
    actor.do("proxy.__exit__(None, None, None)")
    assert announcements(path) == []


def test_a_release_waits_for_a_beat_that_is_under_way(stage: Stage, path: Path) -> None:
    actor = stage.actor(f"lock = {lock(interval_s=0.5, lease_s=LONG_S)}; lock.acquire_write()", path=outages.SHADOW)
    outages.let(path.parent, outages.HANGS)
    wait_until(lambda: outages.hanging_calls(path.parent) == 1)
    actor.tell("lock.release()")
    time.sleep(0.4)
    assert outages.hanging_calls(path.parent) == 1  # the beat's; the release has sent nothing yet
    outages.let(path.parent, outages.ANSWERS)
    assert actor.answer() is None
    assert announcements(path) == []


@pytest.mark.alone
def test_beats_that_come_after_the_release_leave_nothing_and_alarm_nobody(stage: Stage, path: Path) -> None:
    # The helper learns too late of twenty releases: it is stopped then, and goes on when all the beats are due.
    names = [f"data{number}" for number in range(20)]
    actor = stage.actor(
        "lost = []\n"
        f"locks = [SoftReadWriteLock(name, heartbeat='process', heartbeat_interval=1, on_compromise=lost.append) "
        f"for name in {names}]\n"
        f"other = {lock('other', interval_s=0.6)}; other.acquire_read()\n"
    )
    helper = helper_of(actor)
    wait_until(lambda: beat_of(path.with_name("other")) is not None)
    actor.do("for lock in locks: lock.acquire_write()\n")
    time.sleep(0.3)  # the helper takes them over
    stop(helper)
    started = time.monotonic()
    actor.do("for lock in locks: lock.release()\n")
    assert time.monotonic() - started < 0.5
    time.sleep(0.7)
    os.kill(helper, signal.SIGCONT)
    actor.do("time.sleep(0.5); other.check()")
    assert actor.do("[lost, other.status]") == [[], "held"]
    assert [os.listdir(path.with_name(f"{name}.rwlock")) for name in names] == [["gen.1"]] * len(names)


@pytest.mark.parametrize("interval_s", [30.0, 0.01])
def test_thousands_of_quick_holds_are_heard_of_or_not_and_nothing_is_left(
    stage: Stage, path: Path, interval_s: float
) -> None:
    # With the short interval beats are due all the time, and releases cross them.
    actor = stage.actor(
        "lost = []\n"
        f"locks = [SoftReadWriteLock(f'data{{n}}', heartbeat='process', heartbeat_interval={interval_s}, "
        "stale_threshold=90, on_compromise=lost.append) for n in range(2)]\n"
        "def cycle(lock):\n"
        "    for n in range(1000):\n"
        "        with lock.write_lock():\n"
        f"            time.sleep(random.choice([0, 0, 0, {min(interval_s, 0.004)}]))\n"
        "other = SoftReadWriteLock('other', heartbeat='process'); other.acquire_read()\n"
    )
    helper = helper_of(actor)
    actor.do(
        "threads = [threading.Thread(target=cycle, args=(lock,)) for lock in locks]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n",
        timeout=100,
    )
    assert helper_of(actor) == helper
    assert actor.do("lost") == []
    for number in range(2):
        (left,) = os.listdir(path.with_name(f"data{number}.rwlock"))
        assert left == "gen.1000"


def test_a_forked_child_has_a_helper_of_its_own_and_leaves_the_parent_s_alone(stage: Stage, path: Path) -> None:
    actor = holder(stage, LONG_S)
    helper = helper_of(actor)
    actor.do(
        "import glob\n"
        "def work():\n"
        f"    mine = {lock('mine', lease_s=LONG_S)}\n"
        "    for _ in range(200):\n"
        "        with mine.write_lock(): pass\n"
        "    mine.acquire_write()\n"
        "    while not glob.glob('mine.rwlock/write.*/beat.*'): time.sleep(0.01)\n"
        "    mine.check(); mine.release()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: work()\n"
        "    except BaseException: os._exit(1)\n"
        "    os._exit(0)\n"
    )
    assert actor.do("os.waitpid(child, 0)[1]") == 0
    assert helper_of(actor) == helper
    seen = beat_of(path)
    wait_until(lambda: beat_of(path) != seen)
    assert announcements(path.with_name("mine")) == []
    actor.do("lock.check(); proxy.__exit__(None, None, None)")


# -- what else a program may do ---------------------------------------------------------------------------------------


def test_one_helper_beats_for_all_locks_and_is_small(stage: Stage, path: Path) -> None:
    actor = stage.actor(f"locks = [{', '.join(lock(f'data{number}') for number in range(20))}]", host="there")
    actor.do("for lock in locks: lock.acquire_read()\n")
    helper = helper_of(actor)
    for number in range(20):
        wait_until(lambda number=number: beat_of(path.with_name(f"data{number}")) is not None)
    rollup = Path(f"/proc/{helper}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    resident = next(int(line.split()[1]) for line in rollup if line.startswith("Rss:"))
    print(f"the helper's memory: {resident / 1024:.1f} MiB resident, {private / 1024:.1f} MiB of it its own")
    assert private < 32 * 1024
    actor.do("for lock in locks: lock.check(); lock.release()\n")
    assert [announcements(path.with_name(f"data{number}")) for number in range(20)] == [[]] * 20


def test_it_works_in_a_program_with_thousands_of_open_files(stage: Stage, path: Path) -> None:
    actor = stage.actor("import resource", host="there")
    actor.do("resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)")
    if actor.do("resource.getrlimit(resource.RLIMIT_NOFILE)[0]") < 2000:
        pytest.skip("this machine does not allow so many")
    actor.do("files = [open(os.devnull) for _ in range(1500)]")
    actor.do(f"lock = {lock(lease_s=LONG_S)}; lock.acquire_write()")
    helper = helper_of(actor)
    wait_until(lambda: (beat_of(path) or 0) > 3)
    assert helper_of(actor) == helper
    actor.do("lock.release()")


def test_it_finds_the_package_after_the_program_has_changed_its_directory(stage: Stage, path: Path) -> None:
    actor = stage.actor(f"lock = {lock(lease_s=LONG_S)}; os.mkdir('elsewhere'); os.chdir('elsewhere')")
    actor.do("sys.path.insert(0, ''); lock.acquire_write()")
    helper = helper_of(actor)
    wait_until(lambda: (beat_of(path) or 0) > 3)
    assert helper_of(actor) == helper


def test_locks_come_and_go_while_others_stay(stage: Stage, path: Path) -> None:
    actor = holder(stage, LONG_S)
    helper = helper_of(actor)
    actor.do(
        "def churn(name):\n"
        f"    other = {lock('NAME', lease_s=LONG_S).replace(repr('NAME'), 'name')}\n"
        "    for _ in range(15):\n"
        "        with other.write_lock():\n"
        "            time.sleep(random.uniform(0, 0.05))\n"
        "threads = [threading.Thread(target=churn, args=(f'other{n}',)) for n in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    assert helper_of(actor) == helper
    actor.do("lock.check(); proxy.__exit__(None, None, None)")
    assert [entry.name for entry in path.parent.glob("*.rwlock/write.*")] == []


def test_the_last_word_of_one_helper_does_not_garble_the_first_of_the_next() -> None:
    """One that is replaced may still be read when the next one speaks."""
    helper = Helper(Scheduler())
    answered: queue.SimpleQueue[None] = queue.SimpleQueue()
    readers = []
    with ExitStack() as stack:
        for said in (b'{"hold": 1, "known"', b'{"hold": 2, "known": false, "answers": [-1]}\n'):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            helper._awaited[-1] = (Mock(), answered)
            helper._socket = ours
            process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
            readers.append(threading.Thread(target=helper._read_until_idle, args=(ours, process)))
            readers[-1].start()
            theirs.send(said)
            wait_until(lambda ours=ours: not select.select([ours], [], [], 0)[0])
        answered.get(timeout=PATIENCE_S)
        for reader in readers:
            reader.join()


def test_an_answer_that_comes_after_the_release_tells_nothing_of_the_hold(path: Path) -> None:
    # The helper was asked how the hold fares, and looked only when this process had removed it.
    lock = SoftReadWriteLock(path, heartbeat="process")
    lock.acquire_write()
    assert lock._held is not None
    hold, helper = lock._held.hold, keeper._keepers.get_helper()
    answered: queue.SimpleQueue[None] = queue.SimpleQueue()
    helper._awaited[-1] = (hold, answered)
    helper.drop(hold)
    answered.get(timeout=0)  # whoever asked need not wait
    helper._ask(hold, "tell", 0)
    assert not helper._awaited
    report = {"hold": hold.key, "known": True, "beat": None, "renewed": hold.participant.lease.renewed}
    helper._take_in({**report, "answers": [-1], "lost": True, "error": "gone"})
    assert not hold.is_known_lost
    lock.release()


def test_what_the_helper_saw_first_is_not_its_last_word() -> None:
    """A beat finds that a hold is lost, while another thread is about to answer a question by what it saw before."""
    here, there = socket.socketpair()
    with here, there:
        beater = Beater(there, os.getpid())  # nothing is sent before it runs
        hold = Mock(key=1, is_known_lost=False)

        def lost_meanwhile(participant: Mock) -> None:
            del participant
            hold.is_known_lost = True
            type(hold.participant).beat_error = None
            report = threading.Thread(target=beater._say, args=(1, hold))
            report.start()
            report.join(0.3)
            reports.append(report)

        reports: list[threading.Thread] = []
        hold.participant.beats, hold.participant.lease.renewed = 1, 2.0
        type(hold.participant).beat_error = property(lost_meanwhile)
        beater._say(1, hold, question=5)
        reports[0].join(PATIENCE_S)
        assert beater._outbox[1]["lost"] is True
        assert beater._outbox[1]["answers"] == [5]
