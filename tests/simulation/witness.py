"""
Who sees everything: the judge of a simulated run. It knows the server's state, every clock and every hold.

It is written apart from the engine and asks it for two things only: whether a participant says that it is granted, and
whether its lease has run out on its own clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nfsrwlock_core.names import Mode, beats_in, parse_beats
from nfsrwlock_core.protocol import participant as protocol

from .nfs import Log, Process, Server


class Violation(AssertionError):
    """A run broke a promise of the protocol."""


@dataclass(eq=False)
class Hold:
    """One granted lock, as its user has it."""

    process: Process
    participant: protocol.Participant
    data: Any
    generation: int | None
    ended: bool = False
    lost: bool = False
    commits: int = 0

    @property
    def stands(self) -> bool:
        """What ``check()`` says: granted, not known as lost, and the lease has not run out on the holder's clock."""
        return (
            not self.ended
            and not self.lost
            and self.process.alive
            and self.participant.phase is protocol.Phase.GRANTED
            and not self.participant.lease.has_run_out(self.process.host.clock())
        )

    def __str__(self) -> str:
        number = "" if self.generation is None else f" {self.generation}"
        return f"{self.process.name} ({self.participant.mode.value}{number})"


@dataclass
class Counts:
    """What a run amounted to."""

    calls: int = 0
    grants: int = 0
    commits: int = 0
    evictions: int = 0
    revivals: int = 0
    losses: int = 0
    given_up: int = 0
    crashes: int = 0
    refused: int = 0
    checked: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Announced:
    """An announcement on the server, and whose it is."""

    process: Process
    evicted_at: float | None = None
    #: Its own process has removed its heartbeat, so anyone may remove the rest.
    ending: bool = False


class Witness:
    """Judges a run; every method raises :class:`Violation` where a promise was broken."""

    def __init__(self, server: Server, log: Log) -> None:
        self.log = log
        self.server = server
        self.agenda = server.agenda
        self.counts = Counts()
        #: Nobody here is slow, cut off or dead for long, so nobody may be evicted.
        self.calm = False
        #: What the lock protects: who wrote it last, and how often it was written.
        self.data: tuple[str, int] = ("nobody", 0)
        self.highest_granted = 0
        self.highest_read = 0
        self.holds: set[Hold] = set()
        self.announced: dict[str, Announced] = {}
        #: When announcements of processes that have died were last seen on the server.
        self.removed_at: dict[str, float] = {}
        #: Told of everybody who has removed another's heartbeat, and not yet the rest.
        self.half_way: Callable[[Process], None] = lambda by: None
        server.on_change = self.changed

    # -- what happens at the server -----------------------------------------------------------------------------------

    def changed(self, kind: str, name: str, by: Process) -> None:
        if not name.startswith(("read.", "write.")):
            return
        if kind == "mkdir":
            self.announced.setdefault(name, Announced(by))
            return
        top, _, inside = name.partition("/")
        announced = self.announced[top]
        if not inside:
            self.removed_at[top] = self.agenda.now
        if announced.process is by:
            announced.ending = announced.ending or kind == "unlink"
            if kind == "create":  # it had not heard of the heartbeat that was removed, and this one stops its evictor
                announced.evicted_at = None
            return
        if kind == "unlink" and self._has_later_beat(top, inside):
            return  # that was not the holder's latest, and the evictor looks again
        if announced.ending or announced.evicted_at is not None:
            return
        announced.evicted_at = self.agenda.now
        if kind == "unlink":
            self.half_way(by)
        self.counts.evictions += 1
        self.log.say("WITNESS", f"{announced.process.name} is evicted by {by.name}")
        if announced.process.alive:
            if self.calm:
                raise Violation(f"{announced.process.name} was evicted by {by.name} although it was never silent")
            for hold in self.holds:
                if hold.participant.name == top and hold.stands:
                    raise Violation(f"{hold} was evicted by {by.name} while its own lease still stood")

    def _has_later_beat(self, top: str, beat: str) -> bool:
        directory = self.server.root.entries.get(top)
        latest = None if directory is None else parse_beats(list(directory.entries))
        return latest is not None and latest > max(beats_in([beat]), default=-1)

    def left(self) -> list[str]:
        """What is on disk, but for the numbers of grants."""
        return sorted(name for name in self.server.root.entries if not name.startswith("gen."))

    # -- what users do ------------------------------------------------------------------------------------------------

    def granted(self, process: Process, participant: protocol.Participant) -> Hold:
        self.counts.grants += 1
        hold = Hold(process, participant, self.data, participant.generation)
        self.log.say(process.name, f"IS GRANTED {participant.mode.value} {participant.generation or ''}")
        if participant.mode is Mode.WRITE and participant._numbered:
            number = participant.generation
            if number is None or number <= self.highest_granted:
                raise Violation(f"{hold} was granted number {number} after {self.highest_granted} had been granted")
            if number <= self.highest_read:
                raise Violation(f"{hold} was granted number {number} after a reader had read {self.highest_read}")
            self.highest_granted = number
        self.holds.add(hold)
        self._no_conflict_with(hold)
        return hold

    def beaten(self, hold: Hold, outcome: protocol.Beat, *, had_run_out: bool) -> None:
        if outcome is protocol.Beat.LOST:
            hold.lost = True
            self.counts.losses += 1
            self.log.say(hold.process.name, "KNOWS THAT IT LOST THE LOCK")
            name = hold.participant.name
            if name in self.server.root.entries and self.announced[name].evicted_at is None:
                raise Violation(f"{hold} was told that it lost the lock, but nobody had evicted it")
        elif hold.stands and had_run_out:
            self.counts.revivals += 1
            self.log.say(hold.process.name, "IS SAFE AGAIN")
        self._no_conflict_with(hold)

    def commits(self, hold: Hold) -> None:
        """The user's ``check()`` passes and it reads or writes what the lock protects, at one moment."""
        if not hold.stands:
            self.counts.refused += 1
            return
        self.counts.commits += 1
        if self.data != hold.data:
            raise Violation(f"{hold} found at its commit that {self.data[0]} had written meanwhile")
        hold.commits += 1
        if hold.participant.mode is Mode.WRITE:
            self.data = hold.data = (str(hold), self.data[1] + 1)
        self._no_conflict_with(hold)

    def read_generation(self, hold: Hold, number: int) -> None:
        if not hold.stands:
            return
        if number < self.highest_granted:
            raise Violation(f"{hold} read generation {number} although {self.highest_granted} had been granted")
        self.highest_read = max(self.highest_read, number)

    def checked(self, hold: Hold, by: str) -> None:
        """A process that works under a hold has looked at it from elsewhere, and was told that it stands."""
        self.counts.checked += 1
        if not hold.ended and self.announced[hold.participant.name].evicted_at is not None:
            raise Violation(f"{by} was told that {hold} stands, but it had been evicted")

    def ended(self, hold: Hold) -> None:
        hold.ended = True
        self.holds.discard(hold)

    def released(self, hold: Hold, *, stood: bool, since: float) -> None:
        self.log.say(hold.process.name, f"HAS RELEASED, says that it {'stood' if stood else 'may have been lost'}")
        evicted = self.announced[hold.participant.name].evicted_at
        if stood and evicted is not None and evicted < since:
            raise Violation(f"{hold} was told at its release that it stood, but it had been evicted")

    def died(self, process: Process) -> None:
        self.counts.crashes += 1
        self.log.say(process.name, "DIES")
        self.holds = {hold for hold in self.holds if hold.process is not process}

    def _no_conflict_with(self, hold: Hold) -> None:
        if not hold.stands:
            return
        # Most of many readers need not be asked.
        standing = [other for other in self.holds if _may_conflict(hold, other) and other.stands]
        limited = [other for other in standing if _limit_of(other)]
        if len(limited) > min(map(_limit_of, limited), default=0):
            names = sorted(map(str, limited))
            raise Violation(
                f"{', '.join(names)} hold at one moment, which are more than {min(map(_limit_of, limited))}"
            )
        for other in sorted(standing, key=str):
            if other is not hold and Mode.WRITE in (hold.participant.mode, other.participant.mode):
                raise Violation(f"{hold} and {other} hold the lock at one moment")


def _limit_of(hold: Hold) -> int:
    return hold.participant._at_most if hold.participant.mode is Mode.READ else 0


def _may_conflict(hold: Hold, other: Hold) -> bool:
    return Mode.WRITE in (hold.participant.mode, other.participant.mode) or _limit_of(other) > 0
