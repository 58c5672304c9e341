"""
This process's end of the helper process that beats for it (:mod:`nfsrwlock_core.holding.heartbeat_main`).

The helper is started at the first hold and ends soon after the last. It says of each hold how its heartbeats fare; this
process counts its leases from that. A thread reads what it says. Whoever finds a lease run out asks, and waits for the
answer: a program that held the GIL for minutes must not believe that its lock is lost before it has listened.

To take and to give back a lock, nothing is waited for: the helper has no reason to touch a hold before its next beat is
due, which is known here, so what it must know may reach it at any time before that. Only a hold that is given back when
its beat is due, and no word of it has come, costs a question and its answer. A beat that crosses a release all the same
(the helper was kept from reading for so long) is an operation on a name that is never used again: it finds the
announcement gone, or is removed with it.

The helper may hang in a file-system call, be stopped, or be killed. None of that may hang this process, nor leave a
hold without beats: when no word of a beat has come half an interval after it was due, the helper is asked; messages and
answers are waited for a bounded time, after which it is replaced. On a busy machine the next helper may take longer to
start than a lease has left, so a thread of this process sends one beat for each hold before it hands the hold over.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any, Final

from nfsrwlock_core.protocol.heartbeat import Beat
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.trace import logger

from .heartbeat_thread import Scheduler
from .hold import Hold

#: How long the helper may take to read a message, or to let go of a hold, seconds. It waits for a heartbeat under way.
_PATIENCE_S: Final = 5.0
#: How long somebody who asks for a hold's state waits for the helper's answer, seconds.
_ANSWER_S: Final = 0.5
#: How long it is given to end by itself, seconds.
_FAREWELL_S: Final = 1.0
#: The helper learns at least this part of the interval before a beat is due that it is not to send it.
_NOTICE: Final = 1 / 10
#: It is asked how a hold fares when its word of a beat is overdue by this part of the interval.
_OVERDUE: Final = 1 / 2
#: Helpers that end unexpectedly before they have beaten, one after the other, before a thread takes over.
_STARTS_MAX: Final = 5

#: Where this package is imported from; taken now, for a relative entry of sys.path loses its meaning later.
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START: Final = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments['path']; "
    "from nfsrwlock_core.holding.heartbeat_main import main; main(arguments)"
)


class Helper:
    """
    The helper process, whether it runs or not.

    :param scheduler: watches the leases of what the helper beats for, and takes over if there can be no helper
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Final = scheduler
        #: For everything below. Re-entrant: a signal's handler may release a lock.
        self._lock = threading.RLock()
        self._holds: dict[int, Hold] = {}
        #: Questions that it has not answered yet, by their number.
        self._awaited: dict[int, tuple[Hold, queue.SimpleQueue[None]]] = {}
        #: Holds and questions are numbered; an object's id() would come back.
        self._numbers = itertools.count()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._idle_since = 0.0

    def keep(self, hold: Hold) -> None:
        """Let the helper beat for ``hold``, starting it if need be."""
        self._watch(hold)
        with self._lock:
            hold.key = next(self._numbers)
            self._holds[hold.key] = hold
            if self._socket is None:
                self._start()
            if hold.key in self._holds:
                self._send(_order(hold))

    def _watch(self, hold: Hold) -> None:
        hold.due = _overdue(hold)
        # What it has said may lie unread, and its latest word may wait behind that.
        hold.catch_up = partial(self._ask, hold, "tell", _ANSWER_S)
        self._scheduler.keep(hold, act=self._oversee)

    def drop(self, hold: Hold) -> None:
        """Take ``hold`` back; afterwards the helper sends no beat for it any more."""
        self._scheduler.drop(hold)
        with self._lock:
            self._holds.pop(hold.key, None)
            for number, (asked, answered) in list(self._awaited.items()):
                # An answer that comes after the release would tell of our own removal.
                if asked is hold and self._awaited.pop(number, None) is not None:
                    answered.put(None)
            self._idle_since = time.monotonic()
            lease, interval = hold.participant.lease, hold.participant.interval
            is_quiet = now() < lease.renewed + interval * (1 - _NOTICE)
            if is_quiet:
                self._send({"drop": hold.key})
        if not is_quiet:
            self._ask(hold, "drop", _PATIENCE_S, or_replace=True)
        hold.catch_up = None

    def _oversee(self, hold: Hold) -> None:
        if hold.due <= now():  # there may have been word of it while it was in line
            # Half of what is left of the lease is for the next helper. If nothing is left, this program did not run.
            left = hold.participant.lease.expires - now()
            hold.due = now() + hold.participant.interval / 2
            self._ask(hold, "tell", min(max(left / 2, _ANSWER_S), _PATIENCE_S), or_replace=True)

    def _ask(self, hold: Hold, verb: str, seconds: float, *, or_replace: bool = False) -> None:
        answered: queue.SimpleQueue[None] = queue.SimpleQueue()  # an Event is not atomic to a signal's exception
        with self._lock:
            sock = self._socket
            if sock is None or (verb == "tell" and hold.key not in self._holds):
                return  # there is no helper that could do anything, or no hold any more
            question = next(self._numbers)
            self._awaited[question] = (hold, answered)
            self._send({verb: hold.key, "question": question})
        with contextlib.suppress(queue.Empty):
            answered.get(timeout=seconds)  # a dead helper counts as an answer
            return
        self._awaited.pop(question, None)
        with self._lock:
            if or_replace and self._socket is sock and self._process is not None:
                # Stopped, starved, or hung in a call to a server, and perhaps it cannot even end: another helper takes
                # the holds at once. A beat that this one has sent finds nothing after a release.
                self._process.kill()
                self._take_stock_after_death()

    def forget(self) -> None:
        """Let go of the parent's helper, in a forked child."""
        if self._socket is not None:
            self._socket.close()

    # -- the process; all with the lock held --------------------------------------------------------------------------

    def _start(self) -> None:
        here, there = socket.socketpair()
        arguments = {"path": [_ROOT, *map(os.path.abspath, sys.path)], "socket": there.fileno(), "pid": os.getpid()}
        self._starts += 1
        try:
            if getattr(sys, "frozen", False) or not sys.executable:
                raise OSError("this program has no Python interpreter to start")
            process = subprocess.Popen(
                # -S -E: no site-packages start-up files; the parent's own path says where everything is.
                [sys.executable, "-S", "-E", "-c", _START, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,  # a Ctrl-C or Ctrl-Z at the terminal is for the program, not for its heartbeat
                cwd="/",
            )
            thread = threading.Thread(
                target=self._read_until_idle, args=(here, process), name="nfsrwlock-helper", daemon=True
            )
            thread.start()
        except (OSError, ValueError, RuntimeError) as error:
            here.close()
            self._fall_back(error)
            return
        finally:
            there.close()
        here.settimeout(_PATIENCE_S)
        self._socket, self._process = here, process

    def _bridge(self, hold: Hold) -> Beat:
        outcome = hold.beat()
        with self._lock:
            # Whatever came of it, the helper goes on from here; unless the hold was given back meanwhile.
            if outcome is not Beat.LOST and self._holds.get(hold.key) is hold:
                self._watch(hold)
                self._send(_order(hold))
        return outcome

    def _send(self, message: dict[str, Any]) -> None:
        sock, process = self._socket, self._process
        if sock is None or process is None:
            return
        try:
            sock.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            process.kill()  # it does not read: it is stopped
        except OSError:
            pass  # it died: the reader starts another one and tells it everything anew

    def _take_stock_after_death(self) -> None:
        self._disconnect()
        if not self._holds:
            return
        if self._starts < _STARTS_MAX:
            logger.warning("the heartbeat process has ended unexpectedly; starting another one")
            self._start()
            for hold in self._holds.values():
                hold.due = now()
                self._scheduler.keep(hold, act=self._bridge, line=hold.device)
        else:
            self._fall_back(RuntimeError(f"it ended {self._starts} times"))

    def _disconnect(self) -> None:
        self._socket = self._process = None
        for _, answered in list(self._awaited.values()):
            answered.put(None)
        self._awaited.clear()

    def _fall_back(self, error: Exception) -> None:
        # Better beats that may starve than none.
        logger.warning("no heartbeat process can be run (%s): heartbeats come from a thread now", error)
        for hold in self._holds.values():
            hold.due = now()
            hold.catch_up = None
            self._scheduler.keep(hold)
        self._holds.clear()

    # -- what it says -------------------------------------------------------------------------------------------------

    def _read_until_idle(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            pass  # until the one who starts us has set everything
        unread = b""
        while self._socket is sock:
            ready = _has_word(sock, 0.5)
            if ready:
                try:
                    data = sock.recv(65536)
                    *lines, unread = (unread + data).split(b"\n")
                    for line in lines:
                        self._take_in(json.loads(line))
                except (OSError, ValueError):
                    data = b""
                if data:
                    continue
            with self._lock:
                if self._socket is not sock:
                    pass  # another helper has its place
                elif ready:
                    process.kill()
                    self._take_stock_after_death()
                elif not self._holds and not self._awaited and time.monotonic() - self._idle_since > workers.LINGER_S:
                    self._send({"quit": True})
                    self._disconnect()
                    self._starts = 0
        sock.close()
        try:
            process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:  # it is stopped, and there is nothing left for it to do
            process.kill()
            process.wait()

    def _take_in(self, report: dict[str, Any]) -> None:
        answered = [asked for number in report["answers"] if (asked := self._awaited.pop(number, None)) is not None]
        hold = answered[0][0] if answered else self._holds.get(report["hold"])
        # Of a hold that is lost, the first word stands: what its owner was told of it must not change under him.
        if hold is not None and report["known"] and not hold.is_known_lost:
            if report["beat"] != hold.participant.beats:
                self._starts = 1  # it works: over weeks, many may end for reasons that have nothing to do with us
            hold.participant.take_over(report["beat"], report["renewed"])
            hold.due = max(hold.due, _overdue(hold))
            hold.participant.beat_error = OSError(report["error"]) if report["error"] else None
            hold.take_in(Beat.LOST if report["lost"] else Beat.DONE)
        for _, answer in answered:
            answer.put(None)


def _overdue(hold: Hold) -> float:
    return hold.participant.lease.renewed + hold.participant.interval * (1 + _OVERDUE)


def _order(hold: Hold) -> dict[str, Any]:
    """Return what a helper must know to beat for ``hold``; it may have begun to as soon as this was sent."""
    participant = hold.participant
    files = participant.files
    assert isinstance(files, LockDirectory)
    return {
        "keep": hold.key,
        "path": base64.b64encode(os.fsencode(files.path)).decode(),
        "share": files.share,
        "name": participant.name,
        "beat": participant.beats,
        "ttl": participant.lease.ttl,
        "renewed": participant.lease.renewed,
        "unheard": participant.hand_over(),
        "interval": participant.interval,
        "device": hold.device,
        "record": base64.b64encode(participant.record).decode(),
    }


def _has_word(sock: socket.socket, seconds: float) -> bool:
    poll = select.poll()  # not select: a program with many open files has descriptors that it cannot take
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
