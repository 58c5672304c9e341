"""
Messages between the two processes of ``run`` and ``hold``, over a pair of sockets that keeps messages apart.

Both ends come from one fork of one program, so what travels is pickled. Nothing here blocks: a peer that is stopped
must not stop the other, and a message that finds no room is not queued but left for the sender to send again in its
newer form. One system call sends a message, so a signal's handler may send one at any moment.
"""

from __future__ import annotations

import pickle
import select
import socket
from typing import Final

#: More than the kernel takes for one message.
_ROOM_BYTES: Final = 1 << 20


class Channel:
    """One end of a pair. :meth:`receive` sets ``closed`` when the other process has closed its end or has died."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end in this process."""
        self.closed = True
        self._socket.close()

    def send(self, message: object) -> bool:
        """Send ``message``; False if it was not sent: there was no room, or nobody is there to read it."""
        try:
            self._socket.send(pickle.dumps(message))
        except OSError:
            return False
        return True

    def send_news(self, message: object) -> bool:
        """Send what a newer message replaces, unless that is unlikely to leave room for what is said only once."""
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)  # for Linux, there is room while three quarters of it are free
        return bool(poller.poll(0)) and self.send(message)

    def receive(self) -> list[object]:
        """Return what has arrived, at once, in order."""
        messages: list[object] = []
        while not self.closed:
            try:
                packet = self._socket.recv(_ROOM_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:  # the other has gone, and left something unread; what it said comes after this
                continue
            if packet:
                messages.append(pickle.loads(packet))
            else:
                self.closed = True
        return messages
