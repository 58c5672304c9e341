"""
Messages between the two processes of ``run`` and ``hold``, over one socket pair.

Both ends come from one fork of one program, so what travels is pickled, one message to a line. Nothing here blocks: a
peer that is stopped must not stop the other, and a message that finds no room is not queued but left for the sender to
send again in its newer form.
"""

from __future__ import annotations

import pickle
import socket
from base64 import b64decode, b64encode
from typing import Final

_ROOM_BYTES: Final = 1 << 16


class Channel:
    """One end of a pair. ``closed`` becomes true when the other process has closed its end or has died."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end in this process."""
        self.closed = True
        self._socket.close()

    def send(self, message: object) -> bool:
        """Send ``message``; False if nothing was sent: there was no room, or nobody is there to read it."""
        self._flush()
        if self._outgoing or self.closed:
            return False
        self._outgoing += b64encode(pickle.dumps(message)) + b"\n"
        self._flush()
        return True

    def _flush(self) -> None:
        while self._outgoing and not self.closed:
            try:
                del self._outgoing[: self._socket.send(self._outgoing)]
            except BlockingIOError:
                return
            except OSError:
                self.closed = True

    def receive(self) -> list[object]:
        """Return what has arrived, at once, in order."""
        self._flush()
        while not self.closed:
            try:
                chunk = self._socket.recv(_ROOM_BYTES)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self._incoming += chunk
            self.closed = not chunk
        *lines, self._incoming = self._incoming.split(b"\n")
        return [pickle.loads(b64decode(line)) for line in lines]
