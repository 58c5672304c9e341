"""
The locks that are compared, each behind the same two calls.

All wait without limit: whoever conducts a measurement ends the process that has waited for too long. So no contender's
own way of timing out is part of what is measured.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final


@dataclass(frozen=True)
class Options:
    """
    What contenders can be told, each as far as it understands it; ``None``: its own default.

    :param poll: seconds between looks of a waiter
    :param heartbeat: seconds between signs of life of a holder
    :param lease: seconds for which a silent holder keeps the lock
    """

    poll: float | None = None
    heartbeat: float | None = None
    lease: float | None = None


class Contender:
    """
    One lock object on one path.

    :param take: waits for the lock
    :param give_back: releases it
    """

    #: How often :meth:`wait` has looked in vain so far, where the contender can say so.
    polls: int | None = None

    def __init__(self, take: Callable[[], object], give_back: Callable[[], object]) -> None:
        self._take = take
        self._give_back = give_back

    def acquire(self) -> None:
        """Wait for the lock."""
        self._take()

    def wait(self) -> None:
        """Wait for it, and count how often that looked in vain."""
        self.acquire()

    def release(self) -> None:
        """Give it back."""
        self._give_back()

    def announce(self) -> None:
        """Make what others find of a holder, without the cost of looking at them, if that can be had."""
        self.acquire()


class NfsRwLock(Contender):
    """This project's lock; shared with a limit if one is given."""

    def __init__(self, path: str, options: Options, mode: str, linger: float = 0.0, at_most: int | None = None) -> None:
        from nfsrwlock import SoftReadWriteLock

        lock = SoftReadWriteLock(path, is_singleton=False, linger=linger, **_given(options, lease="stale_threshold"))
        take = partial(lock.acquire_read, at_most=at_most) if mode == "read" else lock.acquire_write
        super().__init__(take, lock.release)
        self._wait = partial(take, on_wait=self._count)  # which makes the wait itself dearer
        self.polls = 0
        self._directory, self._mode = lock.lock_path, mode

    def wait(self) -> None:
        """Wait for it, and count."""
        self._wait()

    def _count(self, _: object) -> None:
        assert self.polls is not None
        self.polls += 1

    def announce(self) -> None:
        """Make an entry under a name as an acquire does, which nobody beats for."""
        from nfsrwlock_core.names import Mode, announcement_name
        from nfsrwlock_core.protocol.heartbeat import fresh_token
        from nfsrwlock_core.system.process import current_identity

        who, milliseconds = current_identity(), time.time_ns() // 1_000_000
        name = announcement_name(
            Mode(self._mode), token=fresh_token(), ticket=0, lease_ms=90_000, who=who, since_ms=milliseconds
        )
        os.mkdir(f"{self._directory}/{name}", 0o700)


class Recorded(NfsRwLock):
    """The same lock, exclusive, of a process that records on the same file system what its locks do."""

    def __init__(self, path: str, options: Options) -> None:
        os.environ["NFSRWLOCK_TRACE"] = f"{path}.trace"  # read when the process first uses a lock
        super().__init__(path, options, "write")


class FilelockRw(Contender):
    """filelock's lock of the same name."""

    def __init__(self, path: str, options: Options, mode: str) -> None:
        from filelock import SoftReadWriteLock

        lock = SoftReadWriteLock(path, is_singleton=False, **_given(options, lease="stale_threshold"))
        super().__init__(lock.acquire_read if mode == "read" else lock.acquire_write, lock.release)


class FilelockSoft(Contender):
    """filelock's marker file, or its stricter sibling. Neither has heartbeats or leases."""

    def __init__(self, path: str, options: Options, kind: str) -> None:
        import filelock

        lock = getattr(filelock, kind)(path, **({} if options.poll is None else {"poll_interval": options.poll}))
        super().__init__(lock.acquire, lock.release)


class Flufl(Contender):
    """flufl.lock: a hard link with a lifetime that is fixed in advance. It polls at random, up to 2 s apart."""

    def __init__(self, path: str, options: Options) -> None:
        import datetime as dt

        from flufl.lock import Lock

        lock = Lock(path, lifetime=None if options.lease is None else dt.timedelta(seconds=options.lease))
        super().__init__(lock.lock, partial(lock.unlock, unconditionally=True))


class Lockf(Contender):
    """The kernel's own lock, on a descriptor that stays open: its best case. The kernel does the waiting."""

    def __init__(self, path: str, options: Options, mode: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        kind = fcntl.LOCK_SH if mode == "read" else fcntl.LOCK_EX
        super().__init__(partial(fcntl.lockf, fd, kind), partial(fcntl.lockf, fd, fcntl.LOCK_UN))


class Floor(Contender):
    """No lock: announce, list, withdraw, and nothing else. What any lock of this kind pays at the least."""

    _numbers = itertools.count()

    def __init__(self, path: str, options: Options) -> None:
        super().__init__(self._announce_and_list, self._withdraw)
        os.makedirs(path, exist_ok=True)
        self._path = path
        # As long as names of nfsrwlock, for long names make large listings.
        self._entry = f"{path}/{'floor':.<60}{next(self._numbers):08d}.{os.uname().nodename}.{os.getpid():08d}"

    def announce(self) -> None:
        """Announce only."""
        os.mkdir(self._entry)

    def _announce_and_list(self) -> None:
        os.mkdir(self._entry)
        os.listdir(self._path)

    def _withdraw(self) -> None:
        os.rmdir(self._entry)


@dataclass(frozen=True)
class Kind:
    """
    One way to lock.

    :param label: for people
    :param make: makes one, from a path and options
    :param shared: whether several can hold it at once
    :param excludes: whether it keeps anybody out at all
    :param polls: whether its poll interval can be set
    :param threads: whether it keeps threads of one process from each other
    :param permits: how many hold it at a time, at most, of those that are not excluded
    """

    label: str
    make: Callable[[str, Options], Contender]
    shared: bool = False
    excludes: bool = True
    polls: bool = True
    threads: bool = True
    permits: int = 1


#: Of the semaphore that is measured.
_PERMITS: Final = 4

#: In the order of the tables.
KINDS: Final[dict[str, Kind]] = {
    "nfsrwlock-read": Kind("nfsrwlock, read", lambda p, o: NfsRwLock(p, o, "read"), shared=True),
    "nfsrwlock-kept": Kind("nfsrwlock, read, linger=10", lambda p, o: NfsRwLock(p, o, "read", linger=10), shared=True),
    "nfsrwlock-permit": Kind(
        f"nfsrwlock, {_PERMITS} permits",
        lambda p, o: NfsRwLock(p, o, "read", at_most=_PERMITS),
        shared=True,
        permits=_PERMITS,
    ),
    "nfsrwlock-write": Kind("nfsrwlock, write", lambda p, o: NfsRwLock(p, o, "write")),
    "nfsrwlock-recorded": Kind("nfsrwlock, write, recorded", Recorded),
    "filelock-read": Kind("filelock SoftReadWriteLock, read", lambda p, o: FilelockRw(p, o, "read"), shared=True),
    "filelock-write": Kind("filelock SoftReadWriteLock, write", lambda p, o: FilelockRw(p, o, "write")),
    "soft": Kind("filelock SoftFileLock", lambda p, o: FilelockSoft(p, o, "SoftFileLock")),
    "strict": Kind("filelock StrictSoftFileLock", lambda p, o: FilelockSoft(p, o, "StrictSoftFileLock")),
    "flufl": Kind("flufl.lock", Flufl, polls=False),
    "lockf-read": Kind("lockf, shared", lambda p, o: Lockf(p, o, "read"), shared=True, polls=False, threads=False),
    "lockf-write": Kind("lockf, exclusive", lambda p, o: Lockf(p, o, "write"), polls=False, threads=False),
    "floor": Kind("bare floor: mkdir, list, rmdir", Floor, shared=True, excludes=False),
}


def writer_of(contender: str) -> str:
    """Return what excludes a contender's holders: the write lock beside a read lock, else the lock itself."""
    return contender.replace("-read", "-write")


def _given(options: Options, lease: str) -> dict[str, Any]:
    named = {"poll_interval": options.poll, "heartbeat_interval": options.heartbeat, lease: options.lease}
    return {name: value for name, value in named.items() if value is not None}
