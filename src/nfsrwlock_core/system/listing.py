"""A directory's entries, all of them or an error: :func:`os.listdir` cannot be had so."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Final

#: getdents64(2), as each C library calls it for users (glibc, musl); ``None`` where it cannot be called.
_getdents: Any = None
with suppress(ImportError, OSError):  # a Python without libffi, or a static one
    import ctypes

    if sys.platform == "linux":
        _libc = ctypes.CDLL(None, use_errno=True)
        _getdents = getattr(_libc, "getdirentries64", None) or getattr(_libc, "getdents", None)

#: Room for some hundred announcements in one call.
_ROOM: Final = 1 << 16
#: Where a ``struct linux_dirent64`` has its length, two bytes, and its name; getdents64(2).
_LENGTH_AT: Final = 16
_NAME_AT: Final = 19


def names_in(fd: int) -> list[str]:
    """
    Return the entries of a directory that was opened for reading and not read yet.

    The C library takes ENOENT for the end of a directory, as POSIX wants it of one that was removed (readdir(3)). But
    NFS-Ganesha answers so when an entry goes away while it lists: the listing would come out empty, or without its
    end. So the kernel is asked, where that can be done.

    :raises OSError: what the kernel said; ``FileNotFoundError`` if the directory was removed, or its listing broken off
    """
    if _getdents is None:
        return os.listdir(fd)
    names: list[bytes] = []
    buffer, base = ctypes.create_string_buffer(_ROOM), ctypes.c_longlong()  # glibc tells where it began; musl does not
    while (size := _getdents(fd, buffer, _ROOM, ctypes.byref(base))) > 0:
        read, at = ctypes.string_at(buffer, size), 0
        while at < size:
            names.append(read[at + _NAME_AT : read.index(b"\0", at + _NAME_AT)])
            at += int.from_bytes(read[at + _LENGTH_AT : at + _LENGTH_AT + 2], sys.byteorder)
    if size < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return [os.fsdecode(name) for name in names if name not in (b".", b"..")]
