"""
This process's end of the helper process that beats for it (:mod:`nfsrwlock_core.beater`).

The helper is started at the first hold and ends soon after the last. It says of each hold how its heartbeats fare; this
process counts its leases from that. What it says is read by a thread, and by whoever finds a lease run out: a program
that held the GIL for minutes must not believe that its lock is lost before it has listened.

The helper may hang in a file-system call, be stopped, or be killed. None of that may hang this process: messages and
answers are waited for a bounded time, after which the helper is replaced.
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

from . import workers
from .directory import LockDirectory
from .hold import Hold, logger, now
from .protocol import Beat
from .scheduler import Scheduler

#: How long the helper may take to let go of a hold, seconds. It waits for a heartbeat under way.
_DROP_S: Final = 5.0
#: How long it may take to read a message, or to answer how a hold fares, seconds.
_ANSWER_S: Final = 0.5
#: Helpers that end unexpectedly one after the other before a thread takes over.
_STARTS_MAX: Final = 5

#: Where this package is imported from; taken now, for a relative entry of sys.path loses its meaning later.
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_START: Final = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments['path']; "
    "from nfsrwlock_core.beater import main; main(arguments)"
)


class Helper:
    """
    The helper process, whether it runs or not.

    :param scheduler: watches the leases of what the helper beats for, and takes over if there can be no helper
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Final = scheduler
        #: For everything below but reading. Re-entrant, as all of them: a signal's handler may release a lock.
        self._lock = threading.RLock()
        self._reading = threading.RLock()
        self._holds: dict[int, Hold] = {}
        #: Questions that it has not answered yet, by their number.
        self._awaited: dict[int, tuple[Hold, queue.SimpleQueue[None]]] = {}
        #: Holds and questions are numbered; an object's id() would come back.
        self._numbers = itertools.count()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._starts = 0
        self._idle_since = 0.0

    def keep(self, hold: Hold) -> None:
        """Let the helper beat for ``hold``, starting it if need be."""
        self._scheduler.keep(hold, remote=True)
        hold.catch_up = partial(self._catch_up, hold)
        with self._lock:
            hold.key = next(self._numbers)
            self._holds[hold.key] = hold
            if self._socket is None:
                self._start()
            else:
                self._send(_order(hold))

    def drop(self, hold: Hold) -> None:
        """Take ``hold`` back; afterwards the helper touches none of its files any more."""
        self._scheduler.drop(hold)
        with self._lock:
            self._holds.pop(hold.key, None)
            self._idle_since = time.monotonic()
        if not self._ask(hold, "drop", _DROP_S):
            with self._lock:
                if self._process is not None:
                    # Stopped, or hung in a call to a server, and perhaps it cannot even end: another helper takes the
                    # other holds at once. A beat that this one has sent finds nothing after the release.
                    self._process.kill()
                    self._take_stock_after_death()
        hold.catch_up = None

    def _catch_up(self, hold: Hold) -> None:
        # What it has said may lie unread, and its latest word may wait behind that.
        self._ask(hold, "tell", _ANSWER_S)

    def _ask(self, hold: Hold, verb: str, seconds: float) -> bool:
        answered: queue.SimpleQueue[None] = queue.SimpleQueue()  # an Event is not atomic to a signal's exception
        with self._lock:
            sock = self._socket
            if sock is None:
                return True  # there is no helper that could do anything
            question = next(self._numbers)
            self._awaited[question] = (hold, answered)
            self._send({verb: hold.key, "question": question})
        deadline = time.monotonic() + seconds
        # Read here, too: it saves waiting for the reader to be scheduled. A dead helper counts as an answer.
        while answered.empty() and (left := deadline - time.monotonic()) > 0:
            if not _wait(sock, select.POLLIN, min(left, 0.1)) or not self._read_reports(sock):
                time.sleep(0.002)
        if answered.empty():
            self._awaited.pop(question, None)
        return not answered.empty()

    def forget(self) -> None:
        """Let go of the parent's helper, in a forked child."""
        if self._socket is not None:
            self._socket.close()

    # -- the process; all with the lock held --------------------------------------------------------------------------

    def _start(self) -> None:
        here, there = socket.socketpair()
        arguments = {
            "path": [_ROOT, *map(os.path.abspath, sys.path)],
            "socket": there.fileno(),
            "pid": os.getpid(),
        }
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
        here.setblocking(False)
        self._socket, self._process, self._buffer = here, process, b""
        for hold in self._holds.values():
            self._send(_order(hold))

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data and self._socket is not None:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                if not _wait(self._socket, select.POLLOUT, _ANSWER_S) and self._process is not None:
                    self._process.kill()  # it does not read: it is stopped
                    return
            except OSError:
                return  # it died: the reader starts another one and tells it everything anew

    def _take_stock_after_death(self) -> None:
        self._disconnect()
        if not self._holds:
            return
        if self._starts < _STARTS_MAX:
            logger.warning("the heartbeat process has ended unexpectedly; starting another one")
            self._start()
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
        ended = False
        while not ended:
            _wait(sock, select.POLLIN, 0.5)
            alive = self._read_reports(sock)
            with self._lock:
                if self._socket is not sock:
                    ended = True
                elif not alive:
                    ended = True
                    process.kill()
                    self._take_stock_after_death()
                elif not self._holds and not self._awaited and self._is_idle():
                    ended = True
                    self._send({"quit": True})
                    self._disconnect()
                    self._starts = 0
        sock.close()
        process.wait()

    def _is_idle(self) -> bool:
        return time.monotonic() - self._idle_since > workers.LINGER_S

    def _read_reports(self, sock: socket.socket) -> bool:
        """Take in what the helper has said so far; return whether it is there."""
        with self._reading:
            try:
                while data := sock.recv(65536):
                    *lines, self._buffer = (self._buffer + data).split(b"\n")
                    for line in lines:
                        self._take_in(json.loads(line))
            except BlockingIOError:
                return True
            except (OSError, ValueError):
                return False
            return False

    def _take_in(self, report: dict[str, Any]) -> None:
        answered = [asked for number in report["answers"] if (asked := self._awaited.pop(number, None)) is not None]
        hold = answered[0][0] if answered else self._holds.get(report["hold"])
        if hold is not None and report["known"]:
            hold.participant.take_over(report["beat"], report["renewed"])
            hold.participant.beat_error = OSError(report["error"]) if report["error"] else None
            hold.take_in(Beat.LOST if report["lost"] else Beat.DONE)
        for _, answer in answered:
            answer.put(None)


def _order(hold: Hold) -> dict[str, Any]:
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
        "interval": participant.interval,
        "device": hold.device,
        "record": base64.b64encode(participant.record).decode(),
    }


def _wait(sock: socket.socket, event: int, seconds: float) -> bool:
    # poll, not select: a program with many open files has descriptors that select cannot take.
    try:
        poll = select.poll()
        poll.register(sock, event)
        return bool(poll.poll(seconds * 1000))
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            time.sleep(min(seconds, 0.01))
        return False  # closed meanwhile
