"""
Which locks of a store the calling thread or task holds, so that the store's own calls under a lock do not ask again.

A context variable, because coroutines that take turns in one thread must not see each other's holds.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from nfsrwlock_core import HoldStatus, SoftReadWriteLock

Mode = Literal["read", "write"]


class CanCheck(Protocol):
    """What both classes of locks can do."""

    def check(self) -> None:
        """Raise if the hold does not stand."""


@dataclass(frozen=True, slots=True)
class Held:
    """
    A hold on one lock of a store.

    :param mode: shared or exclusive
    :param lock: by which it is held
    :param tag: what items that are stored under it are marked with: which code they come from
    """

    mode: Mode
    lock: CanCheck
    tag: str | None = None
    pid: int = field(default_factory=os.getpid)


_holds: ContextVar[dict[str, Held]] = ContextVar("nfsrwlock_joblib_holds", default={})  # noqa: B039 - never changed

Holds = dict[str, Held]


def held(lock_file: str) -> Held | None:
    """Return the caller's hold on the lock on ``lock_file``."""
    hold = _holds.get().get(lock_file)
    if hold is None or not isinstance(hold.lock, SoftReadWriteLock):
        return hold
    # What a signal's exception has kept from being noted: a lock that this very process has released is not held.
    return None if hold.pid == os.getpid() and hold.lock.status is HoldStatus.FREE else hold


def holds() -> Holds:
    """Return what the caller holds now, for :func:`restore`."""
    return _holds.get()


def enter(lock_file: str, hold: Held) -> None:
    """Note a hold."""
    _holds.set({**_holds.get(), lock_file: hold})


def restore(before: Holds) -> None:
    """Note that the holds since ``before`` have ended; also where a signal's exception came upon :func:`enter`."""
    _holds.set(before)


def mark(lock_file: str, tag: str) -> None:
    """Say what items that are stored under a hold that the caller has are marked with, until :func:`restore`."""
    enter(lock_file, replace(_holds.get()[lock_file], tag=tag))


__all__: Final = ["CanCheck", "Held", "Holds", "Mode", "enter", "held", "holds", "mark", "restore"]
