"""
Heartbeats for what this process holds: in a thread, or in a helper process.

One scheduler thread per process does no file-system call itself. It hands the beats that are due to worker threads, one
file system at a time each, so that a server that hangs delays only the beats of locks that lie on it; and it tells
owners when a lease runs out. It ends soon after the last release.

A thread starves while another one holds the GIL, so ``heartbeat="process"`` lets a small helper beat instead
(:mod:`nfsrwlock_core.beater`). The helper reports every beat; this process counts its leases from those reports.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from . import workers
from .directory import LockDirectory
from .hold import Hold, logger, now
from .identity import current_identity
from .protocol import Beat, Participant

#: The scheduler wakes at least this often, seconds, for its waits do not run through suspend and leases do.
_WAKE_S: Final = 5.0
#: How often and how long a release that the server refuses is tried again, seconds.
_RETRY_S: Final = 2.0


class Scheduler:
    """
    Beats for every hold of this process that beats by thread, and watches the leases of all.

    :param on_beat: told of every heartbeat's outcome, for a helper process that reports them
    """

    def __init__(self, on_beat: Callable[[Hold, Beat], None] | None = None) -> None:
        self._changed = threading.Condition()
        self._holds: dict[int, tuple[Hold, bool]] = {}
        self._busy: set[int] = set()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0
        self._on_beat = on_beat

    def keep(self, hold: Hold, *, remote: bool = False) -> None:
        """Begin to beat for ``hold``, or, if something ``remote`` beats for it, only to watch its lease."""
        with self._changed:
            self._holds[id(hold)] = (hold, remote)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nfsrwlock-heartbeat", daemon=True)
                self._thread.start()
            elif self._wakes_at > self._next_time(hold, remote):
                self._changed.notify()

    def drop(self, hold: Hold) -> None:
        """Stop beating for ``hold``; waits for a beat under way."""
        with self._changed:
            self._holds.pop(id(hold), None)
        with hold.mutex:
            hold.ended = True

    def _next_time(self, hold: Hold, remote: bool) -> float:
        expiry = hold.next_expiry
        times = [] if expiry is None else [expiry]
        if not remote and hold.device not in self._busy:
            times.append(hold.due)
        return min(times, default=float("inf"))

    def _run(self) -> None:
        idle_since = now()
        with self._changed:
            while True:
                moment = now()
                if self._holds:
                    idle_since = moment
                    self._start_due_beats(moment)
                    self._tell_expired(moment)
                    wake = min(self._next_time(hold, remote) for hold, remote in self._holds.values())
                else:
                    wake = idle_since + workers.LINGER_S
                    if moment >= wake:
                        self._thread = None
                        return
                self._wakes_at = wake = min(wake, moment + _WAKE_S)
                self._changed.wait(max(wake - now(), 0.001))

    def _start_due_beats(self, moment: float) -> None:
        due: dict[int, list[Hold]] = {}
        for hold, remote in self._holds.values():
            if not remote and hold.due <= moment and hold.device not in self._busy:
                due.setdefault(hold.device, []).append(hold)
        for device, holds in due.items():
            self._busy.add(device)
            workers.submit(self._beat_all, device, holds)

    def _beat_all(self, device: int, holds: list[Hold]) -> None:
        try:
            for hold in holds:
                outcome = hold.beat()
                if self._on_beat is not None:
                    self._on_beat(hold, outcome)
                if outcome is Beat.LOST:
                    with self._changed:
                        self._holds.pop(id(hold), None)
        finally:
            with self._changed:
                self._busy.discard(device)
                self._changed.notify()

    def _tell_expired(self, moment: float) -> None:
        for hold, _ in self._holds.values():
            expiry = hold.next_expiry
            if expiry is not None and expiry < moment:
                # In a worker: the owner's callback may take its time, and telling must not depend on the file server.
                hold.telling = True
                workers.submit(hold.tell_owner)


class Helper:
    """This process's end of the helper process that beats for it; started at the first hold, ended after the last."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Final = scheduler
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._holds: dict[int, Hold] = {}
        self._dropped: dict[int, tuple[Hold, threading.Event]] = {}
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._starts = 0
        self._idle_since = 0.0

    def keep(self, hold: Hold) -> None:
        """Let the helper beat for ``hold``, starting it if need be."""
        hold.catch_up = self._read_reports
        self._scheduler.keep(hold, remote=True)
        with self._lock:
            self._holds[id(hold)] = hold
            if self._socket is None:
                self._start()
            else:
                self._send_hold(hold)

    def drop(self, hold: Hold) -> None:
        """Take ``hold`` back; afterwards the helper touches none of its files any more."""
        self._scheduler.drop(hold)
        done = threading.Event()
        with self._lock:
            if self._holds.pop(id(hold), None) is None:
                return
            self._dropped[id(hold)] = (hold, done)
            self._idle_since = time.monotonic()
            self._send({"drop": id(hold)})
            sock = self._socket
        while not done.is_set():
            # Read here, too: it saves waiting for the reader thread to be scheduled. A dead helper sets the event.
            if not _wait_readable(sock, 0.5) or not self._read_reports():
                done.wait(0.01)
        hold.catch_up = None

    def _start(self) -> None:
        here, there = socket.socketpair()
        me = current_identity()
        arguments = {
            "path": [os.path.abspath(p) for p in sys.path],
            "socket": there.fileno(),
            "pid": me.pid,
            "start": me.start,
        }
        code = (
            "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments['path']; "
            "from nfsrwlock_core.beater import main; main(arguments)"
        )
        self._starts += 1
        try:
            self._process = subprocess.Popen(
                # -S -E: no site-packages start-up files; the parent's own path says where everything is.
                [sys.executable, "-S", "-E", "-c", code, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,  # a Ctrl-C or Ctrl-Z at the terminal is for the program, not for its heartbeat
                cwd="/",
            )
        except (OSError, ValueError) as error:
            here.close()
            self._fall_back(error)
            return
        finally:
            there.close()
        self._socket, self._buffer = here, b""
        for hold in self._holds.values():
            self._send_hold(hold)
        threading.Thread(
            target=self._read_until_idle, args=(here, self._process), name="nfsrwlock-helper", daemon=True
        ).start()

    def _send_hold(self, hold: Hold) -> None:
        participant = hold.participant
        files = participant.files
        assert isinstance(files, LockDirectory)
        self._send(
            {
                "keep": id(hold),
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
        )

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            # A helper that died is noticed by the reader, which starts another one and tells it everything anew.
            with contextlib.suppress(OSError):
                self._socket.sendall(json.dumps(message).encode() + b"\n")
                return
        if (key := message.get("drop")) is not None and (waiting := self._dropped.pop(key, None)) is not None:
            waiting[1].set()

    def _read_until_idle(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        while True:
            _wait_readable(sock, 0.5)
            alive = self._read_reports()
            with self._lock:
                if self._socket is not sock:
                    break
                if not alive:
                    self._take_stock_after_death()
                    break
                if not self._holds and time.monotonic() - self._idle_since > workers.LINGER_S:
                    self._send({"quit": True})
                    self._socket = None
                    self._starts = 0
                    break
        with contextlib.suppress(OSError):
            sock.close()
        process.wait()

    def _take_stock_after_death(self) -> None:
        # Called with the lock held. Someone killed the helper; the holds go on.
        self._socket = None
        for _, done in self._dropped.values():
            done.set()
        self._dropped.clear()
        if not self._holds:
            return
        logger.warning("the heartbeat process ended unexpectedly; starting another one")
        if self._starts < 5:
            self._start()
        else:
            self._fall_back(RuntimeError("it ended five times"))

    def _fall_back(self, error: Exception) -> None:
        # Better beats that may starve than none.
        logger.warning("no heartbeat process can be run (%s): heartbeats come from a thread now", error)
        for hold in self._holds.values():
            hold.due = now()
            self._scheduler.keep(hold)

    def _read_reports(self) -> bool:
        """Take in what the helper has said so far; return whether it is there."""
        with self._reading:
            sock = self._socket
            if sock is None:
                return False
            try:
                while _wait_readable(sock, 0):
                    data = sock.recv(65536)
                    if not data:
                        return False
                    *lines, self._buffer = (self._buffer + data).split(b"\n")
                    for line in lines:
                        self._take_in(json.loads(line))
            except (OSError, ValueError):
                return False
            return True

    def _take_in(self, report: dict[str, Any]) -> None:
        if report["outcome"] == "dropped":
            if (waiting := self._dropped.pop(report["hold"], None)) is not None:
                waiting[0].participant.take_over(report["beat"], report["renewed"])
                waiting[1].set()
            return
        hold = self._holds.get(report["hold"])
        if hold is not None and not hold.ended:
            hold.participant.take_over(report["beat"], report["renewed"])
            hold.take_in(Beat(report["outcome"]))

    def forget(self) -> None:
        """Let go of the parent's helper, in a forked child."""
        if self._socket is not None:
            self._socket.close()


def _wait_readable(sock: socket.socket | None, seconds: float) -> bool:
    # poll, not select: a program with many open files has descriptors that select cannot take.
    if sock is None:
        return False
    try:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    except (OSError, ValueError):
        return False  # closed meanwhile


class _Keepers:
    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.helper = Helper(self.scheduler)


_keepers = _Keepers()


def keep(hold: Hold, form: str) -> None:
    """Begin to beat for ``hold``, by ``form`` (``"thread"`` or ``"process"``)."""
    if form == "process":
        _keepers.helper.keep(hold)
    else:
        _keepers.scheduler.keep(hold)


def drop(hold: Hold) -> None:
    """Stop beating for ``hold``. It may be released afterwards."""
    if hold.catch_up is not None:
        _keepers.helper.drop(hold)
    else:
        _keepers.scheduler.drop(hold)


def release(hold: Hold) -> bool:
    """
    End ``hold``: stop its heartbeat, remove it from the lock directory.

    Never raises ``OSError``: what the server refuses now is tried again in the background until the lease has ended it
    in any case.

    :returns: whether the hold stood to the end
    """
    drop(hold)
    participant = hold.participant
    try:
        stood = participant.release()
    except OSError as error:
        logger.warning("releasing the lock on %r is tried again: %s", hold.lock_file, error)
        stood = not participant.lease.has_run_out(now())
        workers.submit(_release_later, participant)
        return stood
    except BaseException:  # a signal handler's exception: the lock must go all the same
        workers.submit(_release_later, participant)
        raise
    _close(participant)
    return stood


def _release_later(participant: Participant) -> None:
    deadline = now() + participant.lease.ttl
    while now() < deadline:
        try:
            participant.release()
        except OSError:
            time.sleep(min(_RETRY_S, participant.lease.ttl / 10))
        else:
            break
    _close(participant)


def _close(participant: Participant) -> None:
    if isinstance(participant.files, LockDirectory):
        participant.files.close()


def _reset_after_fork() -> None:
    global _keepers  # noqa: PLW0603 - threads do not survive a fork, and the helper is the parent's
    _keepers.helper.forget()
    _keepers = _Keepers()


os.register_at_fork(after_in_child=_reset_after_fork)
