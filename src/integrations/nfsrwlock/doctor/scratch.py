"""
The one directory that ``doctor`` works in: made beside the data, private, and removed at the end with its content.

Others may be allowed to write the directory around it, and so to put something else in its place. So it is opened once,
without following a symbolic link, and all work goes through that descriptor; what is removed is compared with it first.
Nothing else is ever removed, except the scratch directory of a doctor that was killed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from typing import Any, Final, Self

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock_core.names import Identity, Mode, announcement_name, parse_listing
from nfsrwlock_core.protocol.heartbeat import fresh_token
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.process import current_identity

_PREFIX: Final = ".nfsrwlock-doctor-"
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOVAL_SECONDS: Final = 5.0


def is_token(text: str) -> bool:
    """Whether ``text`` can be the token of a scratch directory."""
    return re.fullmatch(r"[0-9a-f]{12}", text) is not None


def scratch_path(home: str, token: str) -> str:
    """Return where the scratch directory with ``token`` is."""
    return os.path.join(home, f"{_PREFIX}{token}")


def scratches_in(home: str) -> list[str]:
    """Return the scratch directories in ``home``: of doctors that work now, or were killed."""
    with suppress(OSError):  # a directory that may be written, but not listed
        tokens = (name.removeprefix(_PREFIX) for name in sorted(os.listdir(home)) if name.startswith(_PREFIX))
        return [scratch_path(home, token) for token in tokens if is_token(token)]
    return []


class Scratch:
    """A scratch directory that exists; ``OSError`` if it cannot be opened, or is a symbolic link."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.token: Final = os.path.basename(path).removeprefix(_PREFIX)
        self.fd: Final = os.open(path, _OPEN_FLAGS)
        pinned = f"/proc/self/fd/{self.fd}/."  # with the dot, it is no link that O_NOFOLLOW would refuse
        #: A path that leads to this very directory, also in a child that inherits :attr:`fd`; needs Linux's ``/proc``.
        self.root: Final = pinned if os.path.isdir(pinned) else path
        self.files: Final = LockDirectory(self.root)

    @classmethod
    def make(cls, home: str) -> Self:
        """Make one, signed with who made it, as an announcement is, for whoever finds it left behind."""
        path = scratch_path(home, secrets.token_hex(6))
        os.mkdir(path, 0o700)
        scratch = cls(path)
        try:
            scratch.files.open()  # private, and this user's: the lock's own check
            scratch.files.close()
            token, me, now = fresh_token(), current_identity(), time.time_ns() // 1_000_000
            with suppress(OSError):  # a full disk is found out by what follows
                scratch.files.mkdir(
                    announcement_name(Mode.READ, token=token, ticket=0, lease_ms=1, who=me, since_ms=now)
                )
        except BaseException:
            scratch.close()
            with suppress(OSError):
                os.rmdir(path)
            raise
        return scratch

    def maker(self) -> Identity | None:
        """Return who has signed it, ``None`` if that cannot be known."""
        if os.fstat(self.fd).st_uid != os.geteuid():
            return None
        return next((one.who for one in parse_listing(os.listdir(self.fd)).announcements.values()), None)

    def remove(self) -> bool:
        """Remove it with what is in it; return whether it is gone."""
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while True:
            with suppress(OSError):  # another process may just be making its last names there
                self._remove_once()
            if not os.path.lexists(self.path) or time.monotonic() > deadline:
                return not os.path.lexists(self.path)
            time.sleep(0.1)

    def _remove_once(self) -> None:
        fd = os.open(self.path, _OPEN_FLAGS)  # afresh: a listing through the older descriptor may be old
        try:
            if not os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
                return
            for name in os.listdir(fd):
                try:
                    os.unlink(name, dir_fd=fd)
                except (IsADirectoryError, PermissionError):  # by Linux, and by POSIX
                    shutil.rmtree(name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(self.path)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def write(path: str, content: bytes) -> None:
    """Write a file below a scratch directory, and close it."""
    with open(path, "wb", opener=_without_links) as file:
        file.write(content)


def read(path: str) -> bytes:
    """Open a file below a scratch directory, read it, close it."""
    with open(path, "rb", opener=_without_links) as file:
        return file.read()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write what :func:`read_json` reads."""
    write(path, json.dumps(content).encode())


def read_json(path: str) -> dict[str, Any]:
    """Return what another process had written and closed before it said so; ``CliError`` if it is not there to read."""
    with suppress(ValueError):
        content = json.loads(read(path))
        if isinstance(content, dict):
            return content
    raise CliError(
        "a file that another process had written and closed before it said so is not to be read here: this file system "
        "does not show what others write, and data under a lock may be missing or old",
        Exit.FAILED,
    )
