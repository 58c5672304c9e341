"""
Processes that are killed, stopped, and that come by the dozen.

Actors with different host names cannot look each other up in the process table, so between them only leases count, as
between two machines. Leases here are short, and a holder that must live beats often in its lease: what is measured is
the engine, not the load of the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors import Actor, Raised, Stage, announcements, children_of, wait_until
from nfsrwlock import inspect

FORMS = ["thread", "process"]


def lock(lease_s: float, *, beats: int = 8, form: str = "thread") -> str:
    """The code that makes a lock with this lease and so many heartbeats in it."""
    return (
        f"lock = SoftReadWriteLock('data', stale_threshold={lease_s}, heartbeat_interval={lease_s / beats}, "
        f"poll_interval=0.05, heartbeat={form!r})"
    )


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mode", "rival_mode"), [("write", "read"), ("write", "write"), ("read", "write")])
def test_a_killed_holder_on_this_machine_is_recovered_from_at_once(
    stage: Stage, path: Path, mode: str, rival_mode: str, form: str
) -> None:
    holder, rival = stage.actor(lock(3600, form=form)), stage.actor(lock(3600))
    holder.do(f"lock.acquire_{mode}()")
    rival.tell(f"lock.acquire_{rival_mode}(60, on_wait=lambda _: open('waits', 'w').close())")
    wait_until(path.with_name("waits").exists)
    holder.kill()
    started = time.monotonic()
    rival.answer()
    assert time.monotonic() - started < 5  # of a lease of an hour
    assert len(announcements(path)) == 1


def test_a_waiting_writer_that_is_killed_is_recovered_from_at_once(stage: Stage, path: Path) -> None:
    holder, writer, reader = (stage.actor(lock(3600)) for _ in range(3))
    holder.do("lock.acquire_read()")
    writer.tell("lock.acquire_write()")
    wait_until(lambda: len(announcements(path)) == 2)
    with pytest.raises(Raised, match="Timeout"):
        reader.do("lock.acquire_read(0.2)")
    writer.kill()
    reader.do("lock.acquire_read(20)")
    holder.do("lock.check()")


def test_somebody_who_gives_up_at_once_can_still_clear_away_a_dead_holder(stage: Stage) -> None:
    holder, rival = stage.actor(lock(3600)), stage.actor(lock(3600))
    holder.do("lock.acquire_write()")
    holder.kill()
    rival.do("lock.acquire_write(blocking=False)")


@pytest.mark.parametrize("beaten", [False, True])
def test_a_killed_holder_on_another_machine_is_recovered_from_within_its_lease(
    stage: Stage, path: Path, beaten: bool
) -> None:
    # Before its first heartbeat and after it: two different ways of eviction.
    lease_s = 3.0
    holder = stage.actor(lock(lease_s, beats=8 if beaten else 2), host="there")
    rival = stage.actor(lock(3600), host="here")
    holder.do("lock.acquire_write()")
    if beaten:
        wait_until(lambda: len(os.listdir(f"{path}.rwlock/{announcements(path)[0]}")) == 1)
    holder.kill()
    killed = time.monotonic()
    rival.do("lock.acquire_write(60)")
    took = time.monotonic() - killed
    # It is the holder's lease that counts, not the rival's. Not earlier than the lease after its last sign of life.
    # Later than that if the rival stood still for a third of it: then it has not watched, and begins anew.
    assert lease_s * (1 - 1 / 8) - 0.2 < took < lease_s * 5
    assert f"{path}.rwlock/{announcements(path)[0]}".endswith(".here")


def test_a_holder_that_lives_is_never_evicted_however_long_others_wait(stage: Stage) -> None:
    holder = stage.actor(lock(3), host="there")
    rival = stage.actor(lock(3), host="here")
    holder.do("lock.acquire_write()")
    with pytest.raises(Raised, match="Timeout"):
        rival.do("lock.acquire_write(5)")
    holder.do("lock.check()")


def test_callers_whose_patience_is_shorter_than_the_lease_clear_a_dead_holder_one_after_the_other(
    stage: Stage, path: Path
) -> None:
    # Each is a process of its own, so nothing but the notes on disk can add up.
    lease_s = 3.0
    holder = stage.actor(lock(lease_s), host="there")
    holder.do("lock.acquire_write()")
    holder.kill()
    killed = time.monotonic()
    coming = stage.actor(host="host0")
    for attempt in range(20):
        # The next one is called while this one waits: nobody watches meanwhile, and a pause of a third of the lease
        # makes void what was watched.
        caller, coming = coming, stage.actor(host=f"host{attempt + 1}")
        error = failure_of(caller, f"{lock(30)}; lock.acquire_write(0.8)")
        if error is None:
            break
        assert error.names[0] == "Timeout"
        assert "there" in error.message
        caller.kill()
    else:
        pytest.fail("twenty callers in a row could not get past a dead holder")
    assert attempt >= 2  # one alone could not have watched it for a lease
    assert time.monotonic() - killed > lease_s - lease_s / 8 - 0.2
    caller.do("lock.release(); lock.acquire_write(); lock.release()")
    assert [entry for entry in os.listdir(f"{path}.rwlock") if not entry.startswith("gen.")] == []


def failure_of(actor: Actor, code: str) -> Raised | None:
    try:
        actor.do(code)
    except Raised as error:
        return error
    return None


def test_callers_with_little_patience_do_not_evict_a_holder_that_lives(stage: Stage) -> None:
    holder = stage.actor(lock(3), host="there")
    holder.do("lock.acquire_write()")
    caller = stage.actor(host="here")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        caller.do(lock(3).replace("'data'", "'data', is_singleton=False"))
        with pytest.raises(Raised, match="Timeout"):
            caller.do("lock.acquire_read(0.4)")
    holder.do("lock.check()")


# -- stopped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["read", "write"])
def test_thread_form_a_stopped_holder_is_evicted_and_knows_it_right_after_it_goes_on(
    stage: Stage, path: Path, mode: str
) -> None:
    holder, rival = stage.actor(lock(1.5), host="there"), stage.actor(lock(30), host="here")
    holder.do(f"proxy = lock.acquire_{mode}()")
    holder.stop()
    rival.do("lock.acquire_write(60)")
    # The very first thing that it does when it goes on: no thread has run yet to find out.
    holder.tell("lock.check()")
    holder.go_on()
    with pytest.raises(Raised) as caught:
        holder.answer()
    assert "LockLostError" in caught.value.names
    wait_until(lambda: holder.do("lock.status") == "lost")
    with pytest.raises(Raised, match="LockLostError"):
        holder.do("proxy.__exit__(None, None, None)")
    rival.do("lock.check()")
    assert len(announcements(path)) == 1


def test_thread_form_a_stopped_holder_that_nobody_wanted_to_evict_goes_on_holding(stage: Stage) -> None:
    holder = stage.actor(lock(2.5), host="there")
    holder.do("proxy = lock.acquire_write()")
    holder.stop()
    time.sleep(3)
    holder.tell("lock.check()")
    holder.go_on()
    # Until the next heartbeat it cannot know, but that may come first.
    with contextlib.suppress(Raised):
        assert holder.answer() is None
    wait_until(lambda: holder.do("lock.status") == "held")
    holder.do("lock.check(); proxy.__exit__(None, None, None)")


def test_process_form_a_stopped_holder_keeps_its_lock(stage: Stage) -> None:
    holder = stage.actor(lock(3, form="process"), host="there")
    # One on another machine, who can only watch its heartbeat, and one on the same, who can look the process up.
    rivals = [stage.actor(lock(3), host=host) for host in ("here", "there")]
    holder.do("proxy = lock.acquire_write()")
    holder.stop()
    for rival in rivals:
        rival.tell("lock.acquire_write(4.5)")
    for rival in rivals:
        with pytest.raises(Raised, match="Timeout"):
            rival.answer()
    # The very first thing that it does when it goes on: what its helper has said meanwhile must count.
    holder.tell("(lock.check(), lock.status, lock.compromise)")
    holder.go_on()
    assert holder.answer() == [None, "held", None]
    holder.do("proxy.__exit__(None, None, None)")
    rivals[0].do("lock.acquire_write(20)")


def test_process_form_a_holder_whose_helper_is_stopped_as_well_learns_of_its_eviction(stage: Stage) -> None:
    # As a batch system suspends a job: every process of it.
    holder = stage.actor(lock(1.5, form="process"), host="there")
    rival = stage.actor(lock(30), host="here")
    holder.do("proxy = lock.acquire_write()")
    (helper,) = children_of(holder.pid)
    os.kill(helper, signal.SIGSTOP)
    holder.stop()
    rival.do("lock.acquire_write(60)")
    holder.tell("lock.check()")
    os.kill(helper, signal.SIGCONT)
    holder.go_on()
    with pytest.raises(Raised, match=r"LockLostError|LeaseExpiredError"):
        holder.answer()
    wait_until(lambda: holder.do("lock.status") == "lost")
    with pytest.raises(Raised, match="LockLostError"):
        holder.do("proxy.__exit__(None, None, None)")
    rival.do("lock.check()")


def test_a_waiting_writer_that_is_stopped_does_not_block_others_for_longer_than_its_lease(stage: Stage) -> None:
    reader, writer = stage.actor(lock(30), host="there"), stage.actor(lock(1.5), host="elsewhere")
    other = stage.actor(lock(30), host="here")
    reader.do("lock.acquire_read()")
    writer.tell("lock.acquire_write(120)")
    wait_until(lambda: len(announcements(Path(stage.directory / "data"))) == 2)
    writer.stop()
    other.do("lock.acquire_read(30)")
    reader.do("lock.release()")
    other.do("lock.release()")
    writer.go_on()
    writer.answer()  # it was evicted while it waited, and has queued up anew
    assert inspect(stage.directory / "data").holders[0].pid == writer.pid


# -- many --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    mode: str
    pid: int
    begin: int
    end: int


STORM = """
ROUNDS, PROCESSES, WHOLE, VICTIMS = {rounds}, {processes}, {whole}, {victims}

def write(name, text):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, text)
    os.close(fd)

def read(name):
    with open(name, "rb") as file:
        return int(file.read())

def work(number):
    lock = SoftReadWriteLock("data", poll_interval=0.02, timeout=100, heartbeat_interval=10)
    log = os.open("log", os.O_WRONLY | os.O_APPEND)
    chance = random.Random(number)
    # Whoever is to be killed must not have finished before.
    for _ in range(10**9 if number in VICTIMS else ROUNDS):
        is_writer = chance.random() < 0.3
        with lock.acquire_write() if is_writer else lock.acquire_read():
            begin = time.monotonic_ns()
            first = read("first")
            if is_writer:
                # Two files that a writer changes one after the other: whoever gets in between sees that they differ.
                write("first", b"%012d" % (first + 1))
                time.sleep(chance.uniform(0, 0.002))
                second = read("second")
                write("second", b"%012d" % (second + 1))
            else:
                time.sleep(chance.uniform(0, 0.002))
                second = read("second")
            assert first == second or not WHOLE, (first, second)
            lock.check()
            end = time.monotonic_ns()
        os.write(log, f"{{'write' if is_writer else 'read'}} {{os.getpid()}} {{begin}} {{end}}\\n".encode())

write("first", b"%012d" % 0), write("second", b"%012d" % 0), write("log", b"")
children = []
for number in range(PROCESSES):
    child = os.fork()
    if child == 0:
        work(number)
        sys.exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""


def logged_holds(log: Path) -> list[Hold]:
    return [
        Hold(mode, int(pid), int(begin), int(end))
        for mode, pid, begin, end in (line.split() for line in log.read_text().splitlines())
    ]


def overlaps(holds: list[Hold]) -> list[tuple[Hold, Hold]]:
    """Pairs of holds that overlapped although one of them is a writer's. The clock is one for all processes."""
    found = []
    writers = [hold for hold in holds if hold.mode == "write"]
    for writer in writers:
        found += [
            (writer, other)
            for other in holds
            if other is not writer and writer.begin < other.end and other.begin < writer.end
        ]
    return found


def test_the_checker_of_the_storm_sees_an_overlap() -> None:
    writer, reader = Hold("write", 1, 10, 20), Hold("read", 2, 19, 30)
    assert overlaps([writer, reader]) == [(writer, reader)]
    assert overlaps([writer, Hold("read", 2, 20, 30), Hold("write", 3, 0, 10)]) == []
    assert overlaps([Hold("read", 1, 10, 20), reader]) == []


def test_fifty_processes_that_storm_one_lock_never_overlap_and_all_finish(stage: Stage, path: Path) -> None:
    rounds, processes = 8, 50
    actor = stage.actor()
    assert actor.do(STORM.format(rounds=rounds, processes=processes, whole=True, victims=()), timeout=110) is None
    assert actor.do("codes") == [0] * processes
    holds = logged_holds(path.parent / "log")
    assert len(holds) == rounds * processes
    assert overlaps(holds) == []
    writes = sum(hold.mode == "write" for hold in holds)
    assert 0 < writes < len(holds)
    assert int((path.parent / "first").read_text()) == int((path.parent / "second").read_text()) == writes
    assert announcements(path) == []
    state = inspect(path)
    assert state.generation == writes  # each was numbered, and none twice
    # Readers did share: somebody was inside together with somebody else.
    readers = [hold for hold in holds if hold.mode == "read"]
    assert any(one.begin < other.end and other.begin < one.end for one in readers for other in readers if one != other)


def test_a_storm_in_which_processes_are_killed_goes_on(stage: Stage, path: Path) -> None:
    actor = stage.actor()
    # A writer that is killed leaves the two files different, as it would its real data.
    storm = STORM.format(rounds=50, processes=12, whole=False, victims=range(0, 12, 3))
    actor.do(storm.replace("codes = [", "codes = lambda: ["))
    victims = actor.do("children[::3]")
    for child in victims:
        time.sleep(0.2)
        os.kill(child, signal.SIGKILL)
    codes = actor.do("codes()", timeout=100)
    assert sorted(codes) == [-signal.SIGKILL] * len(victims) + [0] * (12 - len(victims))
    assert overlaps(logged_holds(path.parent / "log")) == []
    stage.actor(lock(3600)).do("lock.acquire_write(10)")
