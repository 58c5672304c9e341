"""
Which file a lock's name stands for.

A name with a slash, or a path object, is a path. Any other name is one as ``distributed.Lock`` knows it and stands for
nothing on disk; its lock lives below the directory that Dask's configuration calls ``nfsrwlock.root``.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from typing import Final
from urllib.parse import quote

from .settings import configured, directory_of

#: The core adds a suffix of its own; names in a directory have 255 bytes on the file systems that matter.
_NAME_MAX_BYTES: Final = 180


def fresh_name() -> str:
    """Return a name that no other lock has, as ``distributed.Lock`` makes one up."""
    return f"lock-{uuid.uuid4().hex}"


def path_of(name: str | os.PathLike[str]) -> str:
    """
    Return the path that ``name`` stands for.

    :raises TypeError: if it is neither a string nor a path
    :raises ValueError: if it is empty, or no path while ``nfsrwlock.root`` names no directory
    """
    if isinstance(name, os.PathLike):
        return os.fsdecode(name)
    if not isinstance(name, str):
        raise TypeError(f"a lock's name must be a string or a path, not {type(name).__name__}")
    if not name:
        raise ValueError("a lock's name must not be empty")
    if os.sep in name:
        return name
    root = configured("root", None)
    if root is None:
        raise ValueError(
            f"the lock's name {name!r} is no path, and there is no directory for such locks; write ./{name} if a file "
            "is meant, or let 'nfsrwlock.root' in Dask's configuration (DASK_NFSRWLOCK__ROOT) name a directory that "
            "all workers share"
        )
    return os.path.join(directory_of("root", root), encoded(name))


def encoded(name: str) -> str:
    """Return a file name that stands for ``name`` and for no other."""
    text = quote(name, safe="", errors="surrogateescape").replace(".", "%2E")
    if len(text) <= _NAME_MAX_BYTES:
        return text
    # No other name gives this one: "~" is not quoted, but what is this long is never taken as it is.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{text[: _NAME_MAX_BYTES - len(digest) - 1]}~{digest}"
