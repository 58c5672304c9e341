"""
Order below a directory: which locks are there, and the removal of those that nobody uses.

A lock directory is removed under the lock itself, so nobody loses a hold by it. The numbers of its grants begin anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from .errors import LockPathError
from .inspection import inspect
from .lock import SoftReadWriteLock
from .names import generation_name, parse_listing
from .system.directory import SUFFIX, Share, opened
from .system.listing import names_in
from .system.paths import lock_path_of

_IN_USE = "it is in use"


def find_locks(directory: str | os.PathLike[str]) -> Iterator[str]:
    """
    Yield the paths below ``directory`` with a lock beside them, held or not.

    In a directory of locks they are the locks' names there. Pass them on with ``lock_dir=""``. Symbolic links are not
    followed; directories below ``directory`` that cannot be listed are left out, and ``..rwlock``, which has no name.

    :raises LockPathError: if ``directory`` cannot be listed
    """
    top = os.fspath(directory)
    try:
        top = top and os.path.realpath(top)  # nothing is no other name of the working directory
        os.scandir(top).close()
    except OSError as error:
        why = f"cannot be searched for locks: {os.strerror(error.errno or 0).lower()}"
        raise LockPathError(top, why, "name a directory that you can list", error.errno) from None
    for here, names, _ in os.walk(top):
        locks = sorted(name for name in names if name.endswith(SUFFIX) and name.strip(".") != SUFFIX.strip("."))
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
    from .compat import Timeout  # noqa: PLC0415 - filelock is as long in coming as all of the engine

    lock_path = lock_path_of(path, lock_dir)
    try:
        found, parent = os.lstat(lock_path), os.stat(os.path.dirname(lock_path))
        state = inspect(path, lock_dir=lock_dir)
        if any(peer.alive is not False for peer in (*state.holders, *state.waiters)):
            return _IN_USE  # to ask for the lock would keep readers out for a moment
        # A courtesy to people, like all that time stamps tell: whether anybody uses it the lock itself decides, below.
        if (age := max(0.0, time.time() - found.st_mtime)) < unused_s:
            return f"it was used {age:.0f} s ago"
        is_ours = os.geteuid() in (0, found.st_uid, parent.st_uid) or not parent.st_mode & 0o1000
        if not (is_ours and os.access(os.path.dirname(lock_path), os.W_OK)):
            return "you may not remove it from the directory around it"
        share: Share = "group" if found.st_mode & 0o020 else "user"
        lock = SoftReadWriteLock(path, lock_dir=lock_dir, is_singleton=False, share=share, numbered=False)
        with lock.write_lock(0), opened(lock_path) as fd:
            listing = parse_listing(names := names_in(fd))
            if len(listing.announcements) > 1:
                return _IN_USE  # who waits for us finds the number
            if len(names) > sum(map(len, (listing.announcements, listing.generations, listing.notes))):
                return "something else is in it"
            lock.check()
            for number in listing.generations:  # by the descriptor: another may get its place while we stand still
                os.rmdir(generation_name(number), dir_fd=fd)
    except (FileNotFoundError, Timeout):
        pass
    return _IN_USE if os.path.lexists(lock_path) else None
