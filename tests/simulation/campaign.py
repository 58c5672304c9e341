"""
Random runs of the shipped protocol on the simulated NFS, one per number.

``run(seed)`` plays one and raises :class:`~simulation.witness.Violation` if a promise was broken; the same number
always
plays the same run. What a number means is drawn from it: which of the :data:`KINDS`, what weather, who pauses, who
dies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nfsrwlock_core.errors import LeaseExpiredError, LockLostError, LockPathError
from nfsrwlock_core.names import Identity, Mode, parse_announcement
from nfsrwlock_core.protocol import participant as protocol
from nfsrwlock_core.protocol import watch
from nfsrwlock_core.witness import HoldWitness

from .nfs import Client, Host, Log, MountedFiles, Network, Process, Server, Weather
from .scheduler import Agenda, Stopped, Task
from .succession import in_line, succession
from .witness import Counts, Hold, Violation, Witness

#: Seconds. Leases are a tenth of the default; all else follows from them.
TTL = 9.0
POLL_S = 0.25
#: What the settings of those who share a lock are drawn from: all have the same, or each its own.
LEASES = ((TTL,), (TTL,), (TTL, TTL / 2, TTL * 1.5), (TTL / 6, TTL, TTL * 4))
POLLS = ((POLL_S,), (POLL_S,), (POLL_S, POLL_S / 2, POLL_S * 8))
#: Clocks run at most this much too fast or too slow.
DRIFT = 0.05
#: The mixed runs stop after about so many file-system calls.
CALLS = 700


@dataclass
class Options:
    """What somebody wants to be different from what the number says."""

    weather: dict[str, Any] | None = None
    #: Passed to the run of its kind.
    settings: dict[str, Any] | None = None


class Run:
    """One simulated run."""

    def __init__(self, seed: int, *, record: bool = False, options: Options | None = None) -> None:
        self.rng = random.Random(seed)
        self.options = options or Options()
        self.agenda = Agenda()
        self.log = Log(self.agenda, on=record)
        self.server = Server(self.agenda)
        self.network = Network()
        self.witness = Witness(self.server, self.log)
        self.processes: list[Process] = []
        self.hosts: list[Host] = []
        self.closing = False
        #: For how long after a new connection others may stand still.
        self.standstill = 0.0
        self.has_process_table = True
        #: Whether every other process makes grants without numbers.
        self.has_unnumbered = False
        self.leases = self.rng.choice(LEASES)
        self.polls = self.rng.choice(POLLS)
        #: The hosts agree on the time of day, so that writers come in their order.
        self.fair = True
        self.weather = Weather()
        self._pids = 100

    # -- the stage ----------------------------------------------------------------------------------------------------

    def set_weather(self, weather: Weather) -> None:
        self.weather = replace(weather, **(self.options.weather or {}))
        self.log.say("WEATHER", str(self.weather))

    def add_host(self, *, perfect: bool = False, clone_of: Host | None = None) -> Host:
        name = f"host{len(self.hosts)}"
        rng = self.rng
        client = Client(name, self.server, self.network, Weather() if perfect else self.weather, rng)
        rate = 1.0 if perfect else rng.choice((1 - DRIFT, 1 + DRIFT, rng.uniform(1 - DRIFT, 1 + DRIFT)))
        skew_s = 0.0 if self.fair else rng.choice((0.0, rng.uniform(-600, 600)))
        host = Host(name, self.agenda, client, offset=rng.uniform(0, 1e6), rate=rate, skew_s=skew_s)
        if clone_of is not None:  # restored from one snapshot: what differs is what the hypervisor gives each of them
            host.boot = clone_of.boot
        self.hosts.append(host)
        return host

    def add_process(self, host: Host, story: Callable[[User], None], after: float = 0.0) -> User:
        self._pids += 1
        process = Process(host, f"{host.name}/{self._pids}", self.rng, self.log)
        who = Identity(self._pids, self._pids, host.kernel, 1000, "node")
        user = User(self, process, who)
        self.processes.append(process)
        process.start(lambda: story(user), after)
        return user

    def die(self, process: Process) -> Task | None:
        if not process.alive:
            return None
        self.witness.died(process)
        return process.die()

    def is_dead(self, host: Host, who: Identity) -> bool:
        if not self.has_process_table or who.kernel != host.kernel:
            return False
        return not any(p.alive and p.host is host and p.name.endswith(f"/{who.pid}") for p in self.processes)

    def clear_up(self, quiet_after: float) -> None:
        """End everybody, let what is on its way arrive, and let one last writer come and go: nothing must be left."""
        self.witness.half_way = lambda by: None
        for process in self.processes:
            self.agenda.at(self.agenda.now, lambda process=process: self.die(process))
        self.agenda.run(self.agenda.now + quiet_after)
        self.closing = self.has_unnumbered = False
        began = self.agenda.now
        longest = max((_lease_of(name) for name in self.server.root.entries), default=0.0)

        def last(user: User) -> None:
            hold = user.acquire(Mode.WRITE)
            assert hold is not None
            user.release(hold)

        host = self.add_host(perfect=True)
        user = self.add_process(host, last)
        # Two rounds of watching, one on the writers before it and one on those that it finds announced.
        self.agenda.run(began + 2.3 * longest + 10)
        if user.process.alive:
            raise Violation(f"the last writer still waits after {self.agenda.now - began:.0f} s: {self.witness.left()}")
        numbers = [name for name in self.server.root.entries if name.startswith("gen.")]
        if left := self.witness.left():
            raise Violation(f"left on disk at the end: {left}")
        if numbers != [f"gen.{self.witness.highest_granted}"]:
            raise Violation(f"left on disk at the end: {numbers}")

    def finish(self) -> None:
        self.agenda.close()
        self.witness.counts.calls = sum(process.calls for process in self.processes)


class User:
    """
    What the engine does around a participant: it waits, it beats, it releases.

    A copy in small of ``acquire.acquiring`` and ``keeper``, which know threads and real time.
    """

    def __init__(self, run: Run, process: Process, who: Identity) -> None:
        self.run = run
        self.process = process
        self.who = who
        self.rng = run.rng
        self.witness = run.witness
        self.clock = process.host.clock
        self.files = MountedFiles(process)
        self.watch = watch.Watch()
        self.poll = run.rng.choice(run.polls)

        self.world = protocol.World(
            clock=self.clock,
            is_dead=lambda who: self.run.is_dead(self.process.host, who),
            token=lambda: f"{self.rng.getrandbits(128):032x}",
            standstill=lambda: run.standstill,
        )

    def participant(
        self, mode: Mode, ttl: float, known: watch.Watch | None = None, at_most: int = 0
    ) -> protocol.Participant:
        wall_s = 1000 + self.run.agenda.now + self.process.host.skew_s
        return protocol.Participant(
            self.files,
            self.world,
            self.who,
            mode,
            at_most=at_most,
            numbered=not (self.run.has_unnumbered and self.who.pid % 2),
            ttl=ttl,
            interval=ttl / 3,
            ticket=int(wall_s * 1_000_000),
            since_ms=int(wall_s * 1000),
            watch=known,
        )

    def acquire(
        self,
        mode: Mode,
        timeout: float = -1.0,
        *,
        ttl: float | None = None,
        known: watch.Watch | None = None,
        at_most: int = 0,
    ) -> Hold | None:
        """Acquire the lock; ``None`` if the time was up."""
        participant = self.participant(mode, ttl or self.rng.choice(self.run.leases), known, at_most)
        began = self.clock()
        while True:
            try:
                evictions = -1
                while evictions < participant.evictions:
                    evictions = participant.evictions
                    if participant.advance():
                        return self.witness.granted(self.process, participant)
            except LockPathError as error:
                raise Violation(
                    f"{self.process.name} calls a file system unfit that keeps the rules: {error}"
                ) from error
            except OSError:
                pass
            waited = self.clock() - began
            if (0 <= timeout <= waited) or self.run.closing:
                self._give_up(participant)
                return None
            pause = participant.pause(waited, self.poll, self.rng.random())
            self.process.sleep(pause if timeout < 0 else min(pause, timeout - waited))

    def _give_up(self, participant: protocol.Participant) -> None:
        self.witness.counts.given_up += 1
        self.run.log.say(self.process.name, "gives up")
        for _ in range(10):
            try:
                participant.give_up()
            except FileNotFoundError:
                return
            except OSError:
                self.process.sleep(0.2)
            else:
                return

    def keep(self, hold: Hold, seconds: float, *, commits: int = 0) -> None:
        """Hold the lock for a while, beating, with some work under it."""
        agenda, participant = self.run.agenda, hold.participant
        for _ in range(commits):
            agenda.at(agenda.now + self.rng.random() * seconds, lambda: self._commit(hold))
        end = self.clock() + seconds
        due = participant.lease.renewed + participant.interval
        while (now := self.clock()) < end and not hold.lost:
            if now >= due:
                had_run_out = not hold.stands
                outcome = participant.beat()
                self.witness.beaten(hold, outcome, had_run_out=had_run_out)
                if outcome is protocol.Beat.DONE:
                    due = participant.lease.renewed + participant.interval
                else:
                    due = self.clock() + participant.interval / 10
                continue
            self.process.sleep(min(due, end) - now + 1e-6)

    def check_from_elsewhere(self, hold: Hold) -> None:
        """Do what a child of the holder does: look at its hold now and then, until it knows that it has ended."""
        seen = SimulatedHoldWitness(self, hold)
        while not hold.ended and not self.run.closing:
            self.process.sleep(self.rng.random() * hold.participant.interval)
            try:
                seen.check()
            except LeaseExpiredError:
                pass
            except LockLostError:
                return
            else:
                if seen.has_seen_a_beat:
                    self.witness.checked(hold, self.process.name)

    def _commit(self, hold: Hold) -> None:
        paused = self.process.paused_until
        if paused > self.run.agenda.now:
            self.run.agenda.at(paused, lambda: self._commit(hold))
        elif not hold.ended:
            self.witness.commits(hold)

    def read_generation(self, hold: Hold) -> None:
        try:
            number = hold.participant.read_generation()
        except OSError:
            return
        self.witness.read_generation(hold, number)

    def release(self, hold: Hold) -> None:
        """Release the lock, trying again while the server refuses, for as long as the lease."""
        self.witness.ended(hold)
        began = self.run.agenda.now
        deadline = self.clock() + hold.participant.lease.ttl
        while True:
            try:
                stood = hold.participant.release()
            except OSError:
                if self.clock() >= deadline:
                    return
                self.process.sleep(min(2.0, hold.participant.lease.ttl / 10))
            else:
                if self.run.agenda.now >= began:
                    self.witness.released(hold, stood=stood, since=began)
                return


class SimulatedHoldWitness(HoldWitness):
    """The shipped witness, on the simulated NFS."""

    def __init__(self, user: User, hold: Hold) -> None:
        super().__init__("data", "the simulated lock directory", hold.participant.name, hold.participant.beats)
        self._user = user
        self._world = user.world

    @property
    def has_seen_a_beat(self) -> bool:
        """Whether it can tell half an eviction from a hold too young for a heartbeat."""
        return self._beat is not None

    def _files(self) -> MountedFiles:
        return self._user.files

    def _glance(self, name: str) -> tuple[int, list[str]]:
        stamp, entries = self._user.process.call("glance", name)
        return int(stamp * 1e9), entries


# -- the kinds of runs ----------------------------------------------------------------------------------------------


def limited(run: Run) -> None:
    """The same as mixed, with readers of which at most so many may hold at a time."""
    mixed(run, at_most=run.rng.randint(1, 3))


def unnumbered(run: Run) -> None:
    """The same as mixed, with processes whose writes have no numbers, and who remove the directory that they leave."""
    run.has_unnumbered = True
    mixed(run)


def mixed(run: Run, at_most: int = 0) -> None:
    """Everything at once: two to eight processes that come and go, and all that may go wrong."""
    rng = run.rng
    run.fair = False
    run.set_weather(
        Weather(
            stale_s=rng.choice((0.0, 1.0, 10.0, math.inf)),
            fresh=rng.choice((0.2, 0.6)),
            strict=rng.random() < 0.5,
            negative=rng.choice((0.0, 0.0, 0.02, 0.1)),
            lost_reply=rng.choice((0.0, 0.0, 0.02, 0.1)),
            error=rng.choice((0.0, 0.0, 0.02, 0.1)),
            late=rng.choice((0.0, 0.0, 0.01, 0.05)),
            late_s=rng.choice((1.0, TTL, 3 * TTL)),
            delay_s=rng.choice((0.002, 0.02, 0.2)),
            slow=rng.choice((0.0, 0.01, 0.05)),
            slow_s=rng.choice((1.0, TTL / 2, 2 * TTL)),
        )
    )
    run.has_process_table = rng.random() < 0.5
    length = rng.uniform(4, 12) * TTL
    hosts = [run.add_host() for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.2:
        hosts[1:] = [run.add_host(clone_of=hosts[0]) for _ in hosts[1:]]
    writing = rng.choice((0.2, 0.5, 0.8))
    short = rng.choice((0.0, 0.3, 0.8))
    longest_hold = rng.choice((0.1, 1.0, TTL, 3 * TTL))

    def story(user: User) -> None:
        own = rng.random() < 0.5
        while not run.closing:
            user.process.sleep(rng.random() * rng.choice((0.05, 1.0, TTL / 2)))
            mode = Mode.WRITE if rng.random() < writing else Mode.READ
            timeout = rng.random() * TTL if rng.random() < short else -1.0
            limit = at_most if mode is Mode.READ and at_most and rng.random() < 0.8 else 0
            hold = user.acquire(mode, timeout, known=user.watch if own else None, at_most=limit)
            if hold is None:
                continue
            if mode is Mode.READ and rng.random() < 0.5:
                user.read_generation(hold)
            user.keep(hold, rng.random() * longest_hold, commits=rng.randint(0, 3))
            user.release(hold)

    for number in range(rng.randint(2, 8)):
        run.add_process(hosts[number % len(hosts)], story, rng.random())
    _nemesis(run, hosts, story, length)

    def enough() -> None:
        run.closing = True

    def count() -> None:
        if sum(process.calls for process in run.processes) >= CALLS:
            run.closing = True
        elif not run.closing:
            run.agenda.at(run.agenda.now + TTL / 3, count)

    run.agenda.at(length, enough)
    count()
    step = TTL / 3
    while not run.closing:
        run.agenda.run(run.agenda.now + step)
    if rng.random() < 0.5:  # otherwise they all die where they are
        run.agenda.run(run.agenda.now + TTL)
    run.clear_up(length + run.weather.late_s + 2 * run.weather.slow_s)


def _nemesis(run: Run, hosts: list[Host], story: Callable[[User], None], length: float) -> None:
    rng, agenda = run.rng, run.agenda

    def duration() -> float:
        return rng.choice((0.3, 1.0, TTL / 3, TTL, 1.5 * TTL, 3 * TTL)) * rng.uniform(0.5, 1.2)

    def a_process() -> Process | None:
        living = [process for process in run.processes if process.alive]
        holders = {hold.process for hold in run.witness.holds}
        holding = [process for process in living if process in holders]
        return rng.choice(holding if holding and rng.random() < 0.6 else living) if living else None

    def pause() -> None:
        if (process := a_process()) is not None and not run.closing:
            seconds = duration()
            run.log.say(process.name, f"IS PAUSED for {seconds:.2f} s")
            process.paused_until = agenda.now + seconds

    def crash() -> Task | None:
        process = a_process()
        if process is None or run.closing:
            return None
        run.add_process(process.host, story, after=duration())
        return run.die(process)

    def reboot() -> None:
        if run.closing:
            return
        host = rng.choice(hosts)
        run.log.say(host.name, "REBOOTS")
        host.boot = f"{rng.getrandbits(40):x}"
        for process in list(run.processes):
            if process.host is host and process.alive:
                agenda.at(agenda.now, lambda process=process: run.die(process))
                run.add_process(host, story, after=duration())

    def drift() -> None:
        rng.choice(hosts).drift(rng.uniform(1 - DRIFT, 1 + DRIFT))

    for action, how_many in ((pause, (0, 3, 15)), (crash, (0, 2, 8)), (reboot, (0, 0, 1)), (drift, (0, 5))):
        for _ in range(rng.choice(how_many)):
            agenda.at(rng.random() * length, action)
    for _ in range(rng.choice((0, 0, 1, 3))):
        start = rng.random() * length
        end = start + duration()
        run.log.say("NETWORK", f"the server will be down from {start:.2f} to {end:.2f}")
        run.network.cut(start, end)
    for _ in range(rng.choice((0, 0, 1, 3))):
        start, host = rng.random() * length, rng.choice(hosts)
        end = start + duration()
        run.log.say("NETWORK", f"{host.name} will be cut off from {start:.2f} to {end:.2f}")
        host.client.link.cut(start, end)


def lapses(run: Run) -> None:
    """
    Long holds on hosts whose calls fail for a while, watched closely from others: whose lease ends first?

    In some runs children of the holders look at the holds, too, and evictors die half way.
    """
    rng = run.rng
    run.fair = False
    stale_s = rng.choice((0.0, 1.0, math.inf))
    well = Weather(stale_s=stale_s, strict=rng.random() < 0.5, delay_s=rng.choice((0.002, 0.02)))
    run.set_weather(well)
    run.has_process_table = False
    short = rng.choice((0.0, 0.5, 1.0))
    children = rng.choice((0, 0, 2))
    length = 8 * TTL

    def die_half_way(process: Process) -> None:
        if rng.random() < 0.7 and not run.closing:
            run.add_process(process.host, story, after=rng.random() * TTL)
            run.agenda.at(run.agenda.now, lambda: run.die(process))

    if children:
        run.witness.half_way = die_half_way

    def story(user: User) -> None:
        own = rng.random() < 0.5
        user.process.sleep(rng.random())
        while not run.closing:
            mode = Mode.WRITE if rng.random() < 0.6 else Mode.READ
            timeout = rng.uniform(0.2, TTL) if rng.random() < short else -1.0
            hold = user.acquire(mode, timeout, known=user.watch if own else None)
            if hold is not None:
                for _ in range(children):
                    run.add_process(rng.choice(hosts), lambda user, hold=hold: user.check_from_elsewhere(hold))
                user.keep(hold, rng.uniform(0.2, 5) * TTL, commits=20)
                user.release(hold)
            user.process.sleep(rng.random())

    hosts = [run.add_host() for _ in range(rng.randint(2, 4))]
    apart = rng.random() < 0.5  # as far as clocks may be: the holder's too slow, the others' too fast
    for host in hosts:
        if apart:
            host.rate = 1 - DRIFT if host is hosts[0] else 1 + DRIFT
        run.add_process(host, story)

    def fall_ill(host: Host) -> None:
        kind = rng.choice(("cut", "slow", "errors", "paused"))
        seconds = rng.choice((TTL / 4, TTL / 2, TTL, 1.5 * TTL)) * rng.uniform(0.7, 1.2)
        end = run.agenda.now + seconds
        run.log.say(host.name, f"FALLS ILL ({kind}) until {end:.2f}")
        if kind == "cut":
            host.client.link.cut(run.agenda.now, end)
        elif kind == "paused":
            for process in run.processes:
                if process.host is host:
                    process.paused_until = end
        else:
            changes: dict[str, Any] = (
                {"slow": 0.5, "slow_s": TTL}
                if kind == "slow"
                else {"error": rng.choice((0.5, 0.95)), "lost_reply": 0.05, "negative": 0.1, "late": 0.1, "late_s": TTL}
            )
            host.client.weather = replace(run.weather, **changes)
            run.agenda.at(end, lambda: _recover(host, run.weather))
        run.agenda.at(end + rng.random() * TTL, lambda: fall_ill(host))

    for host in hosts[: rng.randint(1, 2)]:
        run.agenda.at(rng.random() * TTL, lambda host=host: fall_ill(host))
    run.agenda.run(length)
    run.closing = True
    run.agenda.run(length + 3 * TTL)
    run.clear_up(6 * TTL)


def _recover(host: Host, weather: Weather) -> None:
    host.client.weather = weather


def outages(run: Run) -> None:
    """
    The server goes away for any time, and nothing else is wrong: nobody may lose a hold by it.

    In half of the runs it comes back with a grace period, from which clients by NFSv3 are exempt. Who has not looked at
    the lock before cannot see that a connection is new, so there everybody has, and nobody gives up early.
    """
    rng = run.rng
    run.witness.calm = True
    grace = rng.choice((0.0, 0.0, TTL / 2, 2 * TTL))
    retry = min(grace, *run.leases)  # a lease that is shorter than a client's pause between two tries may be lost
    run.standstill = (grace + retry) * (1 + DRIFT) + 1.0 if grace else 0.0
    run.set_weather(
        Weather(
            stale_s=rng.choice((0.0, 1.0, math.inf)),
            negative=rng.choice((0.0, 0.05)),
            delay_s=rng.choice((0.002, 0.02, 0.1)),
            cached_looks=rng.random() < 0.5,
        )
    )
    hosts = [run.add_host() for _ in range(rng.randint(2, 4))]
    for host in hosts:
        host.client.by_nfs3 = rng.random() < 0.5
    short = 0.0 if grace else rng.choice((0.0, 0.5, 1.0))

    def story(user: User) -> None:
        own = rng.random() < 0.5 or grace > 0
        user.watch.connected(user.files.connection(), now=user.clock(), standstill=0.0)
        while not run.closing:
            mode = Mode.WRITE if rng.random() < 0.5 else Mode.READ
            timeout = rng.uniform(0.2, TTL) if rng.random() < short else -1.0
            hold = user.acquire(mode, timeout, known=user.watch if own else None)
            if hold is not None:
                user.keep(hold, rng.random() * 3 * TTL, commits=3)
                user.release(hold)
            user.process.sleep(rng.random())

    for number in range(rng.randint(2, 4)):
        run.add_process(hosts[number % len(hosts)], story, rng.random())
    moment = 0.0
    for _ in range(rng.randint(1, 4)):
        start = moment + rng.uniform(0.5, 2 * TTL)
        moment = start + rng.choice((TTL / 4, TTL / 2, TTL, 10 * TTL, 100 * TTL)) * rng.uniform(0.7, 1.2)
        run.log.say("NETWORK", f"the server will be down from {start:.2f} to {moment:.2f}")
        run.network.restart(start, moment, grace, retry)
    run.agenda.run(moment + grace + 3 * TTL)
    run.closing = True
    run.agenda.run(run.agenda.now + 4 * TTL)
    run.witness.calm = False
    run.clear_up(1.0)


def dead_holder(run: Run) -> None:
    """Somebody dies with the lock; somebody waits. It must not take longer than the lease and a little."""
    rng = run.rng
    ttl = rng.choice((TTL, TTL / 2, TTL * 2, TTL / 6))
    stale_s, delay_s = rng.choice((0.0, ttl / 9)), rng.choice((0.002, ttl / 180))
    run.set_weather(
        Weather(stale_s=stale_s, delay_s=delay_s, lost_reply=rng.choice((0.0, 0.02)), lags=rng.random() < 0.3)
    )
    mode = rng.choice((Mode.READ, Mode.WRITE))
    lives = rng.choice((1.5 * ttl, 1.5 * ttl, 100.0))  # who has waited for long looks rarely
    victims = [_victim(run, ttl, mode, lives) for _ in range(rng.randint(1, 3) if mode is Mode.READ else 1)]
    granted: list[float] = []

    def wait(user: User) -> None:
        hold = user.acquire(_in_conflict_with(mode, rng), ttl=rng.choice((TTL, 3 * TTL)))
        assert hold is not None
        granted.append(run.agenda.now)
        user.release(hold)

    arrives = rng.uniform(0, 2 * ttl)
    is_proven = len(victims) == 1 and rng.random() < 0.3  # by the process table of the victim's host
    run.add_process(run.hosts[0] if is_proven else run.add_host(), wait, arrives)
    died = max(victims)
    # The readers that died are all watched at once. A look follows the other within a third of the lease.
    silence = 4 * 1.25 * max(run.polls) if is_proven else ttl + ttl / 3
    if run.weather.lags:
        silence += ttl * 2 / 3  # the latest heartbeat is found by name after half a lease, and watched from then on
        if run.weather.lost_reply:
            # A first heartbeat that was not heard of is followed by one far above it, whose name cannot be guessed:
            # only the try to evict, after a lease of the first one, shows it. Then it is watched.
            silence += ttl
    limit = max(died, arrives) + silence / (1 - DRIFT) + 2 * stale_s + 1.5
    run.agenda.run(limit)
    if not granted:
        raise Violation(
            f"{limit - max(died, arrives):.1f} s after a holder with a lease of {ttl} s died it still holds"
        )
    run.clear_up(1.0)


def chain(run: Run) -> None:
    """Somebody dies with the lock, and those who want it have no patience; together they must clear it."""
    rng = run.rng
    stale_s = rng.choice((0.0, 0.5))
    run.set_weather(Weather(stale_s=stale_s, delay_s=0.01))
    run.has_process_table = False
    mode = rng.choice((Mode.READ, Mode.WRITE))
    ttl = rng.choice((TTL, TTL, TTL / 3, TTL * 2))
    died = _victim(run, ttl, mode, 1.5 * ttl)
    watched = 0.0
    hosts = [run.add_host() for _ in range(3)]
    granted: list[float] = []

    def call(seconds: float) -> Callable[[User], None]:
        def story(user: User) -> None:
            hold = user.acquire(_in_conflict_with(mode, rng), seconds)
            if hold is not None:
                granted.append(run.agenda.now)
                user.release(hold)

        return story

    run.agenda.run(died + stale_s)
    while not granted:
        seconds = rng.uniform(0.7, ttl / 2)
        if watched > ttl * (1 + DRIFT) + 1.0:
            raise Violation(f"callers have watched a dead holder with a lease of {ttl} s for {watched:.1f} s in all")
        for number in range(rng.choice((1, 1, 2))):  # two of them at once are worth no more than one
            run.add_process(rng.choice(hosts), call(seconds * (1 - 0.3 * number)))
        run.agenda.run(run.agenda.now + seconds / (1 - DRIFT) + 0.3 + rng.random() * 2)
        # The first look comes a tenth of a second and a poll after the start.
        watched += max(seconds - 0.1 - max(run.polls) / 4 - 0.2, 0.0)
    run.clear_up(1.0)


def _in_conflict_with(mode: Mode, rng: random.Random) -> Mode:
    return Mode.WRITE if mode is Mode.READ else rng.choice((Mode.READ, Mode.WRITE))


def _victim(run: Run, ttl: float, mode: Mode, lives: float) -> float:
    """Add a process that gets the lock and dies with it, after ``lives`` seconds at the most; returns when."""
    rng = run.rng
    dies = rng.uniform(0.5, lives)

    def story(user: User) -> None:
        hold = user.acquire(mode, ttl=ttl)
        if hold is not None:
            user.keep(hold, math.inf)

    user = run.add_process(run.add_host(), story)
    run.agenda.at(dies, lambda: run.die(user.process))
    return dies


def turn(run: Run) -> None:
    """Readers without end, and writers who must all get their turn."""
    rng = run.rng
    stale_s = rng.choice((0.0, 0.5))
    delay_s = rng.choice((0.002, 0.02))
    run.set_weather(Weather(stale_s=stale_s, delay_s=delay_s))
    hosts = [run.add_host() for _ in range(3)]
    longest = rng.choice((0.05, 0.5, 2.0))
    granted: list[float] = []

    def read(user: User) -> None:
        while not run.closing:
            hold = user.acquire(Mode.READ)
            if hold is not None:
                user.keep(hold, rng.uniform(0.5, 1.0) * longest)
                user.release(hold)

    def write(user: User) -> None:
        hold = user.acquire(Mode.WRITE)
        assert hold is not None
        granted.append(run.agenda.now)
        user.keep(hold, longest / 2)
        user.release(hold)

    for number in range(rng.randint(2, 5)):
        run.add_process(hosts[number % 3], read, rng.random() * longest)
    writers = rng.randint(1, 3)
    arrives = 3 * longest
    for number in range(writers):
        run.add_process(hosts[number], write, arrives)
    # To notice that the one before has gone, let out the readers that came meanwhile, notice that, and write.
    one_turn = 1.5 * longest + 2 * (4 * 1.25 * max(run.polls) + stale_s) + 20 * delay_s
    limit = arrives + writers * one_turn / (1 - DRIFT)
    run.agenda.run(limit)
    if len(granted) < writers:
        raise Violation(
            f"only {len(granted)} of {writers} writers had their turn among readers in {limit - arrives:.1f} s"
        )
    run.closing = True
    run.agenda.run(run.agenda.now + 3 * longest + 5)
    run.clear_up(1.0)


def permits(run: Run) -> None:
    """More processes than permits, which take them again and again: nobody falls behind, and no permit lies idle."""
    rng = run.rng
    stale_s, delay_s = rng.choice((0.0, 0.5)), rng.choice((0.002, 0.02))
    run.set_weather(Weather(stale_s=stale_s, delay_s=delay_s))
    hosts = [run.add_host() for _ in range(3)]
    at_most, longest = rng.randint(1, 3), rng.choice((0.05, 0.5, 2.0))
    turns = [0] * rng.randint(2 * at_most, 9)
    asked, passed = [0] * len(turns), [0] * len(turns)

    def take(user: User, place: int) -> None:
        while not run.closing:
            asked[place] = sum(turns)
            hold = user.acquire(Mode.READ, at_most=at_most)
            if hold is not None:
                passed[place] = max(passed[place], sum(turns) - asked[place])
                turns[place] += 1
                asked[place] = sum(turns)
                user.keep(hold, rng.uniform(0.5, 1.0) * longest)
                user.release(hold)

    for place in range(len(turns)):
        run.add_process(hosts[place % 3], lambda user, place=place: take(user, place), rng.random() * longest)
    one_turn = longest + 4 * 1.25 * max(run.polls) + stale_s + 20 * delay_s
    enough = 3 * len(turns)
    while sum(turns) < enough and run.agenda.now < enough / at_most * one_turn / (1 - DRIFT):
        run.agenda.run(run.agenda.now + longest)
    if sum(turns) < enough:
        raise Violation(f"{at_most} permits were taken only {sum(turns)} times in {run.agenda.now:.0f} s")
    passed = [max(most, sum(turns) - since) for most, since in zip(passed, asked, strict=True)]
    if max(passed) > 3 * (len(turns) - 1):
        raise Violation(f"of {at_most} permits others had {passed} turns during one wait of each process")
    run.closing = True
    run.agenda.run(run.agenda.now + 3 * longest + 5)
    run.clear_up(1.0)


KINDS: dict[str, Callable[[Run], None]] = {
    "mixed": mixed,
    "limited": limited,
    "permits": permits,
    "unnumbered": unnumbered,
    "lapses": lapses,
    "outages": outages,
    "dead_holder": dead_holder,
    "chain": chain,
    "turn": turn,
    "succession": succession,
    "in_line": in_line,
}
#: How often each kind is drawn.
SHARES = ("mixed",) * 5 + ("lapses",) * 3 + ("outages",) + ("dead_holder", "chain", "turn")
#: The numbers that are of other kinds, modulo 40.
_OTHERS = {
    5: "limited",
    13: "succession",
    19: "limited",
    22: "permits",
    26: "succession",
    31: "unnumbered",
    39: "in_line",
}


def kind_of(seed: int) -> str:
    """Which kind of run the number stands for."""
    return _OTHERS.get(seed % 40) or SHARES[seed % len(SHARES)]


def run(
    seed: int, *, kind: str | None = None, record: bool = False, options: Options | None = None
) -> tuple[Counts, list[str]]:
    """
    Play one run.

    :returns: what it amounted to, and its history if ``record``
    :raises Violation: if a promise was broken
    """
    this = Run(seed, record=record, options=options)
    try:
        KINDS[kind or kind_of(seed)](this)
    except Stopped:  # pragma: no cover - the run itself is nobody's process
        raise AssertionError from None
    except BaseException as error:
        error.history = this.log.lines  # type: ignore[attr-defined]
        raise
    finally:
        this.finish()
    return this.witness.counts, this.log.lines


def _lease_of(name: str) -> float:
    announcement = parse_announcement(name)
    return announcement.lease_ms / 1000 if announcement is not None else 0.0
