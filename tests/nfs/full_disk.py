"""A file server whose disk is full to the last block."""

from __future__ import annotations

from typing import Final

from nfs.lab import Node

#: Takes what is left of the file system, down to single blocks, and shows that nothing is.
_FILL: Final = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
size = 1 << 30
while size >= 1024:
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, size)
    except OSError:
        size >>= 1
os.fsync(fd)
try:
    os.mkdir(sys.argv[1] + ".directory")
except OSError as error:
    print(error.strerror)
"""
_FILLER: Final = "/mnt/disk/filler"


def fill(server: Node) -> None:
    """Take all blocks that are left, also those that something has freed since the last time."""
    assert "No space left" in server.check(["/usr/bin/python3", "-c", _FILL, _FILLER])


def empty(server: Node) -> None:
    """Give the blocks back."""
    server.check(["rm", "-rf", _FILLER, f"{_FILLER}.directory"])
