"""
The shipped protocol code as a function: from where a participant stands and the answer it gets, to where it stands then.

A step (``advance``, ``beat``, ``release``) is run up to its next file-system call and is thrown away there. To go on, it is
run again from its beginning with the answers that it had so far, and one more. Two ways to one place, that is, with the
same fields of the participant and the same lines and variables in every function on the way to the call, are one place,
and what follows from it is worked out once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from types import TracebackType
from typing import Any, Final

from nfsrwlock_core import protocol
from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.names import Identity, Listing, Mode

from .witness import Violation

#: What a lease is here, and the time between heartbeats that a waiting writer sends of its own accord.
TTL: Final = 1.0

#: An answer of the server: what the call returns, or the number of its error.
Answer = Any
Call = tuple[str, ...]
#: How many tokens and how many announcements a participant has made.
Made = tuple[int, int]
#: Whose silence a step asked about: an announcement, and the heartbeat that it saw there.
Asked = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Input:
    """What a participant goes on with: an answer, and what it may find when it looks around."""

    answer: Answer
    clock: int
    #: Peers of whom it asks are found silent for long enough.
    permit: bool
    dead: frozenset[int]


@dataclass(frozen=True)
class Place:
    """Where a participant stands: between two steps, or in one, at a call."""

    who: int
    #: The participant's fields at the beginning of the step, and what it was given since then.
    fields: int = -1
    step: str = ""
    inputs: tuple[Input, ...] = ()
    call: Call | None = None
    #: The participant's clock when the call was sent.
    sent: int = 0
    #: The user has the lock, as far as it knows, by this lease.
    lease: protocol.Lease | None = None
    generation: int | None = None
    announced: bool = False
    round: int = 0
    beats: int = 0
    lost: bool = False

    @property
    def changes(self) -> bool:
        """Whether it is about to change something."""
        return self.call is not None and self.call[0] != "listdir"


#: Where all are who have died, or have nothing to do any more.
OUT: Final = "out"


class Steps:
    """
    Where participants can stand, by number, and how they get from one place to another.

    :param modes: one letter for each participant, ``R`` or ``W``
    :param announcements: how often each may announce itself; who has no more stands still for ever
    """

    def __init__(self, modes: str, announcements: tuple[int, ...], rounds: int) -> None:
        self.places: list[Place] = []
        #: Runs of the shipped code.
        self.runs = 0
        self._modes = modes
        self._announcements = announcements
        self._rounds = rounds
        self._places_by_key: dict[Any, int] = {}
        self._fields: list[tuple[dict[str, Any], Made, dict[str, Any]]] = []
        self._fields_by_key: dict[Any, int] = {}
        self._known: dict[Any, tuple[int, Asked | None] | None] = {}

    def idle(self, who: int, round_: int = 0, made: Made = (0, 0)) -> int:
        """Return the place of one that has not begun."""
        participant = protocol.Participant(
            _Scripted(None),
            protocol.World(clock=lambda: 0.0, is_dead=lambda who: False, token=str),
            Identity(pid=who, start=who, kernel="a", uid=0, host="h"),
            Mode.WRITE if self._modes[who] == "W" else Mode.READ,
            ttl=TTL,
            interval=TTL,
            ticket=10 * round_ + who,
            since_ms=0,
            watch=_Oracle({}),  # type: ignore[arg-type]
        )
        return self._place(Place(who, self._freeze(participant, made, {}), round=round_))

    def again(self, place: Place) -> int:
        """Return the place of one that begins its next round."""
        return self.idle(place.who, place.round + 1, self._fields[place.fields][1])

    def out(self, who: int, orphan: Place | None = None) -> int:
        """Return the place of one that does nothing more, though the call of ``orphan`` may still be on its way."""
        if orphan is None or not orphan.changes:
            return self._place(Place(who, step=OUT))
        return self._place(Place(who, step=OUT, call=orphan.call, sent=orphan.sent))

    def run(self, index: int, step: str, given: Input) -> tuple[int, Asked | None] | None:
        """Return where it stands next, and about whose silence it asked on the way; ``None`` if that is out of bounds."""
        key = (index, step, given)
        if key not in self._known:
            self._known[key] = self._run_shipped_code(self.places[index], step, given)
        return self._known[key]

    def _run_shipped_code(self, place: Place, step: str, given: Input) -> tuple[int, Asked | None] | None:
        self.runs += 1
        run = _Run(self, place)
        participant = run.participant
        inputs = (*place.inputs, given)
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
                sent=given.clock,
                lease=lease if holds else None,
                announced=bool(name),
                generation=generation,
            )
            return self._place(following, run.where), run.oracle.asked
        failed = isinstance(result, OSError)
        lost = place.lost or (step == "beat" and result is protocol.Beat.LOST) or (ending and failed)
        ended = ending and not failed
        if ended and place.round + 1 == self._rounds:
            return self.out(place.who), None
        holds = participant.phase is protocol.Phase.GRANTED and not ending and not lost
        following = Place(
            place.who,
            self.freeze(run),
            step="ended" if ended else "",
            lease=participant.lease if holds else None,
            generation=None if ended else participant.generation,
            announced=bool(participant.name) and not ended,
            round=place.round,
            beats=place.beats + (step == "beat"),
            lost=lost and not ended,
        )
        return self._place(following), run.oracle.asked

    def _place(self, place: Place, where: Any = None) -> int:
        key = place if where is None else (replace(place, fields=-1, inputs=()), where)
        index = self._places_by_key.get(key)
        if index is None:
            index = self._places_by_key[key] = len(self.places)
            self.places.append(place)
        return index

    def may_announce(self, who: int, made: int) -> bool:
        return made < self._announcements[who]

    def fields_of(self, place: Place) -> tuple[dict[str, Any], Made, dict[str, Any]]:
        return self._fields[place.fields]

    def freeze(self, run: _Run) -> int:
        """Return the number that stands for the participant's fields as they are now."""
        return self._freeze(run.participant, (run.tokens, run.announcements), run.oracle.seen)

    def _freeze(self, participant: protocol.Participant, made: Made, seen: dict[str, Any]) -> int:
        fields = {name: value for name, value in vars(participant).items() if name not in ("files", "watch", "_world")}
        if not participant.name:
            fields["lease"] = protocol.Lease(TTL, 0.0)
        for name, forget in _FORGET.items():
            if name in fields:
                fields[name] = forget(participant, fields[name])
        key = (made, _frozen(seen), _frozen(fields))
        index = self._fields_by_key.get(key)
        if index is None:
            index = self._fields_by_key[key] = len(self._fields)
            self._fields.append((fields, made, dict(seen)))
        return index


class _Suspended(BaseException):
    """The step has come to a call whose answer is not known yet."""


class _Exhausted(BaseException):
    """The participant has announced itself as often as it may."""


class _Run:
    """One run of a step, up to its first unknown answer."""

    def __init__(self, steps: Steps, place: Place) -> None:
        fields, (self.tokens, self.announcements), seen = steps.fields_of(place)
        self.steps = steps
        self.who = place.who
        self.inputs: tuple[Input, ...] = ()
        self.position = 0
        self.pending: Call | None = None
        self.summary: Any = None
        self.where: Any = None
        self.clock = 0
        self.dead: frozenset[int] = frozenset()
        self.oracle = _Oracle(dict(seen))
        self.participant = object.__new__(protocol.Participant)
        for name, value in fields.items():
            self.participant.__dict__[name] = value.copy() if isinstance(value, list | set | dict) else value
        self.participant.__dict__.update(
            files=_Scripted(self),
            watch=self.oracle,
            _world=protocol.World(
                clock=lambda: float(self.clock), is_dead=lambda who: who.pid in self.dead, token=self.token
            ),
        )

    def run(self, step: str, inputs: tuple[Input, ...]) -> Any:
        self.inputs = inputs
        self.take(inputs[0])
        try:
            return getattr(self.participant, step)()
        except LockPathError as error:
            raise Violation(
                f"participant {self.who} calls a file system unfit that keeps the rules: {error}"
            ) from error
        except OSError as error:
            return error

    def call(self, *call: str) -> Any:
        if self.pending is not None:
            raise _Suspended  # a clean-up on the way out: it does not happen here
        self.position += 1
        if call[0] == "mkdir" and call[1].startswith(("read.", "write.")):
            if not self.steps.may_announce(self.who, self.announcements):
                raise _Exhausted
            self.announcements += 1
        if self.position == len(self.inputs):
            self.pending = call
            self.note_where_it_stands(sys._getframe(2))
            raise _Suspended
        given = self.inputs[self.position]
        self.take(given)
        if isinstance(given.answer, int):
            raise OSError(given.answer, os.strerror(given.answer), call[1])
        return given.answer

    def take(self, given: Input) -> None:
        self.clock, self.dead, self.oracle.permit, self.oracle.asked = given.clock, given.dead, given.permit, None

    def token(self) -> str:
        self.tokens += 1
        return f"{self.who:x}{self.tokens:031x}"

    def note_where_it_stands(self, frame: Any) -> None:
        """Note all that decides how the step goes on: the participant, and each function's line and variables."""
        participant = self.participant
        frames = []
        while frame.f_code is not _Run.run.__code__:
            variables = tuple(
                (name, _frozen(value))
                for name, value in sorted(frame.f_locals.items())
                if value is not participant and not isinstance(value, _Scripted)
            )
            frames.append((frame.f_code, frame.f_lasti, variables))
            frame = frame.f_back
        self.summary = (participant.name, participant.phase, participant.lease, participant.generation)
        self.where = (tuple(frames), self.steps.freeze(self))


class _Scripted:
    """The engine's ``Files``: gives the known answers, and suspends the step at the first unknown one."""

    path = "the simulated lock directory"

    def __init__(self, run: Any) -> None:
        self._run = run

    def mkdir(self, name: str) -> None:
        self._run.call("mkdir", name)

    def rmdir(self, name: str) -> None:
        self._run.call("rmdir", name)

    def listdir(self, name: str = "") -> list[str]:
        return list(self._run.call("listdir", name))

    def create(self, name: str, record: bytes) -> None:
        self._run.call("create", name)

    def rename(self, old: str, new: str) -> None:
        self._run.call("rename", old, new)

    def unlink(self, name: str) -> None:
        self._run.call("unlink", name)


class _Oracle:
    """Stands in for the watch: silence is what the search says, and every look is due."""

    def __init__(self, seen: dict[str, int | None]) -> None:
        self.seen = seen
        self.permit = False
        self.asked: Asked | None = None

    def meet(self, name: str, now: float) -> float:
        return -1e9

    def last_look(self, name: str) -> None:
        return None

    def look(self, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0) -> None:
        self.seen[name] = beat

    def watched(self, name: str) -> float:
        self.asked = (name, self.seen.get(name))
        return 1e9 if self.permit else 0.0

    def beat(self, name: str) -> int | None:
        return self.seen.get(name)

    def keep_only(self, names: Any) -> None:
        for name in [name for name in self.seen if name not in names]:
            del self.seen[name]


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, OSError):
        return type(value), value.errno
    if isinstance(value, Listing):
        return tuple(_frozen(getattr(value, name)) for name in ("announcements", "generations", "notes", "gone"))
    if isinstance(value, TracebackType) or hasattr(value, "gi_frame"):
        return None  # of a context manager; its own frame is on the list
    assert isinstance(value, _HASHABLE) or is_dataclass(value) or callable(value), value
    return value


_HASHABLE: Final = (int, float, str, bytes, frozenset, Enum, type(None))


def _only_numbers_to_clean(participant: protocol.Participant, listing: Listing | None) -> Listing | None:
    if listing is None:
        return None
    return Listing({}, tuple(sorted(listing.generations)) if participant.mode is Mode.WRITE else (), (), ())


#: Fields that decide nothing later on, here, where nobody leaves notes: they only keep like places apart.
_FORGET: Final[dict[str, Callable[[protocol.Participant, Any], Any]]] = {
    "blockers": lambda participant, value: (),
    "evictions": lambda participant, value: 0,
    "beat_error": lambda participant, value: None,
    "_looked_at": lambda participant, value: set(),
    "_own_names": lambda participant, value: set(),
    "_first_listing": lambda participant, value: None,
    "_listing": _only_numbers_to_clean,
}
