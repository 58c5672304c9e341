"""
The one directory that ``doctor`` works in: made beside the data, private, and removed at the end with its content.

Others may be allowed to write the directory around it, and so to put something else in its place. So it is opened once,
without following a symbolic link, and all work goes through that descriptor. Nothing else is ever removed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Self

from nfsrwlock.cli.keeper import home_of_lock
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.report import Check, Level
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.paths import lock_path_of

_PREFIX: Final = ".nfsrwlock-doctor-"
_NAME: Final = re.compile(re.escape(_PREFIX) + "[0-9a-f]{12}")
_REMOVAL_SECONDS: Final = 5.0


def home_of(path: str, lock_dir: str | None) -> str:
    """
    Return the directory in which locks on ``path``, or on files in the directory ``path``, live.

    :raises CliError: there is no such directory
    """
    if not path:
        raise CliError("an empty path cannot be examined: check the variable in PATH")
    file = os.path.join(path, "file") if os.path.isdir(path) else path
    return home_of_lock(lock_path_of(file, lock_dir), remedy="correct the path")


def scratch_path(home: str, token: str) -> str:
    """Return where the scratch directory with ``token`` is; ``CliError`` if that is no token."""
    if _NAME.fullmatch(name := f"{_PREFIX}{token}"):
        return os.path.join(home, name)
    raise CliError(f"{token!r} is no token; copy the command that 'nfsrwlock doctor --peer' prints on the first node")


class Scratch:
    """
    A scratch directory that exists.

    :param progress: called every now and then with what is being done in it, for whoever waits for it; raises to stop
    :raises OSError: it cannot be opened, is not private, or is another user's
    """

    def __init__(self, path: str, progress: Callable[[str], None] = lambda doing: None) -> None:
        self.path: Final = path
        self.progress: Final = progress
        self.token: Final = os.path.basename(path).removeprefix(_PREFIX)
        self.fd: Final = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        pinned = f"/proc/self/fd/{self.fd}/."  # with the dot, it is no link that O_NOFOLLOW would refuse
        #: A path that leads to this very directory, also in a child that inherits :attr:`fd`; needs Linux's ``/proc``.
        self.root: Final = pinned if os.path.isdir(pinned) else path
        self.files: Final = LockDirectory(self.root)
        try:
            self.files.open()  # for the lock's own check
        except BaseException:
            self.close()
            raise
        self.files.close()

    @classmethod
    def make(cls, home: str, progress: Callable[[str], None] = lambda doing: None) -> Self:
        """Make one with a token that nobody has had before."""
        path = scratch_path(home, secrets.token_hex(6))
        os.mkdir(path, 0o700)
        try:
            return cls(path, progress)
        except BaseException:
            os.rmdir(path)
            raise

    def remove(self) -> bool:
        """Remove it with what is in it, and nothing of what was put in its place; return whether it is gone."""
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while os.path.lexists(self.path):
            shutil.rmtree(".", ignore_errors=True, dir_fd=self.fd)  # all but the directory itself
            with suppress(OSError):  # another process may just be making its last names there
                os.rmdir(self.path)
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def left_behind(home: str) -> Iterator[Check]:
    """Name what other doctors have made in ``home``, and what this one could not remove."""
    with suppress(OSError):  # a directory that may be written, but not listed
        for name in sorted(filter(_NAME.fullmatch, os.listdir(home))):
            path = os.path.join(home, name)
            text = f"Of a doctor that works now, was killed, or could not remove it: {path}."
            yield Check("leftover", Level.NOTE, text, f"If none works here any more: rm -r {shlex.quote(path)}")


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write what :func:`read_json` reads: a file below a scratch directory."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def read_json(path: str) -> dict[str, Any]:
    """Return what another process had written and closed before it said so; ``CliError`` if it is not there to read."""
    with suppress(ValueError), open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
        return content
    raise CliError(
        "a file that another process had written and closed before it said so is not to be read here: this file system "
        "does not show what others write, and data under a lock may be missing or old",
        Exit.FAILED,
    )
