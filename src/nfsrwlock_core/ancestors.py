"""
Whether to wait would be to wait for oneself: for a hold of an ancestor, which ends only after this process has.

A process that was started under a hold must not wait for what is in conflict with that hold. Two facts show whose hold
it is:

- its token stands in the environment (:data:`VARIABLE`): whoever starts processes under a hold may put it there;
- its holder is a keeper, as ``nfsrwlock run`` and ``nfsrwlock hold`` have them, and the process that it keeps the hold
  for is this one or one above it. A keeper watches that process by a pidfd, which the kernel shows.

What it does not find: an ancestor that holds a lock in one of its threads and waits for this process. Another thread of
it may hold the lock as well, and then the wait has an end.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Final

from .identity import is_same_kernel
from .names import Announcement

#: Tokens of the holds that this process was started under, separated by spaces.
VARIABLE: Final = "NFSRWLOCK_HELD"
#: The name of keepers in the process table.
KEEPER_NAME: Final = "nfsrwlock-keep"


def is_ancestors(peer: Announcement) -> bool:
    """Whether ``peer`` is a hold that this process was started under. Reads ``/proc``, and nothing of the lock."""
    if peer.token in os.environ.get(VARIABLE, "").split():
        return True
    who = peer.who
    if who is None or not is_same_kernel(who) or _read(f"/proc/{who.pid}/comm").strip() != KEEPER_NAME:
        return False
    return not _watched_by(who.pid).isdisjoint(_line())


def _line() -> list[int]:
    # This process and those above it.
    found: list[int] = []
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.append(pid)
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return found


def _watched_by(pid: int) -> set[int]:
    directory = f"/proc/{pid}/fdinfo"
    with suppress(OSError):
        texts = [_read(f"{directory}/{name}") for name in os.listdir(directory)]
        return {int(number) for text in texts for number in re.findall(r"^Pid:\s+(\d+)$", text, re.MULTILINE)}
    return set()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
