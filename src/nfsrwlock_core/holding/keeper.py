"""
What this process holds: heartbeats begin with a grant and end with a release.

A thread beats (:mod:`~nfsrwlock_core.holding.heartbeat_thread`); it starves while another one holds the GIL, so
``heartbeat="process"`` lets a small helper process beat instead (:mod:`~nfsrwlock_core.holding.heartbeat_process`).
What is held at the end of the interpreter is released, by whatever object it was taken.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nfsrwlock_core import trace
from nfsrwlock_core.errors import LockError
from nfsrwlock_core.protocol.heartbeat import Announced
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now
from nfsrwlock_core.trace import logger

from .heartbeat_thread import Scheduler
from .hold import Hold

if TYPE_CHECKING:
    from .heartbeat_process import Helper

#: How long the interpreter's exit waits for releases that the file server does not answer, seconds.
_EXIT_WAIT_S: Final = 5.0
#: How often a release that the server refuses is tried again, seconds.
_RETRY_S: Final = 2.0


class _Keepers:
    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.lock = threading.RLock()
        self.helper: Helper | None = None
        self.has_finalizer = False
        #: Taken while the interpreter exits, when no thread that beats can be started any more.
        self.without_beat: dict[int, Hold] = {}
        self.is_exiting = False
        #: Those that are being ended just now, in whatever thread.
        self.ending: set[Hold | Announced] = set()
        #: Whether the first heartbeat of a hold is due at once.
        self.beats_at_once = False

    def get_helper(self) -> Helper:
        """Return this process's end of its heartbeat process; few programs need it, so it is imported late."""
        from .heartbeat_process import Helper  # noqa: PLC0415

        with self.lock:
            if self.helper is None:
                self.helper = Helper(self.scheduler)
            return self.helper


_keepers = _Keepers()


def keep(hold: Hold, form: str) -> None:
    """
    Begin to beat for ``hold``, by ``form`` (``"thread"`` or ``"process"``).

    While the interpreter exits, Python 3.12 starts no thread: then the hold lasts for its first lease.

    :raises LockError: if no thread can be started otherwise; then nobody beats for it
    """
    if not _keepers.has_finalizer and "multiprocessing.util" in sys.modules:
        _release_at_worker_exit()
    if _keepers.beats_at_once:
        hold.due = now()
    try:
        if form == "process":
            _keepers.get_helper().keep(hold)
        else:
            _keepers.scheduler.keep(hold)
    except RuntimeError as error:
        if not workers.is_exiting(error):
            raise LockError(f"the lock on {hold.lock_file!r} cannot be held: {workers.NO_THREAD}") from error
        hold.catch_up = None
        _keepers.without_beat[id(hold)] = hold
        logger.info("the lock on %r is held without heartbeats, for the interpreter exits", hold.lock_file)


def beat_at_once() -> None:
    """Send the first heartbeat of what is kept from now on at once: it says who holds."""
    _keepers.beats_at_once = True


def _release_at_worker_exit() -> None:
    # multiprocessing ends its children without atexit; it has finalizers of its own.
    _keepers.has_finalizer = True
    from multiprocessing import process, util  # noqa: PLC0415 - loaded already

    if process.parent_process() is not None:
        util.Finalize(None, _release_all, exitpriority=10)


def holds() -> list[Hold]:
    """Return what this process holds."""
    return [*_keepers.scheduler.holds(), *_keepers.without_beat.values()]


def drop(hold: Hold) -> None:
    """Stop beating for ``hold``; doing so twice does no harm. It may be released afterwards."""
    if hold.catch_up is not None:
        _keepers.get_helper().drop(hold)
    else:
        _keepers.without_beat.pop(id(hold), None)
        _keepers.scheduler.drop(hold)


def release(hold: Hold) -> bool:
    """
    End ``hold``: stop its heartbeat, remove it from the lock directory.

    Never raises ``OSError``: what the server refuses is tried again in the background until the lease has ended it.

    :returns: whether the hold stood to the end
    """
    participant = hold.participant
    if hold.pid != os.getpid():
        return True
    facts: dict[str, object] = {"event": "released", "announcement": participant.name}
    try:
        _keepers.ending.add(hold)
        drop(hold)
        if hold.remaining < 0:  # perhaps by the wall clock, of which the participant knows nothing
            participant.lease = replace(participant.lease, renewed=now() - participant.lease.ttl)
        stood = participant.release()
        trace.log(logging.DEBUG, "released the lock on %r", hold.lock_file, extra=facts | {"stood": stood})
    except BaseException as error:
        stood = not participant.lease.has_run_out(now())
        facts |= {"stood": stood, "error": str(error)}
        trace.log(logging.WARNING, "releasing the lock on %r is tried again: %s", hold.lock_file, error, extra=facts)
        _keepers.ending.add(participant)
        workers.submit(_release_later, hold)
        if not isinstance(error, OSError):  # a signal's: whoever is interrupted may not come back to this hold
            raise
    finally:
        _keepers.ending.discard(hold)
    return stood and not hold.is_known_lost


def _release_later(hold: Hold) -> None:
    drop(hold)
    deadline = now() + hold.participant.lease.ttl
    while now() < deadline:
        with contextlib.suppress(OSError):
            hold.participant.release()
            break
        time.sleep(min(_RETRY_S, hold.participant.lease.ttl / 10))
    _keepers.ending.discard(hold.participant)


def is_exiting() -> bool:
    """Whether all holds have been released because the process ends: nothing is kept from now on."""
    return _keepers.is_exiting


def _release_all() -> None:
    _keepers.is_exiting = True
    late = now() + _EXIT_WAIT_S
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def last_words(holds: list[Hold]) -> None:
        # A thread for each file system, so that a server that hangs concerns only the locks on it. Where none can be
        # started any more (Python 3.12), workers run what they are given here and now, those that may hang last.
        devices = dict.fromkeys(hold.device for hold in holds)
        ended = [workers.submit(_release_several, [h for h in holds if h.device == device]) for device in devices]
        for future in ended:
            future.exception()
        done.put(None)

    if _keepers.scheduler.end(last_words):
        with contextlib.suppress(queue.Empty):
            done.get(timeout=_EXIT_WAIT_S)  # a file server that hangs must not hang the exit
    _release_several(list(_keepers.without_beat.values()))
    while _keepers.ending and now() < late:  # such as what was kept for a moment, by a worker
        time.sleep(0.01)
    trace.end_trace()


def _release_several(holds: list[Hold]) -> None:
    # A daemon thread goes on to the very end of the process, under its lock: that ends by the process's death.
    daemons = {thread.ident for thread in threading.enumerate() if thread.daemon}
    for hold in holds:
        if all(daemons.isdisjoint(use.threads) for use in hold.users):
            release(hold)


def _reset_after_fork() -> None:
    global _keepers  # noqa: PLW0603 - threads do not survive a fork, and the helper is the parent's
    if _keepers.helper is not None:
        _keepers.helper.forget()
    _keepers = _Keepers()


atexit.register(_release_all)
os.register_at_fork(after_in_child=_reset_after_fork)
