"""
Every interleaving of a few participants: explicit-state search over the shipped protocol code.

A participant's step (``advance``, ``beat``, ``release``) is run up to its next file-system call, where it is thrown
away: what it did so far is known by the answers it got, so to go on, the step is run again from its beginning with
those answers. That makes the shipped code a function from (where it stands, next answer) to (where it stands, next
call), whose values are kept, and the search itself a walk over tuples of small numbers.

What can happen at any moment, in any order:

* A call that somebody has sent is carried out at the server, and its sender goes on to its next call. That nothing is
  sent or answered for any time, a pause, is included, because everybody else may go on in between.
* A listing of the lock directory shows what was there, on the server, ever since the latest own change of its client
  and still is, and of all that was there at any time since then whatever it likes. That is both staleness without bound
  and listings that are of no one moment. A listing of a peer's announcement shows any heartbeat it ever had, or none.
* A lease runs out: the clock of one host jumps by a lease, alone. So clocks need not agree on anything, except that
  whoever looks at a heartbeat may find it silent for long enough only if it was sent before the latest such jump of its
  maker's clock (or if the look shows an old state). That is all that is assumed of
  :mod:`nfsrwlock_core.protocol.watch`, which is replaced here; the campaigns run the real one.
* A participant dies. What it had sent may still be carried out, any time later, or never. Its death may be known to
  all.
* As many calls as ``faults`` says fail: done or not, with EIO, with the error of a retransmission, or with an ENOENT
  out of the client's cache. A ``mkdir`` that was done and failed does not make the client's next listing fresh.

How often each of these happens is bounded (:class:`Bounds`); within the bounds the search is complete. After a call was
carried out, its sender goes on at once, or after its own lease has run out; to let it go on later in any other way
shows nothing new, since what it does up to its next call touches nothing but itself, and only makes it hold the lock
later.

Checked in every state: no two conflicting participants whose own word is that they hold the lock, granted and with a
lease that has not run out on their own clock; each number granted is higher than all before it, and a reader that holds
the lock reads none that is lower; who has released the lock has left no announcement.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import _GeneratorContextManager, suppress
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from itertools import chain, combinations
from types import TracebackType
from typing import Any, Final, NamedTuple

from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.names import Announcement, Identity, Listing, Mode, parse_beats, token_in
from nfsrwlock_core.protocol import participant as protocol

from .witness import Violation

#: What a lease is here; the clocks jump by it.
_TTL: Final = 1.0

Name = str
#: Who did it, what it was, step by step, and whether its lease ran out right after that.
_Label = tuple[int, tuple[str, ...], int]
#: An answer of the server: what the call returns, or the number of its error.
Answer = Any


@dataclass(frozen=True)
class Bounds:
    """What is searched. A figure is for each participant, or a tuple with one for each, unless it says otherwise."""

    #: One letter for each participant, W, R, or w for a writer without a number, or the limit of a reader that has one;
    #: the first have come first.
    modes: str
    #: How often it may announce itself, in all its rounds.
    announcements: int | tuple[int, ...] = 1
    #: How often it takes the lock.
    rounds: int = 1
    #: Heartbeats that it sends while it holds the lock; those of its own accord come on top.
    beats: int | tuple[int, ...] = 1
    #: How often its lease runs out.
    expiries: int | tuple[int, ...] = 1
    #: How many participants die, in all.
    crashes: int = 1
    #: How many calls fail, in all.
    faults: int = 0
    #: Whether a writer that finds one of higher rank gives way at once, too.
    gives_way: bool = False
    #: Whether a holder reads its generation.
    generation: bool = False
    #: To the letter of section 6, only ``mkdir`` makes the next listing fresh.
    strict: bool = True


@dataclass(frozen=True)
class Explored:
    """How far the search went."""

    states: int
    transitions: int
    grants: int
    evictions: int
    revivals: int
    deaths: int
    #: Steps of the shipped code that were run for it.
    steps: int


class _Suspended(BaseException):
    """The step has come to a call whose answer is not known yet."""


class _Exhausted(BaseException):
    """The participant has announced itself as often as the bounds allow."""


class _Oracle:
    """Stands in for the watch: silence is what the search says, and every look is due."""

    def __init__(self, seen: dict[str, int | None]) -> None:
        self.seen = seen
        #: Who is found silent for a lease.
        self.permit = ""
        #: About whose silence, since which heartbeat, it was asked; each is asked for by itself.
        self.asked: dict[str, int | None] = {}

    def connected(self, connection: str | None, *, now: float, standstill: float) -> None:
        pass

    def meet(self, name: str, now: float) -> float:
        return -1e9

    def last_look(self, name: str) -> None:
        return None

    def look(
        self, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0
    ) -> tuple[float, int | None]:
        self.seen[name] = beat
        return self.watched(name), beat

    def watched(self, name: str) -> float:
        self.asked[name] = self.seen.get(name)
        return 1e9 if self.permit == name else 0.0

    def beat(self, name: str) -> int | None:
        return self.seen.get(name)

    def known(self) -> set[str]:
        return set(self.seen)

    def forget(self, names: Any) -> None:
        for name in names:
            del self.seen[name]


class _Scripted:
    """The engine's ``Files``: gives the known answers, and suspends the step at the first unknown one."""

    path = "the simulated lock directory"

    def __init__(self, step: _Step) -> None:
        self._step = step

    def mkdir(self, name: str) -> None:
        self._step.call("mkdir", name)

    def rmdir(self, name: str = "") -> None:
        self._step.call("rmdir", name)

    def listdir(self, name: str = "") -> list[str]:
        return list(self._step.call("listdir", name))

    def create(self, name: str, record: bytes) -> None:
        self._step.call("create", name)

    def rename(self, old: str, new: str) -> None:
        self._step.call("rename", old, new)

    def unlink(self, name: str) -> None:
        self._step.call("unlink", name)

    def connection(self) -> str | None:
        return None


class _Input(NamedTuple):
    """What a participant goes on with: an answer, and what it may find when it looks around."""

    answer: Answer
    clock: int
    permit: str
    dead: frozenset[int]


@dataclass(frozen=True)
class _Place:
    """Where a participant stands: between two steps, or in one, at a call."""

    who: int
    #: The participant's fields at the beginning of the step, and what it was given since then.
    fields: int
    step: str
    inputs: tuple[_Input, ...]
    call: tuple[str, ...] | None
    #: The maker's clock when the call was sent.
    sent: int
    #: The user has the lock, as far as it knows, by this lease.
    lease: protocol.Lease | None
    generation: int | None
    announced: bool
    round: int
    beats: int
    lost: bool
    asked: bool = False


class _Scene(NamedTuple):
    """All that decides what one participant can do, but its place. A state has the number of its scene."""

    server: int
    clocks: tuple[int, ...]
    #: Who has died.
    dead: frozenset[int]
    #: How many calls may still fail.
    faults: int


class _Move(NamedTuple):
    """What one participant does, and what that makes of the scene and of its place."""

    label: _Label
    scene: int
    place: int
    dies: bool = False
    #: Whether it comes to hold the lock or to know a number, or leaves something that it must not.
    is_judged: bool = False
    #: How many ways there are to do it, of which the label tells the first.
    ways: int = 1


#: The scene, the highest number granted, and the place of each participant.
_State = tuple[int, ...]
#: What a participant does next or meets, whether its lease runs out right after that, its place then, and the scene.
_Next = tuple[str, int, int, int]


class _Step:
    """One run of a step of the shipped code, up to its first unknown answer."""

    def __init__(self, search: Search, who: int, fields: dict[str, Any], tokens: int, seen: dict[str, Any]) -> None:
        self.search = search
        self.who = who
        self.tokens = tokens
        self.inputs: tuple[_Input, ...] = ()
        self.position = 0
        self.pending: tuple[str, ...] | None = None
        self.summary: Any = None
        self.where: Any = None
        self.clock = 0
        self.dead: frozenset[int] = frozenset()
        self.oracle = _Oracle(dict(seen))
        self.participant = object.__new__(protocol.Participant)
        self.participant.__dict__.update(
            {name: value.copy() if type(value) in _COPIED else value for name, value in fields.items()},
            files=_Scripted(self),
            watch=self.oracle,
            _world=protocol.World(
                clock=lambda: float(self.clock), is_dead=lambda who: who.pid in self.dead, token=self.token
            ),
        )

    def token(self) -> str:
        if self.tokens >= self.search.tokens[self.who]:
            raise _Exhausted
        self.tokens += 1
        return f"{self.who:x}{self.tokens:031x}"

    def call(self, *call: str) -> Any:
        if self.pending is not None:
            raise _Suspended  # a clean-up on the way out: it does not happen here
        self.position += 1
        if self.position >= len(self.inputs):
            self.pending = call
            self.note_where_it_stands(sys._getframe(2))
            raise _Suspended
        self.take(self.inputs[self.position])
        answer = self.inputs[self.position].answer
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer), call[1])
        return answer

    def note_where_it_stands(self, frame: Any) -> None:
        """Note all that decides how the step goes on: the participant, and each function's line and variables."""
        frames = []
        while frame.f_code is not _Step.run.__code__:
            variables = tuple(
                (name, _frozen(value))
                for name, value in sorted(frame.f_locals.items())
                if value is not self.participant and type(value) not in _UNTOLD
            )
            frames.append((frame.f_code, frame.f_lasti, variables))
            frame = frame.f_back
        self.summary = (
            self.participant.name,
            self.participant.phase,
            self.participant.lease,
            self.participant.generation,
        )
        self.where = (tuple(frames), self.search.freeze(self))

    def take(self, given: _Input) -> None:
        self.clock, self.dead, self.oracle.permit = given.clock, given.dead, given.permit
        self.oracle.asked = {}

    def run(self, step: str, inputs: tuple[_Input, ...]) -> Any:
        self.inputs = inputs
        self.take(inputs[0])
        try:
            return getattr(self.participant, step)()
        except LockPathError as error:
            raise Violation(
                f"participant {self.who} calls a file system unfit that keeps the rules: {error}"
            ) from error
        except OSError as error:
            return error.with_traceback(None)


class Search:
    """
    One exhaustive search.

    :param limit: give up after so many states
    :param reduced: whether listings are put off to the next change; without, every call is taken by itself
    """

    def __init__(self, bounds: Bounds, limit: int = 5_000_000, *, reduced: bool = True) -> None:
        self.bounds = bounds
        self.reduced = reduced
        self.limit = limit
        self.beats = _each(bounds.beats, bounds)
        self.expiries = _each(bounds.expiries, bounds)
        probes = bounds.rounds if bounds.generation else 0
        self.tokens = tuple(number + probes for number in _each(bounds.announcements, bounds))
        self._fields: list[tuple[dict[str, Any], int, dict[str, Any]]] = []
        self._fields_by_key: dict[Any, int] = {}
        self._places: list[_Place] = []
        self._places_by_key: dict[Any, int] = {}
        self._outs: dict[int, int] = {}
        self._orphans: dict[int, int] = {}
        self._continuations: dict[Any, tuple[int, dict[str, int | None]] | None] = {}
        self._servers: list[Any] = []
        self._contents: list[dict[str, Any]] = []
        self._unseen: dict[tuple[int, int], tuple[int, bool]] = {}
        self._servers_by_key: dict[Any, int] = {}
        self._carried_out: dict[Any, list[tuple[Answer, int, str]]] = {}
        self._scenes: list[_Scene] = []
        self._scenes_by_key: dict[_Scene, int] = {}
        # What can happen at a place in a scene, up to the next change at the server, and up to the next call.
        self._moves_at: dict[tuple[int, int], list[_Move]] = {}
        self._next_at: dict[tuple[int, int], list[_Next]] = {}
        self._stands: dict[tuple[int, int], bool] = {}
        self.steps = 0
        self._writers = tuple(mode in "Ww" for mode in bounds.modes)
        self._limits = tuple(int(mode) if mode.isdigit() else 0 for mode in bounds.modes)
        #: What led to the place that was looked at latest.
        self._latest: _Label = (0, (), 0)
        self._tally = dict.fromkeys(("grants", "evictions", "revivals"), 0)

    # -- the search ---------------------------------------------------------------------------------------------------

    def run(self) -> Explored:
        """
        Visit every state.

        :raises Violation: with the shortest way to a state that breaks a promise
        """
        count = len(self.bounds.modes)
        # Who has not begun announces itself before it looks, if its calls do not fail.
        views = ((frozenset(), frozenset()) if self.bounds.faults else None,) * count
        server = self._server(frozenset(), views, frozenset())
        scene = self._scene(server, (0,) * count, frozenset(), self.bounds.faults)
        start = (scene, 0, *(self._idle(who, 0) for who in range(count)))
        parents: dict[_State, _State | None] = {start: None}
        queue = deque([start])
        transitions = deaths = 0
        state = start
        collects = gc.isenabled()
        gc.disable()  # all that is found is kept: to look through it for garbage takes a fifth of the time
        try:
            while queue:
                state = queue.popleft()
                for move, following in self._successors(state):
                    transitions += move.ways
                    if move.dies:
                        deaths += move.ways
                    if following not in parents:
                        parents[following] = state
                        self._check(following)
                        queue.append(following)
                if len(parents) > self.limit:
                    raise RuntimeError(f"more than {self.limit} states")
        except Violation as violation:
            raise Violation(f"{violation}\n" + "\n".join(self._way_to(state, parents))) from violation
        finally:
            if collects:
                gc.freeze()
                gc.unfreeze()  # now it counts as old, and is not looked through at once
                gc.enable()
        return Explored(len(parents), transitions, deaths=deaths, steps=self.steps, **self._tally)

    def _way_to(self, state: _State, parents: dict[_State, _State | None]) -> list[str]:
        last = next(
            (
                self._told(move.label)
                for move, following in self._successors_until_broken(state)
                if self._is_broken(following)
            ),
            "",
        )
        way = [last or self._told(self._latest)]  # or the step itself was refused
        while (before := parents[state]) is not None:
            way.insert(0, next(self._told(move.label) for move, then in self._successors(before) if then == state))
            state = before
        return way

    def _successors_until_broken(self, state: _State) -> Iterator[tuple[_Move, _State]]:
        with suppress(Violation):
            yield from self._successors(state)

    def _is_broken(self, state: _State) -> bool:
        try:
            self._check(state)
        except Violation:
            return True
        return False

    def _told(self, label: _Label) -> str:
        who, what, late = label
        return f"  {who}: {'; '.join(what)}" + (_LATE if late else "")

    def _check(self, state: _State) -> None:
        clocks = self._scenes[state[0]].clocks
        holding = [who for who, clock in enumerate(clocks) if self._is_held(state[2 + who], clock)]
        if len(holding) > 1 and any(self._writers[who] for who in holding):
            raise Violation(f"participants {holding} of {self.bounds.modes} hold the lock at one moment")
        limits = [limit for who in holding if (limit := self._limits[who])]
        if limits and len(limits) > min(limits):
            raise Violation(f"participants {holding} of {self.bounds.modes} are more than their limit")

    def _is_held(self, place: int, clock: int) -> bool:
        key = (place, clock)
        held = self._stands.get(key)
        if held is None:
            lease = self._places[place].lease
            held = self._stands[key] = lease is not None and not lease.has_run_out(float(clock))
        return held

    def _successors(self, state: _State) -> Iterator[tuple[_Move, _State]]:
        scene, granted, *_ = state
        for who in range(2, len(state)):
            before, place, after = state[2:who], state[who], state[who + 1 :]
            moves = self._moves_at.get((place, scene))
            if moves is None:
                moves = self._moves_at[place, scene] = _each_once(self._moves(place, scene))
            for move in moves:
                number = self._judge(move, place, granted) if move.is_judged else granted
                yield move, (move.scene, number, *before, move.place, *after)

    def _judge(self, move: _Move, origin: int, granted: int) -> int:
        """
        Return the highest number granted after a move.

        :raises Violation: if it breaks a promise
        """
        self._latest = move.label
        who, before, place = move.label[0], self._places[origin], self._places[move.place]
        server, clocks, _, _ = self._scenes[move.scene]
        if place.lease is not None and before.lease is None:
            self._tally["grants"] += move.ways
            if self.bounds.modes[who] == "W":
                assert place.generation is not None
                if place.generation <= granted:
                    raise Violation(f"participant {who} is granted number {place.generation} after {granted}")
                granted = place.generation
        elif place.lease is not None and before.lease is not None:
            if place.lease.renewed > before.lease.renewed and not self._is_held(origin, clocks[who]):
                self._tally["revivals"] += move.ways
            if (
                self.bounds.modes[who] == "R"
                and before.generation is None
                and place.generation is not None
                and self._is_held(move.place, clocks[who])
                and place.generation < granted
            ):
                raise Violation(f"reader {who} reads generation {place.generation}, but {granted} was granted")
        if place.step in ("ended", "out") and (left := self._left_by(who, server)):
            raise Violation(f"participant {who} has released the lock and left {left}")
        return granted

    def _steps_at(self, place: _Place) -> tuple[str, ...]:
        if place.step == "out":
            return ()
        if place.step == "ended":
            return ("again",)
        if place.lease is None and not place.lost:
            return ("advance",)
        steps = ["release"]
        if not place.lost and place.beats < self.beats[place.who]:
            steps.append("beat")
        if not place.lost and self.bounds.generation and place.generation is None:
            steps.append("read_generation")
        return tuple(steps)

    def _may_expire(self, place: _Place, clock: int) -> bool:
        return clock < self.expiries[place.who] and (
            place.announced or (place.call is not None and place.call[0] == "mkdir")
        )

    def _moves(self, index: int, scene: int) -> Iterator[_Move]:
        """What a participant can do up to its next change at the server; where its peers stand makes no difference."""
        place = self._places[index]
        who = place.who
        server, clocks, dead, faults = self._scenes[scene]
        if place.step == "out":
            if place.call is not None:
                for _, after, what in self._carry_out(server, who, place.call, place.sent, faulty=False):
                    told = (f"{what}, sent before it died",)
                    yield _Move((who, told, 0), self._unseen_by(who, after, clocks, dead, faults), self._out(who))
            return
        if self._may_expire(place, clocks[who]):
            then = self._scene(server, _later(clocks, who), dead, faults)
            yield _Move((who, ("its lease runs out",), 0), then, index)
        may_die = len(dead) < self.bounds.crashes
        if may_die and place.announced:
            after_death = self._unseen_by(who, server, clocks, dead | {who}, faults)
            yield _Move((who, ("dies",), 0), after_death, self._out(who), dies=True)
        for told, at, then, is_state in self._ways_to_next_change(index, scene):
            if is_state:
                yield self._arrival(place, (who, told, 0), at, then)
                continue
            for what, late, following, after in self._next(at, then):
                yield self._arrival(place, (who, (*told, what), late), following, after)
            there, (_, clocks, _, faults) = self._places[at], self._scenes[then]
            assert there.call is not None
            sent = (*told, f"sends {' '.join(there.call)}")
            if at != index and self._may_expire(there, clocks[who]):
                after = self._scene(server, _later(clocks, who), dead, faults)
                yield self._arrival(place, (who, sent, 1), at, after)
            if may_die:
                after = self._unseen_by(who, server, clocks, dead | {who}, faults)
                yield _Move((who, (*sent, "dies"), 0), after, self._orphan(at), dies=True)

    def _arrival(self, origin: _Place, label: _Label, index: int, scene: int) -> _Move:
        place = self._places[index]
        is_judged = _knows_more(place, origin)
        if place.step in ("ended", "out"):
            is_judged |= bool(self._left_by(place.who, self._scenes[scene].server))
        if place.step == "out":
            scene = self._unseen_by(place.who, *self._scenes[scene])
        return _Move(label, scene, index, is_judged=is_judged)

    def _ways_to_next_change(self, index: int, scene: int) -> Iterator[tuple[tuple[str, ...], int, int, bool]]:
        """
        Where a participant can get without changing anything at the server: the ends of all its ways.

        An end is a call that would change something, or (a state of its own) the moment from which it holds the lock or
        knows its generation.
        """
        origin = self._places[index]
        seen = {(index, scene)}
        waiting: list[tuple[int, int, tuple[str, ...]]] = [(index, scene, ())]
        while waiting:
            at, then, told = waiting.pop()
            place = self._places[at]
            if at != index and (not self.reduced or _knows_more(place, origin)):
                yield told, at, then, True
                continue
            if place.call is not None and place.call[0] != "listdir":
                yield told, at, then, False
                continue
            for what, late, following, after in self._next(at, then):
                if (following, after) not in seen:
                    seen.add((following, after))
                    waiting.append((following, after, (*told, what + (_LATE if late else ""))))

    def _next(self, index: int, scene: int) -> list[_Next]:
        key = (index, scene)
        found = self._next_at.get(key)
        if found is None:
            found = self._next_at[key] = list(self._what_is_next(index, scene))
        return found

    def _what_is_next(self, index: int, scene: int) -> Iterator[_Next]:
        place, (server, clocks, dead, faults) = self._places[index], self._scenes[scene]
        who = place.who
        if place.call is None:
            for step in self._steps_at(place):
                if step == "again":
                    again = self._idle(who, place.round + 1, self._fields[place.fields][1])
                    yield "begins anew", 0, again, scene
                else:
                    for following in self._continue(scene, index, step, _Input(None, clocks[who], "", dead)):
                        yield step, 0, following, scene
            return
        outcomes = [
            (*outcome, faults) for outcome in self._carry_out(server, who, place.call, place.sent, faulty=False)
        ]
        if faults:
            failures = self._carry_out(server, who, place.call, place.sent, faulty=True)
            outcomes += [(*outcome, faults - 1) for outcome in failures]
        for answer, after, what, left in outcomes:
            for late in (0, 1) if self._may_expire(place, clocks[who]) else (0,):
                moved = _later(clocks, who) if late else clocks
                then = self._scene(after, moved, dead, left)
                for following in self._continue(then, index, place.step, _Input(answer, moved[who], "", dead)):
                    yield what, late, following, then

    def _continue(self, scene: int, index: int, step: str, given: _Input) -> Iterator[int]:
        # Where the shipped code goes from here; twice, if it asks whether a peer is silent and that may be.
        outcome = self._run(index, step, given)
        if outcome is None:
            return
        following, asked = outcome
        yield following
        for name, beat in asked.items():
            if self._may_be_silent(scene, name, beat):
                outcome = self._run(index, step, given._replace(permit=name))
                if outcome is not None:
                    yield outcome[0]

    def _scene(self, server: int, clocks: tuple[int, ...], dead: frozenset[int], faults: int) -> int:
        key = _Scene(server, clocks, dead, faults)
        index = self._scenes_by_key.get(key)
        if index is None:
            index = self._scenes_by_key[key] = len(self._scenes)
            self._scenes.append(key)
        return index

    def _unseen_by(self, who: int, server: int, clocks: tuple[int, ...], dead: frozenset[int], faults: int) -> int:
        # Who looks no more sees nothing, and nobody asks for its clock when nothing of its is left.
        known = self._unseen.get((server, who))
        if known is None:
            entries, views, ghosts = self._servers[server]
            after = self._server(entries, (*views[:who], None, *views[who + 1 :]), ghosts)
            known = self._unseen[server, who] = after, bool(self._left_by(who, after))
        after, has_left = known
        if who in dead or not has_left:
            clocks = (*clocks[:who], 0, *clocks[who + 1 :])
        return self._scene(after, clocks, dead, faults)

    def _left_by(self, who: int, server: int) -> list[str]:
        entries, _, _ = self._servers[server]
        return [name for name, _ in entries if name.startswith(("read", "write")) and self._owner(name) == who]

    def _may_be_silent(self, scene: int, name: str, beat: int | None) -> bool:
        # An observer finds a heartbeat silent for a lease only if its maker's clock went on for about as long; but one
        # who looks at an old state may find anything.
        server, clocks, _, _ = self._scenes[scene]
        content = self._contents[server].get(name)
        if content is None:
            return True
        _, ever, sent = content
        latest = max((number for beats in ever for number in beats), default=None)
        return beat != latest or clocks[self._owner(name)] > sent

    # -- participants -------------------------------------------------------------------------------------------------

    def _idle(self, who: int, round_: int, tokens: int = 0) -> int:
        mode = Mode.WRITE if self._writers[who] else Mode.READ
        participant = protocol.Participant(
            _Scripted(None),  # type: ignore[arg-type]
            protocol.World(clock=lambda: 0.0, is_dead=lambda who: False, token=str),
            Identity(pid=who, start=who, kernel="a", uid=0, host="h"),
            mode,
            at_most=self._limits[who],
            numbered=self.bounds.modes[who] != "w",
            ttl=_TTL,
            interval=_TTL,
            ticket=10 * round_ + who,
            since_ms=0,
            watch=_Oracle({}),  # type: ignore[arg-type]
        )
        if self.bounds.gives_way:
            participant._stays_since = -_TTL
        fields = self._freeze(participant, tokens, {})
        place = _Place(who, fields, "", (), None, 0, None, None, False, round_, 0, False)
        return self._place(place)

    def _out(self, who: int) -> int:
        """Where all are who have died, or have nothing to do any more."""
        place = self._outs.get(who)
        if place is None:
            place = self._place(_Place(who, -1, "out", (), None, 0, None, None, False, 0, 0, False))
            self._outs[who] = place
        return place

    def _orphan(self, index: int) -> int:
        orphan = self._orphans.get(index)
        if orphan is None:
            place = self._places[index]
            if place.call is None or place.call[0] == "listdir":
                return self._out(place.who)
            orphan = self._orphans[index] = self._place(
                _Place(place.who, -1, "out", (), place.call, place.sent, None, None, False, 0, 0, False)
            )
        return orphan

    def _place(self, place: _Place, where: Any = None) -> int:
        # Two ways to one place are one place, and the first of them stands for both.
        key = place if where is None else (replace(place, fields=-1, inputs=()), where)
        index = self._places_by_key.get(key)
        if index is None:
            index = self._places_by_key[key] = len(self._places)
            self._places.append(place)
        return index

    def _run(self, index: int, step: str, given: _Input) -> tuple[int, dict[str, int | None]] | None:
        """Where the participant stands next, and about whose silence it asked on the way there."""
        key = (index, step, given)
        outcome = self._continuations.get(key, _UNKNOWN)
        if outcome is _UNKNOWN:
            place = self._places[index]
            run = _Step(self, place.who, *self._fields[place.fields])
            outcome = self._continuations[key] = self._run_shipped_code(run, place, step, (*place.inputs, given))
            vars(run.participant).clear()  # it refers to itself, and such garbage is not collected during the search
        return outcome

    def _run_shipped_code(
        self, run: _Step, place: _Place, step: str, inputs: tuple[_Input, ...]
    ) -> tuple[int, dict[str, int | None]] | None:
        self.steps += 1
        participant = run.participant
        ending = step == "release"
        try:
            result = run.run(step, inputs)
        except _Exhausted:
            return None
        except _Suspended:
            name, phase, lease, generation = run.summary
            holds = phase is protocol.Phase.GRANTED and not ending and not place.lost
            following = replace(
                place,
                step=step,
                inputs=inputs,
                call=run.pending,
                sent=inputs[-1].clock,
                lease=lease if holds else None,
                announced=bool(name),
                generation=generation,
            )
            return self._place(following, run.where), run.oracle.asked
        lost = place.lost or (step == "beat" and result is protocol.Beat.LOST)
        failed = isinstance(result, OSError)
        after = place.step if ending and failed else ("ended" if ending else "")
        if after == "ended" and place.round + 1 == self.bounds.rounds:
            return self._out(place.who), {}
        following = _Place(
            who=place.who,
            fields=self.freeze(run),
            step=after,
            inputs=(),
            call=None,
            sent=0,
            lease=None if ending or lost else self._lease_of(participant),
            generation=None if after == "ended" else participant.generation,
            announced=bool(participant.name) and after != "ended",
            round=place.round,
            beats=place.beats + (step == "beat"),
            lost=lost or (ending and failed),
        )
        return self._place(following), run.oracle.asked

    def _lease_of(self, participant: protocol.Participant) -> protocol.Lease | None:
        return participant.lease if participant.phase is protocol.Phase.GRANTED else None

    def freeze(self, step: _Step) -> int:
        """Return the number that stands for the participant's fields as they are now."""
        return self._freeze(step.participant, step.tokens, step.oracle.seen)

    def _freeze(self, participant: protocol.Participant, tokens: int, seen: dict[str, Any]) -> int:
        fields = {name: value for name, value in vars(participant).items() if name not in ("files", "watch", "_world")}
        if not participant.name:
            fields["lease"] = protocol.Lease(_TTL, 0.0)
        for name, forget in _FORGET.items():
            if name in fields:
                fields[name] = forget(participant, fields[name])
        key = (tokens, _frozen(seen), _frozen(fields))
        index = self._fields_by_key.get(key)
        if index is None:
            index = self._fields_by_key[key] = len(self._fields)
            self._fields.append((fields, tokens, dict(seen)))
        return index

    # -- the server ---------------------------------------------------------------------------------------------------

    def _server(self, entries: frozenset[Any], views: tuple[Any, ...], ghosts: frozenset[Any]) -> int:
        key = (entries, views, ghosts)
        index = self._servers_by_key.get(key)
        if index is None:
            index = self._servers_by_key[key] = len(self._servers)
            self._servers.append(key)
            self._contents.append(dict(entries))
        return index

    def _owner(self, name: str) -> int:
        return int(token_in(name)[0], 16)

    def _carry_out(
        self, server: int, who: int, call: tuple[str, ...], sent: int, *, faulty: bool
    ) -> list[tuple[Answer, int, str]]:
        key = (server, who, call, sent, faulty)
        carried_out = self._carried_out.get(key)
        if carried_out is None:
            outcomes = self._outcomes(server, who, call, sent, heard=not faulty)
            carried_out = list(_with_faults(call, outcomes, server)) if faulty else outcomes
            self._carried_out[key] = carried_out
        return carried_out

    def _outcomes(
        self, server: int, who: int, call: tuple[str, ...], sent: int, *, heard: bool
    ) -> list[tuple[Answer, int, str]]:
        kind, name = call[0], call[1]
        text = " ".join(call)
        if kind == "listdir":
            listings = self._listings_of(server, who, name)
            return [(answer, server, f"{text or '.'} -> {_said(answer)}") for answer in listings]
        try:
            after = self._changed(server, who, call, sent, heard=heard)
        except OSError as error:
            number = error.errno or 0
            return [(number, server, f"{text} -> {errno.errorcode[number]}")]
        return [(None, after, text)]

    def _listings_of(self, server: int, who: int, name: str) -> list[Answer]:
        entries, views, ghosts = self._servers[server]
        contents = dict(entries)
        if not name:
            new, old = views[who]
            certain = [entry for entry in contents if entry not in new and self._concerns(who, entry)]
            return [tuple(sorted((*certain, *more))) for more in _subsets(sorted(new | old))]
        # What a client has cached of an announcement may be as old as it likes, even when it is its own.
        name, inside, entry = name.partition("/")
        ever = contents[name][1] if name in contents else dict(ghosts).get(name, ())
        looks = [tuple(f"beat.{beat}" for beat in beats) for beats in ever]
        if inside:
            return [errno.ENOENT, errno.ENOTDIR] if any(entry in look for look in looks) else [errno.ENOENT]
        possible: list[Answer] = [(), *looks]
        return possible if name in contents else [errno.ENOENT, *possible]

    def _changed(self, server: int, who: int, call: tuple[str, ...], sent: int, *, heard: bool) -> int:
        # What its client does not hear of does not make the client's next listing fresh.
        fresh = who if heard else None
        entries, views, ghosts = self._servers[server]
        contents = dict(entries)
        kind, name = call[0], call[1]
        top, _, inside = name.partition("/")
        if kind == "mkdir":
            if name in contents:
                raise OSError(errno.EEXIST, name)
            # Its beats (two, where the first was not heard of), all that were there ever, and when the latest was sent.
            contents[name] = ((), (), sent)
            return self._server(frozenset(contents.items()), self._seen_change(views, fresh, made=name), ghosts)
        if top not in contents:
            raise OSError(errno.ENOENT, name)
        beats, ever, latest = contents[top]
        if kind == "rmdir" or (kind == "rename" and not inside):
            if kind == "rmdir" and beats:
                raise OSError(errno.ENOTEMPTY, name)
            content = contents.pop(top)
            if content[1]:
                ghosts |= {(top, content[1])}
            if top.startswith(("read", "write")) and self._owner(top) != who:
                self._tally["evictions"] += 1
            views = self._seen_change(views, fresh, gone=name, kind=kind)
            if kind == "rename":
                contents[call[2]] = content
                views = self._seen_change(views, fresh, made=call[2], kind=kind)
            return self._server(frozenset(contents.items()), views, ghosts)
        number = parse_beats([inside])
        assert number is not None, call
        if (number in beats) == (kind == "create"):
            raise OSError(errno.EEXIST if kind == "create" else errno.ENOENT, name)
        if kind == "rename":
            beats, number = tuple(beat for beat in beats if beat != number), parse_beats([call[2].partition("/")[2]])
        if kind == "unlink":
            beats = tuple(beat for beat in beats if beat != number)
        else:
            beats, latest = tuple(sorted({*beats, number})), sent
        if beats and beats not in ever:
            ever = (*ever, beats)
        contents[top] = (beats, ever, latest)
        return self._server(frozenset(contents.items()), views, ghosts)

    def _seen_change(
        self, views: tuple[Any, ...], who: int | None, *, made: str = "", gone: str = "", kind: str = "mkdir"
    ) -> tuple[Any, ...]:
        # For each client: names that are there but need not be shown, and names that are not but may be.
        after = []
        for client, view in enumerate(views):
            if client == who and (kind == "mkdir" or not self.bounds.strict):
                after.append((frozenset(), frozenset()))
            elif view is None or not self._concerns(client, made or gone):
                after.append(view)
            elif made:
                after.append((view[0] | {made}, view[1] - {made}))
            else:
                after.append((view[0] - {gone}, view[1] | {gone}))
        return tuple(after)

    def _concerns(self, who: int, name: str) -> bool:
        # A reader looks at writers' announcements, its own, and leftovers; at numbers only to read its generation.
        if self._writers[who]:
            return True
        if name.startswith("read."):
            return self._owner(name) == who or (self._limits[who] > 0 and name.startswith("read.at"))
        return self.bounds.generation or not name.startswith("gen.")


_UNKNOWN: Final[Any] = object()
_LATE: Final = ", and its lease runs out before it goes on"


def _each(figure: int | tuple[int, ...], bounds: Bounds) -> tuple[int, ...]:
    return figure if isinstance(figure, tuple) else (figure,) * len(bounds.modes)


def _with_faults(
    call: tuple[str, ...], outcomes: list[tuple[Answer, int, str]], server: int
) -> Iterator[tuple[Answer, int, str]]:
    kind = call[0]
    text = " ".join(call)
    yield errno.EIO, server, f"{text} -> EIO, not done"
    if kind != "mkdir" and call[1]:
        yield errno.ENOENT, server, f"{text} -> ENOENT, from the client's cache"
    for answer, after, _ in outcomes:
        if answer is None:
            yield errno.EIO, after, f"{text} -> EIO, but done"
            yield (
                (errno.EEXIST if kind in ("mkdir", "create") else errno.ENOENT),
                after,
                f"{text} -> done, but a retransmission failed",
            )


def _each_once(moves: Iterable[_Move]) -> list[_Move]:
    found: dict[tuple[int, int], _Move] = {}
    for move in moves:
        key = (move.scene, move.place)
        same = found.get(key)
        found[key] = move if same is None else same._replace(ways=same.ways + 1)
    return list(found.values())


def _knows_more(place: _Place, origin: _Place) -> bool:
    # That it holds the lock by now, or longer, or knows a number.
    return place.lease is not None and (place.lease, place.generation) != (origin.lease, origin.generation)


def _later(clocks: tuple[int, ...], who: int) -> tuple[int, ...]:
    return (*clocks[:who], clocks[who] + 1, *clocks[who + 1 :])


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def _said(answer: Answer) -> str:
    return errno.errorcode[answer] if isinstance(answer, int) else str(list(answer))


def _frozen(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, OSError):
        value.__traceback__ = None  # it refers to the frames, which refer to the error
        return type(value), value.errno
    if isinstance(value, Listing):
        return tuple(_frozen(getattr(value, name)) for name in ("announcements", "generations", "notes", "gone"))
    if isinstance(value, TracebackType | _GeneratorContextManager):
        return type(value)  # its generator is among the frames while it runs
    assert isinstance(value, _HASHABLE) or is_dataclass(value) or callable(value), value
    return value


_HASHABLE: Final = (int, float, str, bytes, frozenset, Enum, type(None))
#: The most frequent of them, told apart at once.
_PLAIN: Final = frozenset(
    {int, float, str, bool, bytes, type(None), type, Announcement, Identity, Mode, protocol.Lease, protocol.Phase}
)
#: What a step may change of a participant's fields.
_COPIED: Final = frozenset({list, set, dict})
#: What says nothing about where a step stands.
_UNTOLD: Final = frozenset({_Scripted, protocol.World})


def _only_what_is_cleaned_by(participant: protocol.Participant, listing: Listing | None) -> Listing | None:
    # Whoever is not announced lists anew before the grant, after which it cleans up.
    if listing is None or not participant.name:
        return None
    numbers = listing.generations if participant.mode is Mode.WRITE else ()
    return Listing({}, tuple(sorted(numbers)), (), tuple(sorted(listing.gone)))


class _AllThere(frozenset[int]):
    # One turn, that is never seen to be gone.
    def __le__(self, others: object) -> bool:
        return True


#: Fields that decide nothing later on, here, where nobody leaves notes: they only keep like states apart.
_FORGET: Final[dict[str, Callable[[protocol.Participant, Any], Any]]] = {
    "blockers": lambda participant, value: (),
    "evicted": lambda participant, value: [],
    "beat_error": lambda participant, value: None,
    "_looked_at": lambda participant, value: set(),
    "_attended": lambda participant, value: -math.inf,
    # When a writer gives way is a matter of time alone; here it does after a lease, and at once if the bounds say so.
    "_turns": lambda participant, value: _AllThere({1}),
    "_moved": lambda participant, value: -math.inf,
    "_stay": lambda participant, value: _TTL,
    "_shortest": lambda participant, value: _TTL,
    "_first_listing": lambda participant, value: None,
    "_listing": _only_what_is_cleaned_by,
}
