"""
Looking at a name on NFS so that the answer is the file server's and not a cache's.

A client keeps names that it once found missing, and attributes, for up to a minute (nfs(5), ``acdirmax``). Opening a
directory asks the server for its attributes ("close-to-open", nfs(5)); if they have changed, names in it are looked up
anew: by Linux 7.2 on NFSv4 only once it is read, too. So: open the directory and look; if it is missing, read, too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

#: By what one file, or one state of a file, differs from another.
Signature = tuple[int, ...]


def signature_afresh(path: str | os.PathLike[str], depth: int = 1) -> Signature | None:
    """
    Return by what the file ``path`` leads to differs from others, as the server says; ``None`` if it is not there.

    :param depth: how many of the directories above it others may just have made; 0: a cache may answer
    :raises OSError: if it cannot be looked at
    """
    for is_missing in (False, True):  # on sshfs, to begin to read is to read all
        try:
            for parent in _above(os.fspath(path), depth):
                _look_into(parent, begin_to_read=is_missing)
            found = os.stat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # the last one: removed just now
                raise
        else:
            return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return None


def look_afresh(paths: Iterable[str | os.PathLike[str]]) -> None:
    """
    Let nobody on this host be shown an old answer of a cache for ``paths``, nor for the directories on the way to them.

    For who has a lock now, before a program that knows nothing of this one looks at what the lock guards. What is not
    there, or cannot be opened, is passed over.
    """
    opened = set()
    for path in paths:
        for parent in _above(os.path.abspath(path)):
            if parent not in opened:
                opened.add(parent)
                with suppress(OSError):
                    _look_into(parent)
        with suppress(OSError):
            kind = stat.S_IFMT(os.stat(path).st_mode)
            if kind == stat.S_IFDIR:
                _look_into(path)
            elif kind == stat.S_IFREG:  # a pipe's writer waits for an open
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _above(path: str, most: int | None = None) -> list[str]:
    # The directories above it, the topmost first.
    found: list[str] = []
    while len(found) != most and (parent := os.path.dirname(path) or os.curdir) != path:
        found.insert(0, parent)
        path = parent
    return found


def _look_into(directory: str | os.PathLike[str], *, begin_to_read: bool = True) -> None:
    with os.scandir(directory) as entries, suppress(OSError):  # removed just now; the look itself will tell
        if begin_to_read:
            next(entries, None)
