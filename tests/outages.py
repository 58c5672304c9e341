"""
A file server whose outages a test decides, for real processes: theirs, their heartbeat helpers', and the test's own.

Each directory with locks in it counts as a file system of its own. What its server does stands in a file in it, so
that every process sees it at once. The engine's only door to files, ``LockDirectory``, asks there before each call; a
process that is started with ``path=SHADOW`` gets the engine with that door.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

#: To be put first on a module search path.
SHADOW: Final = Path(__file__).parent / "shadow"

ANSWERS: Final = "answers"
#: Calls wait until the server answers again, and are carried out then.
HANGS: Final = "hangs"
#: Calls are carried out at once, but nobody hears of it until the server answers again.
HANGS_AFTERWARDS: Final = "hangs afterwards"
#: Calls fail, as on a soft mount.
FAILS: Final = "fails"

_STATE: Final = ".server"
_DOOR: Final = ("open", "mkdir", "rmdir", "listdir", "create", "rename", "unlink")


def let(directory: Path, state: str) -> None:
    """Decide what the server of ``directory`` does from now on."""
    new = directory / f"{_STATE}.new"
    new.write_text(state)
    new.rename(directory / _STATE)


def hanging_calls(directory: Path) -> int:
    """How many calls wait for the server of ``directory`` now."""
    return len(list(directory.glob(f"{_STATE}.waits.*")))


def install(replace: Callable[[object, str, Any], None] = setattr) -> None:
    """
    Let the engine of this process go through the door.

    :param replace: sets an attribute; ``monkeypatch.setattr`` undoes it afterwards
    """
    from nfsrwlock_core.system.directory import LockDirectory

    for name in _DOOR:
        replace(LockDirectory, name, _guarded(getattr(LockDirectory, name)))
    # A check that was made earlier is trusted, so the file system's number is set where it is found out.
    replace(LockDirectory, "_check", _one_file_system_per_directory(LockDirectory._check))


def _guarded(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        directory = Path(self.path).parent
        state = _state_of(directory)
        if state == FAILS:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
        if state == HANGS:
            _wait_for(directory)
        try:
            return call(self, *args, **kwargs)
        finally:
            if state == HANGS_AFTERWARDS:
                _wait_for(directory)

    return guarded


def _one_file_system_per_directory(check: Callable[[Any, Any], int]) -> Callable[[Any, Any], int]:
    @functools.wraps(check)
    def numbered(self: Any, found: Any) -> int:
        check(self, found)
        return os.stat(os.path.dirname(self.path)).st_ino

    return numbered


def _state_of(directory: Path) -> str:
    try:
        return (directory / _STATE).read_text()
    except FileNotFoundError:
        return ANSWERS


def _wait_for(directory: Path) -> None:
    sign = directory / f"{_STATE}.waits.{os.urandom(4).hex()}"
    sign.touch()
    while _state_of(directory) in (HANGS, HANGS_AFTERWARDS):
        time.sleep(0.01)
    sign.unlink(missing_ok=True)
