"""A directory as the file server has it now, which :mod:`os` does not tell: all entries or an error, and its mode."""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import suppress
from typing import Any, Final

#: getdents64(2), as each C library calls it for users (glibc, musl), and statx(2); ``None`` where it cannot be called.
_getdents: Any = None
_statx: Any = None
with suppress(ImportError, OSError):  # a Python without libffi, or a static one
    import ctypes

    if sys.platform == "linux":
        _libc = ctypes.CDLL(None, use_errno=True)
        _getdents = getattr(_libc, "getdirentries64", None) or getattr(_libc, "getdents", None)
        _statx = getattr(_libc, "statx", None)

#: Room for some hundred announcements in one call.
_ROOM: Final = 1 << 16
#: What a ``struct linux_dirent64`` says of its length, and where it has its name; getdents64(2).
_length: Final = struct.Struct("=16xH").unpack_from
_NAME_AT: Final = 19
#: Arguments of statx(2): no directory, ask the server, only the mode; and where its ``struct statx`` has that.
_NOWHERE, _FORCE_SYNC, _MODE = -100, 0x2000, 2
_MODE_AT: Final = 28


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
            at += _length(read, at)[0]
    if size < 0:
        number = ctypes.get_errno()
        if number == errno.ESTALE:  # another NFS client has removed it since it was opened
            number = errno.ENOENT
        raise OSError(number, os.strerror(number))
    return [os.fsdecode(name) for name in names if name not in (b".", b"..")]


def mode_of(path: str) -> int:
    """
    Return the mode of ``path`` (``st_mode``) as the file server has it now, where the kernel can be asked for that.

    :func:`os.stat` may repeat for a minute what an NFS client has seen before (nfs(5), ``acdirmax``).

    :raises OSError: as of :func:`os.stat`
    """
    if _statx is not None:
        found = ctypes.create_string_buffer(256)
        if _statx(_NOWHERE, os.fsencode(path), _FORCE_SYNC, _MODE, found) == 0:
            return int.from_bytes(found.raw[_MODE_AT : _MODE_AT + 2], sys.byteorder)
    return os.stat(path).st_mode
