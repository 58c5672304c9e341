"""
What a process that works under another process's hold can know of that hold.

A child that computes while its parent holds the lock has no hold of its own. It can look whether the parent's
announcement is still there, whether its process lives, and how old its latest heartbeat is. The age is read on one
clock, the file server's: the time stamp that the heartbeat left on the announcement, against that of a directory that
is made for the purpose. So the clocks of the hosts do not matter, nor how late a client's cache lets a heartbeat be
seen: a time stamp that is seen late is an old one, whenever that is. What counts as a heartbeat is its number alone,
for an eviction leaves a time stamp, too. A hold that has shown a heartbeat and shows none has been evicted, or is being
released. (Who has never seen one, and was made by no witness that has, cannot tell that from a hold too young for one.)

A witness decides nothing in the protocol. It sends no heartbeat, and it cannot keep a hold that nobody keeps. On a file
system that takes its time stamps from its clients (GlusterFS can) the clocks of the holder's host and of this one must
agree; who looks more often than three times a lease is safe there, too, because it sees heartbeats stop.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

from .errors import LeaseExpiredError, LockLostError
from .holding.held import VARIABLE
from .holding.waiting import WORLD
from .names import Announcement, parse_beats, parse_listing
from .protocol.heartbeat import MARGIN, World, changed
from .system.directory import Files, LockDirectory, opened
from .system.listing import names_in

#: A heartbeat that was first seen after a pause longer than this part of the lease may be as old as the pause.
_GAP: Final = 1 / 3
#: Nothing can be made, but a holder goes on to beat.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class HoldWitness:
    """
    Somebody else's hold, to be checked from any process that reaches the lock.

    Made by :meth:`SoftReadWriteLock.witness`; it may be pickled and sent to other processes and hosts.

    :param lock_file: the path as its holder named it
    :param lock_path: the directory where the lock lives
    :param name: the holder's entry there, the ``name`` of its :class:`PeerInfo`
    :param beat: the number of a heartbeat that the holder is known to have sent, ``None`` if none is
    """

    def __init__(self, lock_file: str, lock_path: str, name: str, beat: int | None = None) -> None:
        self.lock_file: Final = lock_file
        self.lock_path: Final = lock_path
        self.name: Final = name
        self._beat = beat
        self._world: World = WORLD
        #: The time stamp of the latest heartbeat seen, and by when on our clock it had been sent for sure.
        self._seen: tuple[int, float] | None = None
        self._looked: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lock_file, self.lock_path, self.name, self._beat)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r} on {self.lock_file!r}>"

    def in_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return ``environment`` for a process under this hold; one that would wait for it gets ``DeadlockError``."""
        return {**environment, VARIABLE: f"{environment.get(VARIABLE, '')} {self.name}".strip()}

    def check(self) -> None:
        """
        Make sure that the hold still stands. Costs a few file-system calls.

        It fails at once after the hold was released or evicted, and after its process has died on this machine; at the
        latest after the holder's lease, less the tenth that the holder gives up, from its latest heartbeat on.

        :raises LockLostError: if the hold has ended, or its process has died
        :raises LeaseExpiredError: if no heartbeat was sent in time, or it cannot be seen whether one was
        """
        files = self._files()
        try:
            peer = self._announcement(files)
        except OSError as error:
            self._judge(f"the lock cannot be looked at ({error})")
            return
        self._refuse_if_ended(peer)
        try:
            self._look(files)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self._refuse_if_gone(files)
            self._judge(f"its heartbeat cannot be looked at ({error})")
            return
        self._judge("its holder has sent no heartbeat in time")

    def _announcement(self, files: Files) -> Announcement | None:
        try:
            return parse_listing(files.listdir()).announcements.get(self.name)
        except FileNotFoundError:
            return None

    def _refuse_if_ended(self, peer: Announcement | None) -> None:
        if peer is None:
            raise self._lost()
        if peer.who is not None and self._world.is_dead(peer.who):
            raise LockLostError(
                self.lock_file, f"process {peer.who.pid} on {peer.who.host}, which held it, has died; publish nothing"
            )

    def _lost(self) -> LockLostError:
        return LockLostError(
            self.lock_file, "its holder has released it or was evicted; what was done under it must not be published"
        )

    def _refuse_if_gone(self, files: Files) -> None:
        # The listing may have been an old one. After a change of our own it is not (PROTOCOL.md, section 6 b).
        try:
            with changed(files, self._world):
                peer = self._announcement(files)
        except OSError:
            return
        self._refuse_if_ended(peer)

    def _look(self, files: Files) -> None:
        moment = self._world.clock()
        stamp, entries = self._glance(self.name)
        beat = parse_beats(entries)
        # With the time stamp of the heartbeat that we know of, it is an old listing.
        if beat is None is not self._beat and (self._seen is None or stamp != self._seen[0]):
            raise self._lost()
        if self._seen is None or (beat is not None and (self._beat is None or beat > self._beat)):
            self._seen = stamp, self._sent_by(files, stamp, moment)
            self._beat = beat if self._beat is None else max(beat or 0, self._beat)
        self._looked = moment

    def _sent_by(self, files: Files, stamp: int, moment: float) -> float:
        # By when, on our clock, the heartbeat that left the stamp had been sent for sure.
        latest = None
        if self._looked is not None and moment - self._looked < self._lease * _GAP:
            latest = self._looked  # we looked then, and it was not there
        try:
            with changed(files, self._world) as probe:
                age = (self._glance(probe)[0] - stamp) / 1e9
        except OSError as error:
            if latest is None or error.errno not in _FULL:
                raise
            return latest
        sent = moment - max(age, 0.0)
        return sent if latest is None else min(sent, latest)

    def _judge(self, reason: str) -> None:
        if self._seen is None or self._world.clock() > self._seen[1] + self._lease * (1 - MARGIN):
            raise LeaseExpiredError(
                self.lock_file,
                f"{reason}; with a lease of {self._lease:g} s others may hold the lock now. Publish nothing",
            )

    @property
    def _lease(self) -> float:
        known = parse_listing([self.name]).announcements.get(self.name)
        return 0.0 if known is None else known.lease_ms / 1000

    def _files(self) -> Files:
        return LockDirectory(self.lock_path)

    def _glance(self, name: str) -> tuple[int, list[str]]:
        # The time stamp of one of the lock's directories, and what is in it. The stamp comes first: it must not be of a
        # later change than what the listing shows. Opening the directory makes an NFS client ask for its attributes
        # (nfs(5), close-to-open), but for `nocto`.
        with opened(f"{self.lock_path}/{name}") as fd:
            return os.fstat(fd).st_mtime_ns, names_in(fd)
