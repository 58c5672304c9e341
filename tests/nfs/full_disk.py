"""A disk that is full to the last block."""

from __future__ import annotations

from typing import Final

from nfs.lab import Node

#: Takes what is left of the file system, down to single blocks, and shows whether nothing is.
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
_DISK: Final = "/mnt/disk"


def fill(machine: Node, disk: str = _DISK) -> bool:
    """
    Take all blocks that are left, also those that something has freed since the last time.

    :return: whether no directory can be made any more: some file systems keep room for that
    """
    return "No space left" in machine.check(["/usr/bin/python3", "-c", _FILL, f"{disk}/filler"])


def empty(machine: Node, disk: str = _DISK) -> None:
    """Give the blocks back."""
    machine.check(["rm", "-rf", f"{disk}/filler", f"{disk}/filler.directory"])
