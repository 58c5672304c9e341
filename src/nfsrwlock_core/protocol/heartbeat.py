"""
One announcement of our own: keep it by heartbeats, hand them over to another process and back, remove it at the end.

What it does not promise: a holder that goes on after its lease ran out overlaps with whoever comes next. It can know
(:attr:`Announced.lease`), and whoever commits under the lock must ask. PROTOCOL.md, sections 3 and 5.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from nfsrwlock_core.names import (
    Announcement,
    Identity,
    Mode,
    beat_name,
    gone_name,
    parse_beats,
    parse_listing,
    token_in,
)
from nfsrwlock_core.system.directory import Files

from .removal import is_unlisted, remove_announcement, remove_quietly

#: The holder gives up this part of its lease. Peers count the whole lease on their own clocks, so the rates of two
#: clocks may differ by 5 % before a peer could evict a holder that still trusts its lease (0.9 * 1.05 < 1 / 1.05).
MARGIN: Final = 0.1


@dataclass(frozen=True, slots=True)
class Lease:
    """
    The time a participant may trust its announcement, seconds on its own clock.

    :param ttl: how long peers wait in silence before they may evict
    :param renewed: the moment *before* the latest successful announcement or beat was sent
    """

    ttl: float
    renewed: float
    #: When the holder itself must stop trusting the hold: before any peer may evict it.
    expires: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires", self.renewed + self.ttl * (1 - MARGIN))

    def has_run_out(self, now: float) -> bool:
        """Whether the hold is suspect at ``now``."""
        return now > self.expires


class Beat(Enum):
    """What came of a heartbeat."""

    DONE = "done"
    #: It may or may not have arrived; try again. The lease runs on.
    UNKNOWN = "unknown"
    #: The announcement is gone from the server: somebody evicted it. It never comes back.
    LOST = "lost"


class Phase(Enum):
    """Where a participant stands in the story of PROTOCOL.md section 2."""

    #: Not announced, and nothing is known to be in the way.
    OUTSIDE = "outside"
    #: A reader, not announced, because a writer is in the way.
    POLLING = "polling"
    #: A writer, announced, waits for those who were there before it.
    DRAINING = "draining"
    GRANTED = "granted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class World:
    """
    What a participant cannot decide from listings, so that tests can decide it instead.

    :param clock: seconds on a monotonic clock that runs through suspend
    :param is_dead: whether this kernel proves that a process has ended
    :param token: returns 32 fresh random hex digits
    :param standstill: for how many seconds after a new connection to the server peers may be unable to beat
    :param evicted: told of a lock directory and of whom this participant has evicted from it
    """

    clock: Callable[[], float]
    is_dead: Callable[[Identity], bool]
    token: Callable[[], str]
    standstill: Callable[[], float] = float
    evicted: Callable[[str, Announcement], object] = lambda path, whom: None


def fresh_token() -> str:
    """Return 128 random bits as 32 hex digits."""
    return os.urandom(16).hex()


@contextlib.contextmanager
def changed(files: Files, world: World, *, if_possible: bool = False) -> Iterator[str]:
    """
    Make a directory for a block, and give its name.

    A listing within, after a mkdir of our own, shows everything that was there before (PROTOCOL.md, section 6 b).

    :param if_possible: go on where nothing can be made, on a full disk, say
    :raises OSError: what the system said
    """
    probe = gone_name(world.token())
    try:
        files.mkdir(probe)
    except OSError:
        if not if_possible:
            raise
    try:
        yield probe
    finally:
        remove_quietly(files, [probe])


class Announced:
    """
    A participant whose announcement is on disk.

    :param files: the lock directory
    :param mode: shared or exclusive
    :param ttl: lease in seconds
    :param interval: seconds between heartbeats
    :param record: what the first heartbeat's file says, for people
    """

    def __init__(
        self, files: Files, world: World, mode: Mode, *, ttl: float, interval: float, record: bytes = b""
    ) -> None:
        self.files: Final = files
        self.mode: Final = mode
        self.interval: Final = interval
        self.record: Final = record
        self._world: Final = world
        self._ttl: Final = ttl
        self.phase: Phase = Phase.OUTSIDE
        #: The number of a granted write; a reader's is read by :meth:`read_generation`.
        self.generation: int | None = None
        #: What the announcement is called now, "" while not announced.
        self.name: str = ""
        self.lease: Lease = Lease(ttl, 0.0)
        self._beat: int | None = None
        # Beats later than the one we know of may be there: none was sent before this moment, so that is when one that
        # turns up counts from. None: there can be none.
        self._unheard: float | None = None
        #: Why the latest heartbeat is :attr:`Beat.UNKNOWN`.
        self.beat_error: OSError | None = None

    @classmethod
    def resume(
        cls,
        files: Files,
        world: World,
        *,
        name: str,
        beat: int | None,
        lease: Lease,
        unheard: float | None,
        interval: float,
        record: bytes,
    ) -> Announced:
        """
        Return the participant that another process announced under ``name``, to beat and to release for it.

        :param unheard: what :meth:`hand_over` returned there
        """
        self = cls(files, world, Mode(name.partition(".")[0]), ttl=lease.ttl, interval=interval, record=record)
        self.name, self._beat, self.lease, self.phase = name, beat, lease, Phase.GRANTED
        self._unheard = unheard
        return self

    def hand_over(self) -> float | None:
        """
        Let another process beat from now on; it may end at any moment without a word of its latest heartbeats.

        :returns: since when heartbeats that nobody has heard of may have been sent before it, ``None`` if none was
        """
        unheard, self._unheard = self._unheard, self.lease.renewed
        return unheard

    def take_over(self, beat: int | None, renewed: float) -> None:
        """Take in what another process, which beats for this one, says of the latest heartbeat that arrived."""
        self._beat = max((number for number in (beat, self._beat) if number is not None), default=None)
        self.lease = replace(self.lease, renewed=max(renewed, self.lease.renewed))

    @property
    def beats(self) -> int | None:
        """The number of the latest heartbeat known to have arrived, ``None`` before the first."""
        return self._beat

    def beat(self) -> Beat:
        """
        Send one heartbeat. Never raises ``OSError``: a failure is :attr:`Beat.UNKNOWN`, see :attr:`beat_error`.

        Success renews :attr:`lease` from the moment before the call was sent, even if it had run out: success is
        possible only while nobody has evicted the announcement.
        """
        self.beat_error = None
        if not self.name:
            return Beat.LOST
        for _ in range(3):
            sent = self._world.clock()
            target = self._next_beat(sent)
            try:
                self._send_beat(target)
            except OSError as error:
                self.beat_error = error
                failure = self._read_back_beat(target, sent)
                if failure is not None:
                    return failure
                if self.lease.renewed >= sent:
                    self._unheard = None
                    return Beat.DONE  # this very call arrived, only its reply was lost
                # An earlier try had arrived, long ago perhaps. That proves too little, so beat now; and whoever sent it
                # may have sent the next one, too.
                continue
            self._beat, self._unheard, self.lease = target, None, replace(self.lease, renewed=sent)
            return Beat.DONE
        return Beat.UNKNOWN

    def _next_beat(self, sent: float) -> int:
        if self._beat is not None:
            return self._beat + 1
        # A first beat that was not heard of may have been evicted since: its name must not come back. Others may have
        # followed it, or may still arrive. The time since the announcement, in milliseconds, is above them all.
        return 0 if self._unheard is None else math.ceil((sent - self.lease.renewed) * 1000)

    def _send_beat(self, target: int) -> None:
        new = f"{self.name}/{beat_name(target)}"
        if self._beat is None:
            self.files.create(new, self.record)
        else:
            self.files.rename(f"{self.name}/{beat_name(self._beat)}", new)

    def _read_back_beat(self, target: int, sent: float) -> Beat | None:
        # The error of a call says nothing sure about what the server did. The names do, for only we make them.
        # Returns None if a later beat than the one we knew of turned up. Peers may have watched it ever since the first
        # of our tries, or since another process, which has ended, could send it.
        sent = self._unheard = sent if self._unheard is None else self._unheard
        try:
            found = parse_beats(self.files.listdir(self.name))
            if found == self._beat is not None and isinstance(self.beat_error, FileNotFoundError):
                # The server says that it is not there any more: a client that goes by time stamps may show it for ever.
                found = target if self._is_file(f"{self.name}/{beat_name(target)}") else found
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ESTALE:
                return self._read_back_announcement()
            self.beat_error = error
            return Beat.UNKNOWN
        if found is not None and found >= target:
            self._beat, self.lease = found, replace(self.lease, renewed=max(sent, self.lease.renewed))
            return None
        if found is None and self._beat is not None:
            return self._finish_eviction()
        return Beat.UNKNOWN

    def _is_file(self, name: str) -> bool:
        try:
            self.files.listdir(name)
        except (FileNotFoundError, NotADirectoryError) as error:
            return isinstance(error, NotADirectoryError)
        return False

    def _finish_eviction(self) -> Beat:
        # We had a beat and the listing shows none: an evictor's first half, which nobody can undo, for only we make
        # beats and we only rename. Or the listing is old. The server knows: it removes only what is empty.
        try:
            self.files.rmdir(self.name)
        except FileNotFoundError:
            return self._read_back_announcement()
        except OSError as error:
            self.beat_error = error
            return Beat.UNKNOWN
        return Beat.LOST

    def _read_back_announcement(self) -> Beat:
        # ENOENT may come from the client's cache of missing names; a fresh listing that has lost our name does not.
        try:
            return Beat.LOST if is_unlisted(self.files, self.name) else Beat.UNKNOWN
        except OSError as error:
            self.beat_error = error
            return Beat.UNKNOWN

    def read_generation(self) -> int:
        """
        Return the generation of the lock, exact while this participant holds it.

        No write can be granted during a shared hold, so one listing made after the grant is exact if it is fresh. It
        is made fresh as every deciding listing is: by a ``mkdir`` of our own before it.

        :raises OSError: what a system call said
        """
        if self.generation is not None:
            return self.generation
        try:
            return self._look_for_generation()
        except FileNotFoundError:  # a 9P client's word also if another removed the new directory at once
            return self._look_for_generation()

    def _look_for_generation(self) -> int:
        with changed(self.files, self._world):
            self.generation = parse_listing(self.files.listdir()).highest_generation
        return self.generation

    def release(self) -> bool:
        """
        End the hold.

        :returns: whether it stood until now. Within the lease it did, by the rules, unless an operator has ended it by
            hand. After the lease, only a removal that finds the latest beat (or no beat, if there was none) proves that
            nobody had evicted us.
        :raises OSError: what a system call said; call again, or let the lease end it
        """
        trusted = not self.lease.has_run_out(self._world.clock())
        if not self.name:
            self.phase = Phase.ENDED
            return False
        unheard = not trusted and self._unheard is not None  # within the lease nobody can have removed one
        found = remove_announcement(self.files, self.name, self._beat, unheard=unheard)
        if not found and trusted:
            trusted = not self._was_broken()
        self.phase = Phase.ENDED
        return trusted or found

    def _was_broken(self) -> bool:
        # Not to find it may be a lost reply to our own removal. An operator's removal leaves a word.
        tombstone = gone_name(token_in(self.name))
        try:
            if tombstone not in self.files.listdir():
                return False
        except FileNotFoundError:
            return False
        remove_quietly(self.files, [tombstone])
        return True
