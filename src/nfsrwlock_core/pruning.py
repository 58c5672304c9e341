"""
Order below a directory: which locks are there, and the removal of those that nobody uses.

A lock directory is removed under the lock itself, so nobody loses a hold by it. The numbers of its grants begin anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from .compat import Timeout
from .errors import LockPathError
from .inspection import list_lock
from .lock import SoftReadWriteLock
from .names import generation_name
from .system.directory import SUFFIX, Share
from .system.paths import lock_path_of

_IN_USE = "it is in use"


def find_locks(directory: str | os.PathLike[str]) -> Iterator[str]:
    """
    Yield the paths below ``directory`` with a lock beside them, held or not.

    In a directory of locks they are the locks' names there. Pass them on with ``lock_dir=""``. Symbolic links are not
    followed; directories below ``directory`` that cannot be listed are left out.

    :raises LockPathError: if ``directory`` cannot be listed
    """
    top = os.path.realpath(directory)
    try:
        os.scandir(top).close()
    except OSError as error:
        why = f"cannot be searched for locks: {os.strerror(error.errno or 0).lower()}"
        raise LockPathError(top, why, "name a directory that you can list", error.errno) from None
    for here, names, _ in os.walk(top):
        locks = sorted(name for name in names if name.endswith(SUFFIX))
        names[:] = sorted({*names}.difference(locks))
        yield from (os.path.join(here, name.removesuffix(SUFFIX)) for name in locks)


def prune(
    path: str | os.PathLike[str], *, unused_s: float, lock_dir: str | os.PathLike[str] | None = None
) -> str | None:
    """
    Remove the lock directory of ``path``, if nobody uses it. The numbers of its grants begin anew, at 1.

    It takes the lock exclusively, without waiting, so who uses it keeps it, and who comes meanwhile gets it after that.

    :param unused_s: keep it if it has been used in the latest so many seconds, by the file server's time stamp
    :returns: why it was kept, ``None`` if it is gone
    :raises LockPathError: if it cannot be read or changed, or is no lock's directory
    :raises ValueError: if ``path`` or ``lock_dir`` is no path of a lock
    """
    lock_path = lock_path_of(path, lock_dir)
    try:
        found = os.lstat(lock_path)
        if list_lock(lock_path).announcements:
            return _IN_USE  # to ask for the lock would keep readers out for a moment
        if (age := time.time() - found.st_mtime) < unused_s:
            return f"it was used {age:.0f} s ago"
        share: Share = "group" if found.st_mode & 0o020 else "user"
        lock = SoftReadWriteLock(path, lock_dir=lock_dir, is_singleton=False, share=share, numbered=False)
        with lock.write_lock(0):
            listing = list_lock(lock_path)
            if len(listing.announcements) > 1:
                return _IN_USE  # who waits for us finds the number
            lock.check()
            for number in listing.generations:
                os.rmdir(f"{lock_path}/{generation_name(number)}")
        os.lstat(lock_path)
    except FileNotFoundError:
        return None
    except Timeout:
        pass
    return _IN_USE
