"""
What can go wrong, as exceptions below one base class, :class:`LockError`.

Every message says what happened, to which lock, and what to do. :class:`~nfsrwlock_core.compat.Timeout` lives beside
the other names that come from filelock.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final


class LockError(Exception):
    """Base class of every error that this package defines."""


class LockLostError(LockError, RuntimeError):
    """
    The hold has ended although its holder did not release it.

    What was done under the lock since its lease ran out may have overlapped with another holder's work. Do not
    publish it; acquire the lock anew and start over.

    :param lock_file: the path that was locked
    :param reason: what happened, as a clause
    """

    def __init__(self, lock_file: str, reason: str) -> None:
        super().__init__(lock_file, reason)
        self.lock_file = lock_file
        self.reason = reason

    def __str__(self) -> str:
        return f"The lock on {self.lock_file!r} was lost: {self.reason}"


class LeaseExpiredError(LockLostError):
    """
    The lease has run out before a heartbeat succeeded: any peer may evict this holder now, or has done so already.

    The hold may still come back: a later heartbeat that succeeds proves that nobody evicted it.
    """

    def __str__(self) -> str:
        return f"The lease of the lock on {self.lock_file!r} has run out: {self.reason}"


class LockNotHeldError(LockError, RuntimeError):
    """The operation needs a held lock, and it is not held."""


class DeadlockError(LockError, RuntimeError):
    """The lock is held by somebody who cannot release it before this very call returns: waiting would never end."""


class LimitMismatchError(LockError, ValueError):
    """Two programs state different limits for how many may hold one lock at a time."""


class LockBusyError(LockError, RuntimeError):
    """An operator's request was refused because it concerns a holder that is alive."""


class LockPathError(LockError, OSError):
    """
    The lock cannot live at this path: the directory is missing or read-only, of another user, a symlink, full, ….

    :param path: the path that the trouble is with
    :param problem: what is wrong with it, as a clause
    :param remedy: what to do
    :param number: the ``errno`` behind it, if a system call said so
    """

    def __init__(self, path: str, problem: str, remedy: str, number: int | None = None) -> None:
        super().__init__(path, problem, remedy, number)
        self.errno = number
        self.filename = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.filename!r} {self.problem}; {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename, self.problem, self.remedy, self.errno)


_ELSEWHERE: Final = "keep the lock elsewhere with lock_dir= (or NFSRWLOCK_DIR)"

#: What a permanent failure of a system call means here. Everything else may pass and is tried again.
_PERMANENT: Final[dict[int, tuple[str, str]]] = {
    errno.EACCES: ("cannot be written: permission denied", f"ask for write permission, or {_ELSEWHERE}"),
    errno.EPERM: ("cannot be written: operation not permitted", f"ask for write permission, or {_ELSEWHERE}"),
    errno.EROFS: ("is on a read-only file system", _ELSEWHERE),
    errno.ENOSPC: ("is on a file system without free space", f"free some space or inodes, or {_ELSEWHERE}"),
    errno.EDQUOT: ("is over your disk quota", f"free some space, or {_ELSEWHERE}"),
    errno.ENAMETOOLONG: (
        "makes a lock name that is too long for this file system",
        f"use a shorter name, or {_ELSEWHERE}",
    ),
    errno.EMFILE: ("cannot be opened: this process has too many files open", "close some, or raise 'ulimit -n'"),
    errno.ENFILE: ("cannot be opened: this machine has too many files open", "close some"),
    errno.ENOTDIR: ("is not a directory, or lies below something that is none", "correct the path"),
    errno.ELOOP: ("is a symbolic link", "name the lock by the path that the link leads to"),
    errno.EMLINK: ("has too many subdirectories for this file system", "wait until holders leave, or use another path"),
    errno.EINVAL: ("is not a name this file system accepts", "use another name"),
    errno.ENOSYS: ("is on a file system that cannot make directories", _ELSEWHERE),
    errno.ENOTSUP: ("is on a file system that cannot make directories", _ELSEWHERE),
}


def path_error(error: OSError, path: str) -> LockPathError | None:
    """Return what ``error`` means for a lock at ``path``, or ``None`` where trying again may help."""
    found = _PERMANENT.get(error.errno or 0)
    return None if found is None else LockPathError(os.fsdecode(path), *found, error.errno)
