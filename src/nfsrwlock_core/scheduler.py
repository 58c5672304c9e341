"""
When heartbeats are sent, and when owners are told that their lease has run out.

One thread per process does no file-system call itself. It hands the beats that are due to worker threads, one file
system at a time each, so that a server that hangs delays only the beats of locks that lie on it. It ends soon after the
last release.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from . import workers
from .hold import Hold, logger, now
from .protocol import Beat

#: The thread wakes at least this often, seconds, for its waits do not run through suspend and leases do.
_WAKE_S: Final = 5.0


_Oversee = Callable[[Hold], None]


class Scheduler:
    """
    Beats for every hold of this process that beats by thread, and watches the leases of all.

    :param on_beat: told of every heartbeat's outcome, for a helper process that reports them
    """

    def __init__(self, on_beat: Callable[[Hold, Beat], None] | None = None) -> None:
        # Both are atomic to signals' handlers, which a Condition is not: an exception in it would leave it locked.
        self._lock = threading.RLock()
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._holds: dict[int, tuple[Hold, _Oversee | None]] = {}
        self._busy: set[int] = set()
        self._thread: threading.Thread | None = None
        self._last_words: Callable[[list[Hold]], None] | None = None
        self._wakes_at = 0.0
        self._on_beat = on_beat

    def keep(self, hold: Hold, *, oversee: _Oversee | None = None) -> None:
        """
        Begin to beat for ``hold``, or, if something else beats for it, only to watch its lease.

        :param oversee: called instead of a heartbeat when the hold's ``due`` has come, then after every half interval
        :raises RuntimeError: if no thread can be started; then nothing is kept
        """
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="nfsrwlock-heartbeat", daemon=True)
                thread.start()
                self._thread = thread
            self._holds[id(hold)] = (hold, oversee)
            if self._wakes_at > self._next_time(hold, oversee):
                self._alarm.put(None)

    def drop(self, hold: Hold) -> None:
        """Stop beating for ``hold``; waits for a beat under way."""
        self.forget(hold)
        with hold.mutex:
            hold.ended = True

    def forget(self, hold: Hold) -> None:
        """Stop beating for ``hold``, without waiting: a beat that is under way may still be sent."""
        with self._lock:
            self._holds.pop(id(hold), None)

    def end(self, last_words: Callable[[list[Hold]], None]) -> bool:
        """
        Let the scheduler's thread call ``last_words`` with all holds, those whose server hangs last, and then end.

        For the end of the interpreter, when no other thread can be started any more (Python 3.12).

        :returns: whether there is anything held
        """
        with self._lock:
            if not self._holds:
                return False
            self._last_words = last_words
            self._alarm.put(None)
            return True

    def _next_time(self, hold: Hold, oversee: _Oversee | None) -> float:
        expiry = hold.next_expiry
        due = float("inf") if oversee is None and hold.device in self._busy else hold.due
        return due if expiry is None else min(due, expiry)

    def _run(self) -> None:
        idle_since = now()
        while True:
            with self._lock:
                if self._last_words is not None:
                    break
                moment = now()
                if self._holds:
                    idle_since = moment
                elif moment >= idle_since + workers.LINGER_S:
                    self._thread = None
                    return
                calls = self._beats_due(moment) + self._expiries_to_tell(moment)
                times = [self._next_time(hold, oversee) for hold, oversee in self._holds.values()]
                wake = min(times, default=idle_since + workers.LINGER_S)
                self._wakes_at = 0.0 if calls else min(wake, moment + _WAKE_S)
            for call in calls:  # without the lock: where no thread is to be had, this one does the work
                workers.submit(call)
            if not calls:
                with suppress(queue.Empty):
                    self._alarm.get(timeout=max(self._wakes_at - now(), 0.001))
                self._wakes_at = 0.0
        self._last_words(sorted((hold for hold, _ in self._holds.values()), key=lambda hold: hold.device in self._busy))

    def _beats_due(self, moment: float) -> list[Callable[[], None]]:
        due: dict[int, list[Hold]] = {}
        calls: list[Callable[[], None]] = []
        for hold, oversee in self._holds.values():
            if hold.due > moment:
                continue
            if oversee is not None:
                hold.due = moment + hold.participant.interval / 2
                calls.append(partial(oversee, hold))
            elif hold.device not in self._busy:
                due.setdefault(hold.device, []).append(hold)
        self._busy.update(due)
        return calls + [partial(self._beat_all, device, holds) for device, holds in due.items()]

    def _beat_all(self, device: int, holds: list[Hold]) -> None:
        try:
            for hold in holds:
                outcome = hold.beat()
                if self._on_beat is not None:
                    self._on_beat(hold, outcome)
                if outcome is Beat.LOST:
                    with self._lock:
                        self._holds.pop(id(hold), None)
        except Exception:  # whatever it is, the other locks must go on beating
            logger.exception("heartbeats failed")
        finally:
            with self._lock:
                self._busy.discard(device)
                self._alarm.put(None)

    def _expiries_to_tell(self, moment: float) -> list[Callable[[], None]]:
        expired = [hold for hold, _ in self._holds.values() if (hold.next_expiry or moment) < moment]
        for hold in expired:
            hold.telling = True
        # In a worker: the owner's callback may take its time, and telling must not depend on the file server.
        return [hold.tell_owner for hold in expired]
