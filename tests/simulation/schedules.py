"""
Every schedule of whole steps, within bounds: a holder, callers who come and give up, and time, tick by tick.

What :mod:`simulation.exhaustive` leaves to an oracle runs here as it is shipped: the watch, and the notes of callers
that gave up. In return a step is not interrupted, so a lost race is not what is looked for here, but a holder that is
called silent too early: a lease is three ticks, and a tick is as long as a gap in watching may be.

A participant is what it became by its history, so to go on from a state, its history is played again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from faults import MemoryFiles, Server
from nfsrwlock_core.names import Identity, Mode
from nfsrwlock_core.protocol.heartbeat import Beat, Phase, World
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.watch import Watch

from .witness import Violation

#: A lease, in ticks.
LEASE: Final = 3.0
#: What happens next: what, who, and (for who looks) which heartbeat an old listing shows, if not the latest.
Action = tuple[str, int, int | None]


@dataclass(frozen=True)
class Bounds:
    """What is searched."""

    #: How the holder holds; those who call want the lock for themselves if it is shared, and shared otherwise.
    holder: Mode = Mode.WRITE
    #: Whether each host's callers share one watch.
    shared_watch: tuple[bool, ...] = (True, False)
    ticks: int = 5
    #: How many callers come, in all.
    calls: int = 3
    beats: int = 2


class _Files(MemoryFiles):
    """A client whose listing of an announcement may be old."""

    shows: int | None = None

    def listdir(self, name: str = "") -> list[str]:
        listed = super().listdir(name)
        if self.shows is None or "/" in name or not name.startswith(("read.", "write.")):
            return listed
        return [f"beat.{self.shows}"] if self.shows >= 0 else []


class Play:
    """One schedule, played."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.server = Server()
        self.clock = 0.0
        self.calls = 0
        self.tokens = 0
        self.watches = [Watch() for _ in bounds.shared_watch]
        self.callers: list[Participant | None] = [None for _ in bounds.shared_watch]
        self.lost = False
        self.holder = self._participant(bounds.holder, 0, Watch())
        assert self.holder.advance()

    def _participant(self, mode: Mode, host: int, watch: Watch) -> Participant:
        world = World(clock=lambda: self.clock, is_dead=lambda who: False, token=self._token)
        who = Identity(pid=host, start=0, kernel=f"{host:x}", uid=0, host="h")
        return Participant(
            _Files(self.server),
            world,
            who,
            mode,
            ttl=LEASE,
            interval=LEASE / 3,
            ticket=self.calls,
            since_ms=0,
            watch=watch,
        )

    def _token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:032x}"

    def actions(self) -> list[Action]:
        """What can happen now."""
        found: list[Action] = []
        if self.clock < self.bounds.ticks:
            found.append(("tick", 0, None))
        beats = self.holder.beats
        if not self.lost and (beats is None or beats + 1 < self.bounds.beats):
            found.append(("beat", 0, None))
        for host, caller in enumerate(self.callers):
            if caller is None:
                if self.calls < self.bounds.calls:
                    found.append(("call", host, None))
                continue
            if caller.phase is not Phase.GRANTED:
                views = (None, *range(-1, -1 if beats is None else beats))
                found += [(what, host, view) for what in ("step", "give up") for view in views]
        return found

    def do(self, action: Action) -> None:
        """Let one thing happen."""
        what, host, view = action
        if what == "tick":
            self.clock += 1
        elif what == "beat":
            self.lost = self.holder.beat() is Beat.LOST
        elif what == "call":
            self.calls += 1
            mode = Mode.READ if self.bounds.holder is Mode.WRITE else Mode.WRITE
            watch = self.watches[host] if self.bounds.shared_watch[host] else Watch()
            self.callers[host] = self._participant(mode, host + 1, watch)
        else:
            caller = self.callers[host]
            assert caller is not None
            assert isinstance(caller.files, _Files)
            caller.files.shows = view
            if what == "step":
                caller.advance()
            else:
                caller.give_up()
                self.callers[host] = None

    def check(self) -> None:
        """Raise :class:`Violation` if the holder was evicted while its own lease stood."""
        stands = not self.lost and not self.holder.lease.has_run_out(self.clock)
        if stands and self.holder.name not in self.server.entries:
            raise Violation("the holder was evicted while its own lease stood")

    def state(self) -> Any:
        """Return all that decides what can happen from here on; callers here only ever poll, so their names do not."""
        return (
            self.clock,
            self.calls,
            self.lost,
            self.holder.beats,
            self.holder.lease,
            frozenset((name, frozenset(inside)) for name, inside in self.server.entries.items()),
            tuple(_state_of(caller) for caller in self.callers),
            tuple(_seen_by(watch) for watch in self.watches),
        )


def _state_of(caller: Participant | None) -> Any:
    if caller is None:
        return None
    notes = (caller._first_listing and caller._first_listing.notes, caller._listing and caller._listing.notes)
    timing = (caller._fresh, caller._afresh_in, caller._attended)
    fields = (caller.phase, timing, frozenset(caller._looked_at), notes)
    return fields, tuple(peer.name for peer in caller.blockers), _seen_by(caller.watch)


def _seen_by(watch: Watch) -> Any:
    return frozenset(
        (name, record.beat, record.since, record.last, record.credit) for name, record in watch._records.items()
    )


def search(bounds: Bounds, limit: int = 1_000_000) -> tuple[int, int]:
    """
    Play every schedule.

    :returns: how many states there are, and in how many the holder has been evicted
    :raises Violation: with the shortest schedule that breaks a promise
    """
    start = Play(bounds)
    seen = {start.state()}
    queue: deque[tuple[tuple[Action, ...], list[Action]]] = deque([((), start.actions())])
    evicted = 0
    while queue:
        history, actions = queue.popleft()
        for action in actions:
            play = _replayed(bounds, history)
            play.do(action)
            try:
                play.check()
            except Violation as violation:
                raise Violation(f"{violation}: {', '.join(_said(one) for one in (*history, action))}") from None
            state = play.state()
            if state not in seen:
                seen.add(state)
                evicted += play.holder.name not in play.server.entries
                queue.append(((*history, action), play.actions()))
        if len(seen) > limit:
            raise RuntimeError(f"more than {limit} states")
    return len(seen), evicted


def _replayed(bounds: Bounds, history: tuple[Action, ...]) -> Play:
    play = Play(bounds)
    for action in history:
        play.do(action)
    return play


def _said(action: Action) -> str:
    what, host, view = action
    if what in ("tick", "beat"):
        return what
    return f"{host} {what}" + ("" if view is None else f" (sees {'no beat' if view < 0 else f'beat {view}'})")
