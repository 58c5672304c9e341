"""
What a process holds and waits for, written down so that somebody can look after it when it was killed.

Only a process whose death the kernel confirms is evicted: it has its journal locked (flock(2)) as long as it lives, and
the core's :func:`nfsrwlock.break_lock` refuses whatever is alive.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from nfsrwlock_core import LockError, break_lock, inspect

logger: Final = logging.getLogger("nfsrwlock.dask")

_LOOK_S: Final = 0.05


class Entry(NamedTuple):
    """A lock that a process holds or waits for."""

    is_held: bool
    mode: str
    path: str
    lock_dir: str


def open_journal(path: str) -> int | None:
    """Return the journal of this process, to be written; ``None`` where it cannot be: locks are taken all the same."""
    try:
        journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return journal
    except OSError as error:
        logger.warning("cannot write %r, so that the locks of this process end by their leases: %s", path, error)
        return None


def write_journal(journal: int, entries: Iterable[Entry]) -> None:
    """Replace what a journal says."""
    # What is left of a longer text comes after the end of the line.
    with suppress(OSError):
        os.pwrite(journal, json.dumps([os.getpid(), *entries]).encode() + b"\n", 0)


def evict_dead(path: str, patience: float) -> list[Entry]:
    """
    Evict the process that wrote the journal at ``path`` as soon as the kernel says that it is dead; never before.

    What that process held may have been released meanwhile by its heartbeat process, or been evicted by who waits for
    it: that counts as well. Afterwards the journal is removed.

    :param patience: seconds after which a process that lives is left alone
    :returns: the locks that it held when it died; nothing if somebody else has removed the journal
    """
    deadline = time.monotonic() + patience
    held: set[Entry] = set()
    while (left := read_journal(path)) is not None:
        is_over = time.monotonic() >= deadline
        pid, is_alive, entries = left
        if not is_alive:
            # A process that is killed closes its files, the journal too, a moment before it counts as dead.
            claims = {entry for entry in entries if not _evict(entry, pid, held)}
            if not claims or is_over:
                return list(held - claims) if remove_journal(path) else []
        elif is_over:
            break
        time.sleep(_LOOK_S)
    return []


def read_journal(path: str) -> tuple[int, bool, set[Entry]] | None:
    """Return the pid of who wrote a journal, whether it lives, and what it says; ``None``: there is no whole one."""
    is_alive = False
    try:
        with open(path, encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                is_alive = True
            pid, *entries = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return pid, is_alive, {Entry(*entry) for entry in entries}


def _evict(entry: Entry, pid: int, held: set[Entry]) -> bool:
    # Returns whether the process has no claim on the lock any more, and notes in `held` that it had it.
    if entry.is_held:
        held.add(entry)
    try:
        state = inspect(entry.path, lock_dir=entry.lock_dir)
        for peer in (*state.holders, *state.waiters):
            if peer.pid == pid and peer.same_kernel:
                if peer in state.holders:
                    held.add(entry)  # it may have been killed before it could write that down
                break_lock(entry.path, token=peer.token, lock_dir=entry.lock_dir)
    except (LockError, OSError) as error:
        logger.info("the lock on %r cannot be freed yet: %s", entry.path, error)
        return False
    return True


def remove_journal(path: str) -> bool:
    """Remove a journal; return whether it was there."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
