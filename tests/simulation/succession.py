"""
The shipped scheduler and holds in virtual time: helper processes that succeed each other, and many holds in line.

``heartbeat_thread`` and ``hold`` of ``nfsrwlock_core.holding`` run as they are, in threads that are tasks of the
agenda. What is between a process and its helper is a copy in small of ``heartbeat_process`` and ``heartbeat_main``,
which know sockets, signals and real processes: orders, reports that come later or never, a helper that is replaced when
no word of a beat has come or that has died, and in the end a thread that takes over.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakKeyDictionary

from greenlet import getcurrent, greenlet

from nfsrwlock_core.holding import heartbeat_thread as shipped_scheduler
from nfsrwlock_core.holding import hold as shipped_hold
from nfsrwlock_core.holding.heartbeat_thread import Scheduler
from nfsrwlock_core.names import Mode
from nfsrwlock_core.protocol.heartbeat import Announced, Beat
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now as real_now

from .nfs import MountedFiles, Process, Weather
from .scheduler import Task
from .witness import Hold, Violation

if TYPE_CHECKING:
    from .campaign import Run, User

#: Seconds of a lease; as in the other runs.
TTL = 9.0
#: Where a helper dies, told from one of its heartbeats.
POINTS = ("never", "before", "under way", *("before the report",) * 3, "after the report")
#: Helpers before a thread takes over.
STARTS_MAX = 4


class Group:
    """The threads of one process: they live, stand still and die together."""

    def __init__(self, run: Run, name: str, owner: Process, *threads: Process) -> None:
        self.run = run
        self.host = owner.host
        self.name = name
        self.alive = True
        #: A helper that beats and whose reports do not get through.
        self.is_mute = False
        self.paused_until = 0.0
        self.threads = [*threads]
        #: What the judge takes these threads for: the process that has announced what they beat for.
        self.owner = owner

    def spawn(self, work: Callable[[], None], after: float = 0.0) -> None:
        if not self.alive:
            return
        thread = Process(self.host, f"{self.name}.{len(self.threads)}", self.run.rng, self.run.log)
        thread.paused_until = self.paused_until
        self.threads.append(thread)
        _owners[thread] = self.owner

        def whole() -> None:
            enter(self, thread)
            work()

        thread.start(whole, after)

    def pause(self, until: float) -> None:
        self.run.log.say(self.name, f"STANDS STILL until {until:.2f}")
        self.paused_until = until
        for thread in self.threads:
            thread.paused_until = until

    def die(self) -> None:
        """Die with all threads. What is under way may arrive."""
        if self.alive:
            self.run.log.say(self.name, "DIES")
            self.alive = False
            for thread in self.threads:
                self.run.agenda.at(self.run.agenda.now, lambda thread=thread: thread.die() if thread.alive else None)

    def call(self, kind: str, *names: str) -> Any:
        return _current[getcurrent()][1].call(kind, *names)


_owners: WeakKeyDictionary[Process, Process] = WeakKeyDictionary()
#: By task: of which process and thread it is.
_current: WeakKeyDictionary[greenlet, tuple[Group, Process]] = WeakKeyDictionary()


def enter(group: Group, thread: Process) -> None:
    """Say which simulated thread the task that runs now is."""
    _current[getcurrent()] = group, thread


class GroupFiles(MountedFiles):
    """The lock directory for any thread of a process."""

    def __init__(self, group: Group) -> None:
        self._call = group.call
        self._client = group.host.client


class _Thread:
    def __init__(self, target: Callable[[], None], **options: Any) -> None:
        self._target = target

    def start(self) -> None:
        _current[getcurrent()][0].spawn(self._target)


class _Queue:
    def __init__(self) -> None:
        self._items: list[Any] = []
        self._wake: Callable[[], Task | None] | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._wake is not None:
            agenda = _current[getcurrent()][0].run.agenda
            agenda.at(agenda.now, self._wake)

    def get(self, timeout: float) -> Any:
        if not self._items:
            _, thread = _current[getcurrent()]
            agenda = thread.agenda

            def wake() -> Task | None:
                if self._wake is not wake:
                    return None  # the other one of put and time-out was first
                if thread.alive and thread.paused_until > agenda.now:
                    agenda.at(thread.paused_until, wake)
                    return None
                self._wake = None
                return thread._wake_up()

            self._wake = wake
            agenda.at(agenda.now + timeout / thread.host.rate, wake)
            assert thread.task is not None
            thread.task.wait()
        if not self._items:
            raise queue.Empty
        return self._items.pop(0)


@contextmanager
def virtual_time(run: Run) -> Iterator[None]:
    """
    Let the shipped modules use the simulation's clock and threads, and the judge know whose threads they are.

    A heartbeat thread that other tests of this process left keeps the real ones.
    """
    changed = run.server.on_change
    run.server.on_change = lambda kind, name, by: changed(kind, name, _owners.get(by, by))

    def now() -> float:
        current = _current.get(getcurrent())
        return real_now() if current is None else current[0].host.clock()

    def submit(work: Callable[..., Any], *arguments: Any) -> None:
        current = _current.get(getcurrent())
        if current is None:
            workers.submit(work, *arguments)
        else:
            current[0].spawn(partial(work, *arguments))

    pool = SimpleNamespace(submit=submit, LINGER_S=workers.LINGER_S)
    # The wall clock of a host runs as that of its leases does: nothing is gained by a pause.
    wall_clock = SimpleNamespace(look=now, gained=lambda since: 0.0, steps=0)
    with ExitStack() as stack:
        for module in (shipped_hold, shipped_scheduler):
            stack.enter_context(mock.patch.multiple(module, now=now, workers=pool, wall_clock=wall_clock))
            stack.enter_context(mock.patch.object(module.logger, "disabled", True))
        stack.enter_context(
            mock.patch.multiple(
                shipped_scheduler,
                threading=SimpleNamespace(RLock=threading.RLock, Thread=_Thread),
                queue=SimpleNamespace(SimpleQueue=_Queue, Empty=queue.Empty),
            )
        )
        yield


class Parent:
    """A process whose helper beats for its one hold; a copy in small of ``heartbeat_process``."""

    def __init__(self, user: User, hold: Hold, deaths: Iterator[str]) -> None:
        self.run, self.rng = user.run, user.run.rng
        self.user = user
        self.judged = hold
        self.group = Group(user.run, user.process.name, user.process, user.process)
        enter(self.group, user.process)
        hold.participant.files = GroupFiles(self.group)  # type: ignore[misc]
        self.held = shipped_hold.Hold(hold.participant, "", 1, None)
        self.scheduler = Scheduler(on_beat=self._beaten)
        self.helper: Group | None = None
        self._deaths = deaths
        self._starts = 0
        self._wait_for_word()
        self.scheduler.keep(self.held, act=self._oversee)
        self._start()

    def release(self) -> None:
        self.scheduler.forget(self.held)
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.die()  # a beat under way may still arrive
        self.user.release(self.judged)

    def _wait_for_word(self) -> None:
        participant = self.held.participant
        self.held.due = max(self.held.due, participant.lease.renewed + 1.5 * participant.interval)

    def _oversee(self, hold: shipped_hold.Hold) -> None:
        hold.due = shipped_hold.now() + hold.participant.interval / 2
        helper = self.helper
        if helper is None:
            return
        answers = helper.alive and not helper.is_mute and helper.paused_until <= self.run.agenda.now
        if not answers:
            left = hold.participant.lease.expires - shipped_hold.now()
            _current[getcurrent()][1].sleep(min(max(left / 2, 0.5), 5.0))
            if self.helper is helper:
                self._replace(helper)

    def _replace(self, helper: Group) -> None:
        helper.die()
        self.helper = None
        if self.judged.ended or self.judged.lost:
            return
        if self._starts < STARTS_MAX:
            self.held.due = shipped_hold.now()
            self.scheduler.keep(self.held, act=self._bridge, line=1)
        else:
            self.run.log.say(self.group.name, "BEATS BY ITSELF NOW")
            self.held.due = shipped_hold.now()
            self.scheduler.keep(self.held)

    def _bridge(self, hold: shipped_hold.Hold) -> Beat:
        outcome = hold.beat()
        self._beaten(hold, outcome)
        if outcome is not Beat.LOST and not self.judged.ended:
            self._wait_for_word()
            self.scheduler.keep(hold, act=self._oversee)
            self._start()
        return outcome

    def _start(self) -> None:
        self._starts += 1
        participant = self.held.participant
        helper = self.helper = Group(self.run, f"{self.group.name}h{self._starts}", self.user.process)
        order = {
            "name": participant.name,
            "beat": participant.beats,
            "lease": participant.lease,
            "unheard": participant.hand_over(),
            "interval": participant.interval,
            "record": b"",
        }
        helper.spawn(lambda: self._help(helper, order), after=self.rng.choice((0.05, 0.5)))

    def _help(self, helper: Group, order: dict[str, Any]) -> None:
        participant = Announced.resume(GroupFiles(helper), self.judged.participant._world, **order)
        dies, beats = next(self._deaths), self.rng.choice((1, 2, 2, 3))
        send, read_back = participant._send_beat, participant._read_back_beat

        def read_back_and_be_cut_off(target: int, sent: float) -> Beat | None:
            outcome = read_back(target, sent)
            if self.rng.random() < 0.5:  # so that no heartbeat corrects now what it may have got wrong
                self.group.host.client.link.cut(self.run.agenda.now, self.run.agenda.now + 1.3 * TTL)
            return outcome

        def send_or_die(target: int) -> None:
            nonlocal beats
            beats -= 1
            if beats == 0 and dies == "before":
                self._dies(helper)
            if beats == 0 and dies == "under way":
                delay = self.rng.random() * 2 * helper.host.client.weather.delay_s
                self.run.agenda.at(self.run.agenda.now + delay, helper.die)  # type: ignore[arg-type]
            send(target)

        helper.is_mute = self.rng.random() < 0.1
        participant._send_beat = send_or_die  # type: ignore[method-assign]
        participant._read_back_beat = read_back_and_be_cut_off  # type: ignore[method-assign]

        def report(hold: shipped_hold.Hold, outcome: Beat) -> None:
            if beats <= 0 and dies == "before the report":
                self._dies(helper)
            if helper.is_mute:
                return
            word = (outcome, hold.participant.beats, hold.participant.lease.renewed)
            self.run.agenda.at(self.run.agenda.now + self.rng.random() * 0.02, lambda: self._hear(word))
            if beats <= 0 and dies == "after the report":
                self._dies(helper)

        Scheduler(on_beat=report).keep(shipped_hold.Hold(participant, "", 1, None))

    def _dies(self, helper: Group) -> None:
        if self.rng.random() < 0.3:
            helper.pause(float("inf"))  # or it is stopped, and killed when it is replaced
        else:
            helper.die()
            # The end of its connection is seen at once, if there is anybody to see it.
            self.run.agenda.at(self.run.agenda.now + 0.05, lambda: self._see_end(helper))
        _current[getcurrent()][1].sleep(1e9)

    def _see_end(self, helper: Group) -> None:
        if self.group.paused_until > self.run.agenda.now:
            self.run.agenda.at(self.group.paused_until, lambda: self._see_end(helper))
        elif self.helper is helper and self.user.process.alive:
            self.group.spawn(lambda: self._replace(helper) if self.helper is helper else None)

    def _hear(self, word: tuple[Beat, int | None, float]) -> None:
        if self.group.paused_until > self.run.agenda.now:
            self.run.agenda.at(self.group.paused_until, lambda: self._hear(word))
            return
        outcome, beat, renewed = word
        if self.judged.ended or self.judged.lost or self.helper is None:
            return
        had_run_out = not self.judged.stands
        self.held.participant.take_over(beat, renewed)
        self._wait_for_word()
        self._judge(outcome, had_run_out=had_run_out)

    def _beaten(self, hold: shipped_hold.Hold, outcome: Beat) -> None:
        if not (self.judged.ended or self.judged.lost):
            self._judge(outcome, had_run_out=not self.judged.stands)

    def _judge(self, outcome: Beat, *, had_run_out: bool) -> None:
        self.run.witness.beaten(self.judged, outcome, had_run_out=had_run_out)


def succession(run: Run) -> None:
    """A holder with helpers that die at every point of a heartbeat, on a host that is cut off; others want the lock."""
    rng, agenda = run.rng, run.agenda
    run.fair = False
    run.has_process_table = False
    late = rng.random() < 0.3
    run.set_weather(
        Weather(
            stale_s=rng.choice((0.0, 1.0)),
            delay_s=rng.choice((0.01, 0.1)),
            lost_reply=rng.choice((0.0, 0.0, 0.2)),
            late=0.1 if late else 0.0,
            late_s=TTL,
            slow=rng.choice((0.0, 0.1)),
            slow_s=TTL / 2,
        )
    )
    length = 8 * TTL
    deaths = iter(lambda: rng.choice(POINTS), None)
    parents: list[Parent] = []

    def hold_with_helpers(user: User) -> None:
        while not run.closing:
            mode = rng.choice((Mode.WRITE, Mode.READ))
            hold = user.acquire(mode)
            if hold is None:
                continue
            parent = Parent(user, hold, deaths)
            parents.append(parent)
            end = user.clock() + rng.uniform(1, 5) * TTL
            while user.clock() < end and not hold.lost and not run.closing:
                user.process.sleep(TTL / 20)
                run.witness.commits(hold)
            parent.release()
            parents.remove(parent)
            user.files = MountedFiles(user.process)

    def want_it(user: User) -> None:
        user.process.sleep(rng.random())
        while not run.closing:
            hold = user.acquire(rng.choice((Mode.WRITE, Mode.READ)))
            if hold is not None:
                user.keep(hold, rng.uniform(0.05, 0.5), commits=3)
                user.release(hold)
            user.process.sleep(rng.random() * 0.5)

    host = run.add_host()
    run.add_process(host, hold_with_helpers)
    for _ in range(rng.randint(1, 2)):
        run.add_process(run.add_host(), want_it)

    def cut() -> None:
        host.client.link.cut(agenda.now, agenda.now + rng.choice((0.5, 1.5)) * TTL)
        agenda.at(agenda.now + rng.uniform(1.5, 4) * TTL, cut)

    def stand_still() -> None:
        for parent in parents:
            until = agenda.now + rng.choice((0.3, 1.3)) * TTL
            parent.group.pause(until)
            if parent.helper is not None and rng.random() < 0.5:
                parent.helper.pause(until)

    agenda.at(rng.random() * 4 * TTL, cut)
    if rng.random() < 0.3:
        agenda.at(rng.random() * 4 * TTL, stand_still)
    with virtual_time(run):
        agenda.run(length)
        run.closing = True
        agenda.run(length + 4 * TTL)
        for parent in parents:
            for group in (parent.group, parent.helper):
                if group is not None:
                    group.die()
        run.clear_up(6 * TTL)


def in_line(run: Run) -> None:
    """Many long holds of one process and a short one, on a slow file system that can serve them: none may run out."""
    rng, agenda = run.rng, run.agenda
    short, call_s = TTL / 6, rng.choice((0.02, 0.05))
    # Four at a time fill half of an interval.
    number = int(0.5 * 4 * TTL / 3 / call_s)
    holds: list[Hold] = []

    def take_many(user: User) -> None:
        group = Group(run, user.process.name, user.process, user.process)
        enter(group, user.process)
        user.files = GroupFiles(group)
        scheduler = Scheduler()
        place = rng.randrange(number)
        for n in range(number):
            hold = user.acquire(Mode.READ, ttl=short if n == place else TTL)
            assert hold is not None
            holds.append(hold)
            scheduler.keep(shipped_hold.Hold(hold.participant, "", 1, None))
        # Slow only now, so that the long ones become due at one moment, and the short one in the midst of them.
        host.client.weather = Weather(delay_s=call_s)
        user.process.sleep(10 * TTL)

    def check() -> None:
        for hold in holds:
            if not hold.stands:
                raise Violation(f"{hold} of {hold.participant.lease.ttl:g} s did not get its heartbeat in time")
        agenda.at(agenda.now + short / 20, check)

    run.set_weather(Weather(delay_s=0.0001))
    host = run.add_host()
    run.add_process(host, take_many)
    check()
    with virtual_time(run):
        agenda.run(3 * TTL)
