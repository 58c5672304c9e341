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
import select
import signal
import socket
import threading
from concurrent.futures import wait
from typing import Any, Final

from . import workers
from .directory import LockDirectory
from .hold import Hold, now
from .identity import is_dead
from .keeper import Scheduler
from .names import Identity
from .protocol import Beat, Lease, Participant, World, fresh_token

#: The helper ends at most this long after its parent, whatever the file server does.
_FAREWELL_S: Final = 0.9
#: Where there is no pidfd, the parent's id is looked at this often.
_GLANCE_S: Final = 0.5


def main(arguments: dict[str, Any]) -> None:
    """Run the helper; the parent names its socket and itself in ``arguments``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, not before
    with contextlib.suppress(OSError):
        Beater(socket.socket(fileno=arguments["socket"]), arguments["pid"], arguments["start"]).run()
    os._exit(0)  # no waiting for threads that may hang in a file-system call


class Beater:
    """
    The helper's side of the conversation.

    :param sock: connected to the parent
    :param pid: the parent
    :param start: its start time, clock ticks since boot, so that a later process with its number is not mistaken for it
    """

    def __init__(self, sock: socket.socket, pid: int, start: int) -> None:
        self._socket = sock
        self._parent = Identity(pid=pid, start=start, kernel="", uid=0, host="")
        self._sending = threading.Lock()
        self._holds: dict[int, Hold] = {}
        self._keys: dict[int, int] = {}
        self._scheduler = Scheduler(on_beat=self._report)

    def run(self) -> None:
        """Serve until the parent ends or says that it needs no more heartbeats."""
        pidfd = self._watch_parent()
        buffer = b""
        watched: list[Any] = [self._socket] if pidfd is None else [self._socket, pidfd]
        connected = True
        while True:
            ready, _, _ = select.select(watched, [], [], _GLANCE_S if pidfd is None else None)  # few, low descriptors
            if connected and self._socket in ready:
                data = self._socket.recv(65536)
                if data:
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        if not self._obey(json.loads(line)):
                            return
                else:
                    connected = False
                    watched.remove(self._socket)
                    if not self._holds:
                        return
            elif (pidfd is None and os.getppid() != self._parent.pid) or pidfd in ready:
                # Only when all that the parent had said was read: it may have died right after asking.
                self._clear_up()
                return

    def _watch_parent(self) -> int | None:
        try:
            pidfd = os.pidfd_open(self._parent.pid)
        except AttributeError:
            return None  # not Linux
        except OSError:
            return None  # it is gone already, or the kernel is older than 5.3: then the parent's id tells
        if os.getppid() != self._parent.pid:
            os.close(pidfd)
            return None
        return pidfd

    def _obey(self, order: dict[str, Any]) -> bool:
        if "keep" in order:
            self._keep(order)
        elif "drop" in order:
            workers.submit(self._drop, order["drop"])  # it waits for a beat under way, which may hang
        else:
            return False
        return True

    def _keep(self, order: dict[str, Any]) -> None:
        files = LockDirectory(os.fsdecode(base64.b64decode(order["path"])), order["share"])
        participant = Participant.resume(
            files,
            World(clock=now, is_dead=is_dead, token=fresh_token),
            self._parent,
            name=order["name"],
            beat=order["beat"],
            lease=Lease(order["ttl"], order["renewed"]),
            interval=order["interval"],
            record=base64.b64decode(order["record"]),
        )
        hold = Hold(participant, "", order["device"], None)
        self._holds[order["keep"]] = hold
        self._keys[id(hold)] = order["keep"]
        workers.submit(self._begin, files, hold)

    def _begin(self, files: LockDirectory, hold: Hold) -> None:
        with contextlib.suppress(OSError):
            files.open_existing()
        if not hold.ended:
            self._scheduler.keep(hold)

    def _drop(self, key: int) -> None:
        hold = self._holds.pop(key)
        self._keys.pop(id(hold), None)
        self._scheduler.drop(hold)
        self._say(key, "dropped", hold)

    def _report(self, hold: Hold, outcome: Beat) -> None:
        if (key := self._keys.get(id(hold))) is not None:
            self._say(key, outcome.value, hold)

    def _say(self, key: int, outcome: str, hold: Hold) -> None:
        participant = hold.participant
        report = {"hold": key, "outcome": outcome, "beat": participant.beats, "renewed": participant.lease.renewed}
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(report).encode() + b"\n")

    def _clear_up(self) -> None:
        wait([workers.submit(self._release, hold) for hold in self._holds.values()], timeout=_FAREWELL_S)

    def _release(self, hold: Hold) -> bool:
        self._scheduler.drop(hold)
        files = hold.participant.files
        if isinstance(files, LockDirectory):
            files.open_existing()
        return hold.participant.release()
