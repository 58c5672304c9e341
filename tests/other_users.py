"""Run a function as another user, in a forked child: for tests of who may do what. Needs root."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Users and a group that no system has names for.
ALICE, BOB, EVE = 64001, 64002, 64003
TEAM = 64100

needs_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as other users")]


class ChildFailed(AssertionError):
    """The function raised something that does not pickle; the message is its traceback."""


def as_user(uid: int, function: Callable[[], Any], *, groups: Sequence[int] = ()) -> Any:
    """
    Return what ``function`` returns, or raise what it raises, when a process of this user calls it.

    Everything it imports must have been imported before: another user may not be able to read the libraries.

    :param groups: of which the user is a member; the first is its primary group
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.setgroups(list(groups))
            os.setgid(groups[0] if groups else uid)
            os.setuid(uid)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_outcome(function))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            outcome = pipe.read()
    finally:
        os.waitpid(pid, 0)
    succeeded, value = pickle.loads(outcome)
    if not succeeded:
        raise value
    return value


def _outcome(function: Callable[[], Any]) -> bytes:
    try:
        outcome: tuple[bool, Any] = (True, function())
    except BaseException as error:
        outcome = (False, error)
    try:
        raw = pickle.dumps(outcome)
        pickle.loads(raw)
    except Exception:
        text = "".join(traceback.format_exception(outcome[1])) if not outcome[0] else repr(outcome[1])
        raw = pickle.dumps((False, ChildFailed(text)))
    return raw


@contextmanager
def directory_of(uid: int, *, gid: int | None = None, mode: int = 0o700) -> Iterator[Path]:
    """Give a new directory of this user, in a place that every user can reach."""
    # Not below pytest's own temporary directory, which only its owner may enter.
    top = Path(tempfile.mkdtemp(prefix="nfsrwlock-test-"))
    try:
        top.chmod(0o711)
        place = top / "shared"
        place.mkdir()
        os.chown(place, uid, uid if gid is None else gid)
        place.chmod(mode)
        yield place
    finally:
        shutil.rmtree(top, ignore_errors=True)
