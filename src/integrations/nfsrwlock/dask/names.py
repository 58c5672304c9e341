"""
Which file a lock's name stands for.

A name with a slash, or a path object, is a path. Any other name is one as ``distributed.Lock`` knows it and stands for
nothing on disk; its lock lives below the directory that Dask's configuration calls ``nfsrwlock.root``.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final
from urllib.parse import quote

from .settings import configured, configured_directory

#: The core adds a suffix of its own; names in a directory have 255 bytes on the file systems that matter.
_NAME_MAX_BYTES: Final = 180


def path_of(name: Any) -> str:
    """Return the path that ``name`` stands for."""
    if isinstance(name, os.PathLike) or (isinstance(name, str | bytes) and os.sep in os.fsdecode(name)):
        return os.fsdecode(name)
    if name in ("", b""):
        raise ValueError("a lock's name must not be empty")
    value = _plain(name)
    # What is no string has a file name that no string has, for "." is quoted.
    file_name = encoded(value) if isinstance(value, str) else f"{type(value).__name__}.{encoded(repr(value))}"
    if configured("root") is None:
        raise ValueError(
            f"the lock's name {name!r} is no path, and there is no directory for such locks; write ./{name} if a file "
            "is meant, or let 'nfsrwlock.root' in Dask's configuration (DASK_NFSRWLOCK__ROOT) name a directory that "
            "all workers share"
        )
    return os.path.join(configured_directory("root"), file_name)


def _plain(name: Any) -> Any:
    # Whatever else there is may say something different of itself in each process. A list arrives at distributed's
    # scheduler as a tuple.
    if isinstance(name, tuple | list):
        return tuple(map(_plain, name))
    if name is None or type(name) in (str, bytes, bool, int, float):
        return name
    raise TypeError(
        "a lock's name must be a string, a path, a number, bytes, or a tuple or list of these, not "
        f"{type(name).__name__}"
    )


def encoded(name: str) -> str:
    """Return a file name that stands for ``name`` and for no other."""
    text = quote(name, safe="", errors="surrogateescape").replace(".", "%2E")
    if len(text) <= _NAME_MAX_BYTES:
        return text
    # No other name gives this one: "~" is not quoted, but what is this long is never taken as it is.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{text[: _NAME_MAX_BYTES - len(digest) - 1]}~{digest}"
