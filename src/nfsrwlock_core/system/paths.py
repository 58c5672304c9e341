"""
Where a lock lives: the same path gives the same lock on every host.

Beside the data, as ``<path>.rwlock``; or, for data in directories that cannot be written, below a directory of locks,
under a name made from the path.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final

from nfsrwlock_core.errors import LockPathError

from .directory import SUFFIX

ENVIRONMENT_VARIABLE: Final = "NFSRWLOCK_DIR"
_READABLE_PART_CHARS: Final = 80

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def canonical(path: AnyPath) -> str:
    """
    Return ``path`` absolute, with its parent resolved and its last component as it is.

    The last component stays because the lock is named by it: a symbolic link has a lock of its own. The same rule as
    filelock's, so that equal spellings give one lock. Takes bytes, newlines and names that are no UTF-8.

    :raises LockPathError: if it is relative to a current directory that does not exist any more
    """
    parent, name = os.path.split(os.fsdecode(path).rstrip("/") or "/")
    if name in ("", ".", ".."):
        return _resolved(os.fsdecode(path))
    return os.path.join(_resolved(parent or os.curdir), name)


def _resolved(path: str) -> str:
    try:
        return os.path.realpath(path)
    except FileNotFoundError as error:  # by os.getcwd()
        raise LockPathError(
            path,
            "is relative to the current directory, which has been removed",
            "change to one that exists, or use an absolute path",
            error.errno,
        ) from None


def lock_home(lock_dir: AnyPath | None = None) -> str | None:
    """
    Return the directory that holds the locks; ``None`` if each lives beside its data.

    :param lock_dir: as given to a lock; ``None``: the environment's ``NFSRWLOCK_DIR``; empty: beside the data
    :raises ValueError: if it is no absolute path: it would be another directory, with other locks, in each current one
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE) if lock_dir is None else os.fsdecode(lock_dir)
    if not given:
        return None
    name = ENVIRONMENT_VARIABLE if lock_dir is None else "lock_dir"
    if "\0" in given:
        raise ValueError(f"{name} must be the path of a directory, got {given!r}")
    if not os.path.isabs(given):
        cause = "no shell has expanded '~'" if given.startswith("~") else "other current directories have other locks"
        raise ValueError(f"{name} must be an absolute path, got {given!r}: {cause}; write the path from '/' on")
    return given


def lock_path_of(path: AnyPath, lock_dir: AnyPath | None = None) -> str:
    """
    Return the directory in which the lock on ``path`` lives.

    :param lock_dir: a directory that holds the locks; ``None``: the environment's ``NFSRWLOCK_DIR``, and beside the
        data if that is not set
    :raises ValueError: if ``path`` is empty, holds a NUL, or is the root directory; if ``lock_dir`` is no absolute path
    :raises LockPathError: if ``path`` is relative to a current directory that does not exist any more, or is named like
        a lock's own directory
    """
    if not os.fspath(path) or "\0" in os.fsdecode(path):
        raise ValueError(f"the lock needs a path, got {path!r}")
    data = canonical(path)
    if data == "/":
        raise ValueError(f"the lock needs the path of a file or directory, got {os.fspath(path)!r}, the root of all")
    if data.endswith(SUFFIX):  # its lock would exclude nobody who locks the data
        raise LockPathError(
            os.fsdecode(path), "is named like a lock's own directory", f"name the data: {data.removesuffix(SUFFIX)!r}"
        )
    home = lock_home(lock_dir)
    if home is None:
        return data + SUFFIX
    # A digest keeps the name short and unique; the readable part is for people.
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:32]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(data))[:_READABLE_PART_CHARS]
    return os.path.join(_resolved(home), f"{readable}-{digest}{SUFFIX}")
