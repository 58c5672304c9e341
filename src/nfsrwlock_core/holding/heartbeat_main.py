"""
The helper process of ``heartbeat="process"``: it beats for its parent, and clears up after it.

It runs the same scheduler and the same protocol as the parent would. It watches the parent by a pidfd, so it learns of
its death at once and through every fork; what it then removes are the markers of a process whose files are closed
already, since the kernel closes them before it reports the end. A parent that is only stopped is not dead: its locks
stay. The parent's end of the socket may close without its death (``exec``): then its locks stay, too, until it ends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import select
import signal
import socket
import threading
import time
from concurrent.futures import wait
from typing import Any, Final

from nfsrwlock_core.names import Identity
from nfsrwlock_core.protocol.heartbeat import Announced, Beat, Lease, World, fresh_token
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.process import is_dead

from .heartbeat_thread import Scheduler
from .hold import Hold

#: The helper ends at most this long after its parent, whatever the file server does.
_FAREWELL_S: Final = 0.9
#: The pause after reading of holds that come and go, seconds; most are over by the next time and cost nothing.
#: To wake up for each would take the processor from the program.
_GATHER_S: Final = 0.01
#: Where there is no pidfd, the parent's id is looked at this often.
_GLANCE_S: Final = 0.5


def main(arguments: dict[str, Any]) -> None:
    """Run the helper; the parent names its socket and itself in ``arguments``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, not before
    with contextlib.suppress(OSError):
        Beater(socket.socket(fileno=arguments["socket"]), arguments["pid"]).run()
    os._exit(0)  # no waiting for threads that may hang in a file-system call


class Beater:
    """
    The helper's side of the conversation.

    :param sock: connected to the parent
    :param pid: the parent
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._socket = sock
        self._parent = Identity(pid=pid, start=0, kernel="", uid=0, host="")
        self._holds: dict[int, Hold] = {}
        self._scheduler = Scheduler(on_beat=self._report)
        # Beats must not wait for a parent that does not read (it is stopped, or holds the GIL): the latest report on
        # each hold is kept here until a thread can send it.
        self._outbox: dict[int, dict[str, Any]] = {}
        self._mutex = threading.Lock()
        #: The keys of what is in it, in order.
        self._unsent: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the parent ends or says that it needs no more heartbeats."""
        threading.Thread(target=self._speak, daemon=True).start()
        pidfd = self._watch_parent()
        poll = select.poll()  # not select: the socket has the number that it had in the parent, which may be high
        for descriptor in (self._socket.fileno(), pidfd):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        buffer = b""
        while True:
            ready = {fd for fd, _ in poll.poll(_GLANCE_S * 1000 if pidfd is None else None)}
            if self._socket.fileno() in ready:
                data = b""
                with contextlib.suppress(OSError):
                    data = self._socket.recv(65536)
                *lines, buffer = (buffer + data).split(b"\n")
                orders = [json.loads(line) for line in lines]
                if not self._obey(orders) or not (data or self._holds):
                    return
                if not data:
                    poll.unregister(self._socket)
                elif not any("question" in order for order in orders):
                    time.sleep(_GATHER_S)
            elif (pidfd is None and os.getppid() != self._parent.pid) or pidfd in ready:
                # Only when all that the parent had said was read: it may have died right after asking.
                wait([workers.submit(self._release, hold) for hold in self._holds.values()], timeout=_FAREWELL_S)
                return

    def _speak(self) -> None:
        while True:
            key = self._unsent.get()
            with self._mutex:
                report = self._outbox.pop(key)
            with contextlib.suppress(OSError):  # nobody listens any more
                self._socket.sendall(json.dumps(report).encode() + b"\n")

    def _watch_parent(self) -> int | None:
        try:
            pidfd = os.pidfd_open(self._parent.pid)
        except (AttributeError, OSError):  # it is gone already, or this is no Linux of 5.3 or later
            return None  # then the parent's id tells
        if os.getppid() != self._parent.pid:
            os.close(pidfd)
            return None
        return pidfd

    def _obey(self, orders: list[dict[str, Any]]) -> bool:
        # What was given back before we came to read of it costs nothing.
        dropped = {order["drop"] for order in orders if "drop" in order}
        for order in orders:
            if "keep" in order:
                if order["keep"] not in dropped:
                    self._keep(order)
            elif "drop" in order:
                self._drop(order["drop"], order.get("question"))
            elif "tell" in order:
                self._say(order["tell"], self._holds.get(order["tell"]), order["question"])
            else:
                return False
        return True

    def _keep(self, order: dict[str, Any]) -> None:
        files = LockDirectory(os.fsdecode(base64.b64decode(order["path"])), order["share"])
        participant = Announced.resume(
            files,
            World(clock=now, is_dead=is_dead, token=fresh_token),
            name=order["name"],
            beat=order["beat"],
            lease=Lease(order["ttl"], order["renewed"]),
            unheard=order["unheard"],
            interval=order["interval"],
            record=base64.b64decode(order["record"]),
        )
        hold = Hold(participant, "", order["device"], None)
        hold.key = order["keep"]
        self._holds[hold.key] = hold
        self._scheduler.keep(hold)

    def _drop(self, key: int, question: int | None) -> None:
        hold = self._holds.pop(key, None)
        if hold is not None:
            self._scheduler.forget(hold)
            hold.ended = True  # it may be in line for a beat
        if question is not None:
            # In a thread, for this waits for a beat under way, which may hang.
            workers.submit(self._answer_drop, key, hold, question)

    def _answer_drop(self, key: int, hold: Hold | None, question: int) -> None:
        if hold is not None:
            self._scheduler.drop(hold)
        self._say(key, hold, question)

    def _report(self, hold: Hold, outcome: Beat) -> None:
        del outcome  # the hold knows
        if hold.key in self._holds:
            self._say(hold.key, hold)

    def _say(self, key: int, hold: Hold | None, question: int | None = None) -> None:
        report: dict[str, Any] = {"hold": key, "known": hold is not None, "answers": []}
        with self._mutex:  # what is looked at later must be said later
            if hold is not None:
                participant = hold.participant
                report["beat"] = participant.beats
                report["renewed"] = participant.lease.renewed
                report["lost"] = hold.is_known_lost
                report["error"] = str(participant.beat_error or "")
            unsaid = self._outbox.get(key)
            report["answers"] = ([] if unsaid is None else unsaid["answers"]) + ([] if question is None else [question])
            self._outbox[key] = report
        if unsaid is None:
            self._unsent.put(key)

    def _release(self, hold: Hold) -> bool:
        self._scheduler.drop(hold)
        return hold.participant.release()
