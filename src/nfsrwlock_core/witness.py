"""
What a process that works under another process's hold can know of that hold.

A child that computes while its parent holds the lock has no hold of its own. It can look whether the parent's
announcement is still there, whether its process lives, and how old its latest heartbeat is. The age is read on one
clock, the file server's: the time stamp that the heartbeat left on the announcement, against that of a directory that
is made for the purpose. So the clocks of the hosts do not matter.

A witness decides nothing in the protocol. It sends no heartbeat, and it cannot keep a hold that nobody keeps.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final

from .directory import LockDirectory
from .errors import LeaseExpiredError, LockLostError
from .hold import now
from .identity import is_dead
from .names import Announcement, gone_name, parse_listing
from .protocol import MARGIN, fresh_token

#: A heartbeat that was first seen after a pause longer than this part of the lease may be as old as the pause.
_GAP: Final = 1 / 3


class HoldWitness:
    """
    Somebody else's hold, to be checked from any process that reaches the lock.

    Made by :meth:`SoftReadWriteLock.witness`; it may be pickled and sent to other processes and hosts.

    :param lock_file: the path as its holder named it
    :param lock_path: the directory where the lock lives
    :param name: the holder's entry there, the ``name`` of its :class:`PeerInfo`
    """

    def __init__(self, lock_file: str, lock_path: str, name: str) -> None:
        self.lock_file: Final = lock_file
        self.lock_path: Final = lock_path
        self.name: Final = name
        #: The time stamp of the latest heartbeat seen, and by when on our clock it had been sent for sure.
        self._seen: tuple[int, float] | None = None
        self._looked: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lock_file, self.lock_path, self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r} on {self.lock_file!r}>"

    def check(self) -> None:
        """
        Make sure that the hold still stands. Costs a few file-system calls.

        It fails at once after the hold was released or evicted, and after its process has died on this machine; at the
        latest after the holder's lease, less the tenth that the holder gives up, from its latest heartbeat on.

        :raises LockLostError: if the hold has ended, or its process has died
        :raises LeaseExpiredError: if no heartbeat was sent in time, or it cannot be seen whether one was
        """
        moment = now()
        files = LockDirectory(self.lock_path)
        try:
            peer = parse_listing(files.listdir()).announcements.get(self.name)
        except FileNotFoundError:
            peer = None
        except OSError as error:
            self._judge(None, moment, f"the lock cannot be looked at ({error})")
            return
        if peer is None:
            raise LockLostError(
                self.lock_file,
                "its holder has released it or was evicted; what was done under it must not be published",
            )
        if peer.who is not None and is_dead(peer.who):
            raise LockLostError(
                self.lock_file, f"process {peer.who.pid} on {peer.who.host}, which held it, has died; publish nothing"
            )
        try:
            self._look(files, peer, moment)
        except OSError as error:
            self._judge(peer, moment, f"its heartbeat cannot be looked at ({error})")
            return
        self._judge(peer, moment, "its holder has sent no heartbeat in time")

    def _look(self, files: LockDirectory, peer: Announcement, moment: float) -> None:
        # Opening the directory makes an NFS client ask for its attributes (nfs(5), close-to-open).
        fd = os.open(f"{self.lock_path}/{peer.name}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            stamp = os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
        if self._seen is not None and self._seen[0] == stamp:
            pass
        elif self._looked is not None and moment - self._looked < peer.lease_ms / 1000 * _GAP:
            self._seen = stamp, self._looked  # it was sent after our latest look
        else:
            self._seen = stamp, moment - _age(files, stamp)
        self._looked = moment

    def _judge(self, peer: Announcement | None, moment: float, reason: str) -> None:
        lease = self._lease(peer)
        if self._seen is None or moment > self._seen[1] + lease * (1 - MARGIN):
            raise LeaseExpiredError(
                self.lock_file, f"{reason}; with a lease of {lease:g} s others may hold the lock now. Publish nothing"
            )

    def _lease(self, peer: Announcement | None) -> float:
        known = peer or parse_listing([self.name]).announcements.get(self.name)
        return 0.0 if known is None else known.lease_ms / 1000


def _age(files: LockDirectory, stamp: int) -> float:
    # How long ago the server set the stamp, seconds, by its own clock.
    probe = gone_name(fresh_token())
    files.mkdir(probe)
    try:
        made = os.lstat(f"{files.path}/{probe}").st_mtime_ns
    finally:
        with suppress(OSError):
            files.rmdir(probe)
    return max(0.0, (made - stamp) / 1e9)
