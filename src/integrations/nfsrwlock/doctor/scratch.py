"""
The directories that ``doctor`` works in, and the file-system calls it tries there.

They are made the way the locks make theirs: changes through a descriptor of the directory, listings by a fresh open of
its path. Everything is inside one scratch directory, which is removed at the end with all that is in it, and nothing
else ever is, but for the scratch directory of a process that was killed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from nfsrwlock_core.directory import create_beat
from nfsrwlock_core.identity import current_identity
from nfsrwlock_core.names import Identity, Mode, announcement_name, parse_listing
from nfsrwlock_core.protocol import fresh_token

#: What a call that succeeded is noted as; others by the name of their error, such as ``EEXIST``.
DONE: Final = "done"
_PREFIX: Final = ".nfsrwlock-doctor-"
_SCRATCH: Final = re.compile(re.escape(_PREFIX) + "[0-9a-f]{12}")
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", 0)
_REMOVAL_SECONDS: Final = 5.0


def scratch_path(home: str, token: str) -> str:
    """Return where the scratch directory of a meeting is."""
    return os.path.join(home, f"{_PREFIX}{token}")


def remove_scratch(path: str) -> bool:
    """Remove a scratch directory with what is in it; return whether it is gone."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while os.path.basename(path).startswith(_PREFIX):
        with suppress(OSError):  # another process may just be making its last names there
            shutil.rmtree(path)
        try:
            os.lstat(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return False


def sign(scratch: str) -> None:
    """Write into a scratch directory who has made it, as an announcement does, for whoever finds it left behind."""
    name = announcement_name(
        Mode.READ,
        token=fresh_token(),
        ticket=0,
        lease_ms=1,
        who=current_identity(),
        since_ms=time.time_ns() // 1_000_000,
    )
    with suppress(OSError):  # a full disk is found out by what follows
        os.mkdir(os.path.join(scratch, name), 0o700)


def scratches_of_others(home: str) -> list[str]:
    """Return the scratch directories that there are in ``home``: of those who work now, or were killed."""
    with suppress(OSError):
        return [os.path.join(home, name) for name in sorted(os.listdir(home)) if _SCRATCH.fullmatch(name)]
    return []


def maker_of(scratch: str) -> Identity | None:
    """Return who has signed a scratch directory of this user's, ``None`` if that cannot be known."""
    with suppress(OSError):
        found = os.lstat(scratch)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            signatures = parse_listing(os.listdir(scratch)).announcements.values()
            return next((one.who for one in signatures), None)
    return None


def outcome(call: Callable[..., None], *names: str) -> str:
    """Return how a call ended, see :data:`DONE`."""
    try:
        call(*names)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return DONE


class Directory:
    """
    A directory that exists, and the calls that the protocol makes in it. Names may lead one level deeper.

    :param path: of the directory
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._fd = os.open(path, _OPEN_FLAGS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def mkdir(self, name: str) -> None:
        """Make a directory."""
        os.mkdir(name, 0o700, dir_fd=self._fd)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=self._fd)

    def create(self, name: str) -> None:
        """Make a heartbeat that does not exist."""
        create_beat(name, b"{}", dir_fd=self._fd)

    def rename(self, old: str, new: str) -> None:
        """Rename a heartbeat."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def unlink(self, name: str) -> None:
        """Remove a heartbeat."""
        os.unlink(name, dir_fd=self._fd)

    def names(self, below: str = "") -> set[str]:
        """List it, or a directory in it, opened afresh."""
        return set(os.listdir(os.path.join(self.path, below) if below else self.path))

    def names_after_a_change(self, mark: str) -> set[str]:
        """List it after a change of one's own, so that no cache of this client's can be in the way."""
        with suppress(FileExistsError):
            self.mkdir(mark)
        found = self.names()
        with suppress(FileNotFoundError):
            self.rmdir(mark)
        return found - {mark}

    def read(self, name: str) -> bytes:
        """Open a file, read it, close it."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            content = b""
            while piece := os.read(fd, 1 << 20):
                content += piece
            return content
        finally:
            os.close(fd)

    def write(self, name: str, content: bytes) -> None:
        """Open a file (made if it is missing), put ``content`` at its beginning, close it."""
        fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            while content:
                content = content[os.write(fd, content) :]
        finally:
            os.close(fd)
