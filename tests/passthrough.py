"""
A file system in user space that shows a local directory: ``python passthrough.py DIRECTORY MOUNTPOINT [SECONDS]``.

Mounted twice, it has two clients of one server. With SECONDS, each keeps a listing for so long: what it makes and
removes itself it enters there, but what the other one does it sees late, even after a change of its own. That is what
demand (b) of the protocol forbids. All else is sound, also listings of other directories than ``list-*``: by these the
players of a race meet. It ends when it is unmounted. Needs root. Linux's ``fuse.h`` describes the messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_ROOT: Final = 1
_MAX_WRITE: Final = 1 << 16
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE = 1, 2, 4, 8


@dataclass
class Node:
    """A file that the kernel knows; its descriptor keeps the number of its inode from being given to another one."""

    fd: int
    lookups: int = 0


@dataclass
class Kept:
    """A listing, as it was at a time."""

    names: set[bytes]
    since: float


@dataclass
class Passthrough:
    """One client. A node's number is that of its inode, but for the root's."""

    root: int
    seconds: float
    nodes: dict[int, Node] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    listings: dict[int, list[bytes]] = field(default_factory=dict)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """Return what the kernel is answered, or ``None`` for nothing; an OSError is an answer, too."""
        if opcode == 2:
            self._forget(node, *struct.unpack("<Q", body[:8]))
            return None
        if opcode == 42:
            for number in range(struct.unpack("<I", body[:4])[0]):
                self._forget(*struct.unpack_from("<QQ", body, 8 + 16 * number))
            return None
        method = _METHODS.get(opcode)
        if method is None:
            raise OSError(errno.ENOSYS, "")
        return method(self, node, body)

    def _fd(self, node: int) -> int:
        return self.root if node == _ROOT else self.nodes[node].fd

    def _forget(self, node: int, lookups: int) -> None:
        if (known := self.nodes.get(node)) is not None:
            known.lookups -= lookups
            if known.lookups <= 0:
                os.close(self.nodes.pop(node).fd)

    def _entered(self, node: int, name: bytes, there: bool = True) -> None:
        if (kept := self.kept.get(node)) is not None:
            (kept.names.add if there else kept.names.discard)(name)

    def _entry(self, parent: int, name: bytes) -> bytes:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fd(parent))
        found = os.stat(fd)
        if found.st_ino in self.nodes:
            os.close(fd)
        node = self.nodes.setdefault(found.st_ino, Node(fd))
        node.lookups += 1
        return struct.pack("<QQQQII", found.st_ino, 0, 0, 0, 0, 0) + _attributes(found)

    def lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(node, body[:-1])

    def getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + _attributes(os.stat(self._fd(node)))

    def setattr(self, node: int, body: bytes) -> bytes:
        valid, size, mode, uid, gid = struct.unpack_from("<I12xQ8x8x8x8x4x4x4xI4xII", body)
        path = f"/proc/self/fd/{self._fd(node)}"
        if valid & _SET_MODE:
            os.chmod(path, mode & 0o7777)
        if valid & (_SET_UID | _SET_GID):
            os.chown(path, uid if valid & _SET_UID else -1, gid if valid & _SET_GID else -1)
        if valid & _SET_SIZE:
            os.truncate(path, size)
        return self.getattr(node, body)

    def mkdir(self, node: int, body: bytes) -> bytes:
        name = body[8:-1]
        os.mkdir(name, struct.unpack_from("<I", body)[0], dir_fd=self._fd(node))
        self._entered(node, name)
        return self._entry(node, name)

    def unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(body[:-1], dir_fd=self._fd(node))
        self._entered(node, body[:-1], there=False)
        return b""

    def rmdir(self, node: int, body: bytes) -> bytes:
        os.rmdir(body[:-1], dir_fd=self._fd(node))
        self._entered(node, body[:-1], there=False)
        return b""

    def rename(self, node: int, body: bytes) -> bytes:
        (to,) = struct.unpack_from("<Q", body)
        old, new, _ = body[8:].split(b"\0")
        os.rename(old, new, src_dir_fd=self._fd(node), dst_dir_fd=self._fd(to))
        self._entered(node, old, there=False)
        self._entered(to, new)
        return b""

    def open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        return struct.pack("<QII", os.open(f"/proc/self/fd/{self._fd(node)}", flags & ~os.O_NOFOLLOW), 0, 0)

    def create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        name = body[16:-1]
        fd = os.open(name, flags | os.O_CREAT, mode, dir_fd=self._fd(node))
        self._entered(node, name)
        return self._entry(node, name) + struct.pack("<QII", fd, 0, 0)

    def read(self, node: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(fd, size, offset)

    def write(self, node: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(fd, body[40 : 40 + size], offset), 0)

    def release(self, node: int, body: bytes) -> bytes:
        os.close(*struct.unpack_from("<Q", body))
        return b""

    def nothing(self, node: int, body: bytes) -> bytes:
        return b""

    def opendir(self, node: int, body: bytes) -> bytes:
        now = time.monotonic()
        kept = self.kept.get(node)
        if kept is None or now - kept.since >= self.seconds:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd(node))
            kept = Kept({os.fsencode(name) for name in os.listdir(fd)}, now)
            if "/list-" in os.readlink(f"/proc/self/fd/{fd}"):
                self.kept[node] = kept
            os.close(fd)
        handle = max(self.listings, default=0) + 1
        self.listings[handle] = sorted(kept.names)
        return struct.pack("<QII", handle, 0, 0)

    def readdir(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for number, name in enumerate(self.listings[handle][offset:], offset + 1):
            entry = struct.pack("<QQII", number, number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def releasedir(self, node: int, body: bytes) -> bytes:
        del self.listings[struct.unpack_from("<Q", body)[0]]
        return b""

    def statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self._fd(node))
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<QQQQQIII28x", *counts, found.f_bsize, found.f_namemax, found.f_frsize)

    def init(self, node: int, body: bytes) -> bytes:
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, _MAX_WRITE, 1, 0, 0, 0)


#: By the number of the message.
_METHODS: Final[dict[int, Callable[[Passthrough, int, bytes], bytes]]] = {
    1: Passthrough.lookup,
    3: Passthrough.getattr,
    4: Passthrough.setattr,
    9: Passthrough.mkdir,
    10: Passthrough.unlink,
    11: Passthrough.rmdir,
    12: Passthrough.rename,
    14: Passthrough.open,
    15: Passthrough.read,
    16: Passthrough.write,
    17: Passthrough.statfs,
    18: Passthrough.release,
    20: Passthrough.nothing,  # fsync
    25: Passthrough.nothing,  # flush
    26: Passthrough.init,
    27: Passthrough.opendir,
    28: Passthrough.readdir,
    29: Passthrough.releasedir,
    30: Passthrough.nothing,  # fsyncdir
    35: Passthrough.create,
}


def _attributes(found: os.stat_result) -> bytes:
    times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
    return struct.pack(
        "<QQQQQQIIIIIIIIII",
        *(found.st_ino, found.st_size, found.st_blocks, *(when // 10**9 for when in times)),
        *(when % 10**9 for when in times),
        *(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, found.st_blksize, 0),
    )


def serve(directory: str, mountpoint: str, seconds: float) -> None:
    """Mount ``directory``, and answer the kernel until it is unmounted."""
    os.umask(0)  # the kernel has applied the caller's
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY)  # before it may be hidden by what is mounted over it
    channel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={channel},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"passthrough", os.fsencode(mountpoint), b"fuse.passthrough", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mountpoint)
    print("mounted", flush=True)
    client = Passthrough(root, seconds)
    while True:
        try:
            message = os.read(channel, _MAX_WRITE + 8192)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # it was interrupted, or the message was withdrawn
                continue
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node = struct.unpack_from("<IIQQ", message)
        failure, answer = 0, None
        try:
            answer = client.answer(opcode, node, message[40:])
        except OSError as error:
            failure, answer = -(error.errno or errno.EIO), b""
        if answer is not None and opcode != 36:  # nothing is interrupted here
            with suppress(FileNotFoundError):  # who asked has gone
                os.write(channel, struct.pack("<IiQ", 16 + len(answer), failure, unique) + answer)


@contextmanager
def passthrough(directory: Path, mountpoint: Path, seconds: float = 0.0, unseen: bool = False) -> Iterator[int]:
    """
    Have ``directory`` mounted at ``mountpoint`` for a while; skip the test where that is not possible.

    :param unseen: mounted in a mount namespace of its own; the pid that is given enters it
    """
    import pytest  # the server does without

    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse, to mount a file system in user space")
    mountpoint.mkdir(exist_ok=unseen)
    command = [sys.executable, __file__, str(directory), str(mountpoint), str(seconds)]
    server = subprocess.Popen(
        [*(["unshare", "--mount"] if unseen else []), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        if not server.stdout.readline():
            pytest.skip(f"cannot mount here: {server.communicate()[1].strip()}")
        yield server.pid
    finally:
        if not unseen:
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)
        server.kill()
        server.communicate()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
