"""
When heartbeats are sent, and when owners are told that their lease has run out.

One thread per process does no file-system call itself. It puts the beats that are due in line for worker threads, a few
for each file system, so that a server that hangs delays only the beats of locks that lie on it, and takes no more
threads the more locks there are. Each worker takes the hold whose lease ends first, anew after each beat. The thread
ends soon after the last release.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from nfsrwlock_core.protocol.heartbeat import Beat
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now, wall_clock
from nfsrwlock_core.trace import logger

from .hold import Hold

#: The thread wakes at least this often, seconds, for its waits do not run through suspend and leases do.
_WAKE_S: Final = 5.0
#: Heartbeats under way at a time for a file system; as many threads hang if it does.
_AT_ONCE: Final = 4
#: The line of holds that another process beats for.
_OVERSEEN: Final = None

_Act = Callable[[Hold], Beat | None]


@dataclass(eq=False, slots=True)
class _Kept:
    """A hold on the agenda, ``None`` when it was dropped."""

    hold: Hold | None
    line: int | None
    act: _Act
    #: Its one valid entry on the agenda.
    at: float = 0.0
    #: In line, or being beaten for.
    is_in_line: bool = False


class Scheduler:
    """
    Beats for every hold of this process that beats by thread, and watches the leases of all.

    :param on_beat: told of every heartbeat's outcome, for a helper process that reports them
    """

    def __init__(self, on_beat: Callable[[Hold, Beat], None] | None = None) -> None:
        # Both are atomic to signals' handlers, which a Condition is not: an exception in it would leave it locked.
        self._lock = threading.RLock()
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._kept: dict[int, _Kept] = {}
        # Heaps, by time and by the end of the lease; the number keeps what is equal in order.
        self._agenda: list[tuple[float, int, _Kept]] = []
        self._lines: dict[int | None, list[tuple[float, int, _Kept]]] = {}
        self._numbers = itertools.count()
        #: How many workers each line has; none hangs where there is no entry.
        self._working: dict[int | None, int] = {}
        self._thread: threading.Thread | None = None
        self._last_words: Callable[[list[Hold]], None] | None = None
        self._wakes_at = 0.0
        self._steps = 0
        self._on_beat = on_beat

    def keep(self, hold: Hold, *, act: _Act | None = None, line: int | None = _OVERSEEN) -> None:
        """
        Begin to beat for ``hold``, or, if something else beats for it, only to watch its lease.

        :param act: called instead of a heartbeat when the hold's ``due`` has come; sets the next, as a beat does
        :param line: the device of the file system that ``act`` may hang on, if it calls one
        :raises RuntimeError: if no thread can be started; then nothing is kept
        """
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="nfsrwlock-heartbeat", daemon=True)
                thread.start()
                self._thread = thread
            if id(hold) in self._kept:  # something else beat for it so far
                self.forget(hold)
            kept = _Kept(hold, hold.device, self._beat) if act is None else _Kept(hold, line, act)
            self._kept[id(hold)] = kept
            self._plan(kept, hold)

    def drop(self, hold: Hold) -> None:
        """Stop beating for ``hold``; waits for a beat under way."""
        self.forget(hold)
        with hold.mutex:
            hold.ended = True

    def forget(self, hold: Hold) -> None:
        """Stop beating for ``hold``, without waiting: a beat that is under way may still be sent."""
        with self._lock:
            if (kept := self._kept.pop(id(hold), None)) is None:
                return
            kept.hold = None
            if len(self._agenda) > 2 * len(self._kept) + 100:  # quick holds must not pile up until they would be due
                agenda = [entry for entry in self._agenda if entry[2].hold is not None]
                heapq.heapify(agenda)
                self._agenda = agenda  # in order already: a signal's exception may come at any moment

    def holds(self) -> list[Hold]:
        """Return all holds."""
        with self._lock:
            return [kept.hold for kept in self._kept.values() if kept.hold is not None]

    def end(self, last_words: Callable[[list[Hold]], None]) -> bool:
        """
        Let the scheduler's thread call ``last_words`` with all holds, those whose server hangs last, and then end.

        For the end of the interpreter, when no other thread can be started any more (Python 3.12).

        :returns: whether there is anything held
        """
        with self._lock:
            if not self._kept:
                return False
            self._last_words = last_words
            self._alarm.put(None)
            return True

    def _plan(self, kept: _Kept, hold: Hold) -> None:
        # A lease has run out only after its end, and what is planned must lie ahead.
        expiry = math.nextafter(hold.next_expiry, math.inf)
        kept.at = min(expiry, hold.ends, math.inf if kept.is_in_line else hold.due)
        if kept.at < math.inf:
            heapq.heappush(self._agenda, (kept.at, next(self._numbers), kept))
            if self._wakes_at > kept.at:
                self._alarm.put(None)

    def _run(self) -> None:
        idle_since = now()
        while True:
            with self._lock:
                if self._last_words is not None:
                    break
                wall_clock.look()
                moment = now()
                if self._steps != wall_clock.steps:  # leases may have run out before the moments planned for that
                    self._steps = wall_clock.steps
                    for kept in self._kept.values():
                        if kept.hold is not None:
                            self._plan(kept, kept.hold)
                if self._kept:
                    idle_since = moment
                elif moment >= idle_since + workers.LINGER_S:
                    self._thread = None
                    return
                calls = self._take_due(moment)
                wake = self._agenda[0][0] if self._kept and self._agenda else idle_since + workers.LINGER_S
                self._wakes_at = 0.0 if calls else min(wake, moment + _WAKE_S)
            for call in calls:  # without the lock: where no thread is to be had, this one does the work
                workers.submit(call)
            if not calls:
                with suppress(queue.Empty):
                    self._alarm.get(timeout=max(self._wakes_at - now(), 0.001))
                self._wakes_at = 0.0
        self._last_words(sorted(self.holds(), key=lambda hold: hold.device in self._working))

    def _take_due(self, moment: float) -> list[Callable[[], None]]:
        calls: list[Callable[[], None]] = []
        while self._agenda and self._agenda[0][0] <= moment:
            at, _, kept = heapq.heappop(self._agenda)
            hold = kept.hold
            if hold is None or at != kept.at:
                continue  # dropped, or planned anew
            if hold.next_expiry < moment:
                hold.telling = True
                # In a worker: the owner's callback may take its time, and must not depend on the file server.
                calls.append(partial(self._tell, kept, hold))
            if hold.ends <= moment and hold.at_end is not None:
                hold.ends = math.inf
                calls.append(hold.at_end)
            if hold.due <= moment and not kept.is_in_line:
                kept.is_in_line = True
                line = self._lines.setdefault(kept.line, [])
                heapq.heappush(line, (hold.participant.lease.expires, next(self._numbers), kept))
                if self._working.get(kept.line, 0) < _AT_ONCE:
                    self._working[kept.line] = self._working.get(kept.line, 0) + 1
                    calls.append(partial(self._serve, kept.line))
            self._plan(kept, hold)
        return calls

    def _tell(self, kept: _Kept, hold: Hold) -> None:
        hold.tell_owner()
        with self._lock:
            if kept.hold is not None:  # a heartbeat may have come first, and the lease may run out again
                self._plan(kept, hold)

    def _serve(self, line: int | None) -> None:
        while (kept := self._next_in(line)) is not None:
            if (hold := kept.hold) is None:
                continue
            outcome = None
            try:
                outcome = kept.act(hold)
            except Exception:  # whatever it is, the other locks must go on beating
                logger.exception("a heartbeat failed")
                hold.due = now() + hold.participant.interval / 10
            with self._lock:
                kept.is_in_line = False
                if outcome is Beat.LOST and hold.ends == math.inf:
                    self.forget(hold)
                elif kept.hold is not None:
                    self._plan(kept, hold)

    def _next_in(self, line: int | None) -> _Kept | None:
        with self._lock:
            if self._lines[line]:
                return heapq.heappop(self._lines[line])[2]
            self._working[line] -= 1
            if not self._working[line]:
                del self._working[line], self._lines[line]
            return None

    def _beat(self, hold: Hold) -> Beat:
        outcome = hold.beat()
        if self._on_beat is not None:
            self._on_beat(hold, outcome)
        return outcome
