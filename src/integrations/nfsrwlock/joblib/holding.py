"""
Which locks of a store the calling thread or task holds, so that the store's own calls under a lock do not ask again.

A context variable, because coroutines that take turns in one thread must not see each other's holds.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

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


_holds: ContextVar[dict[str, Held]] = ContextVar("nfsrwlock_joblib_holds", default={})  # noqa: B039 - never changed

HoldToken = Token[dict[str, Held]]


def held(lock_file: str) -> Held | None:
    """Return the caller's hold on the lock on ``lock_file``."""
    return _holds.get().get(lock_file)


def enter(lock_file: str, hold: Held) -> HoldToken:
    """Note a hold; what is returned goes to :func:`leave`."""
    return _holds.set({**_holds.get(), lock_file: hold})


def leave(token: HoldToken) -> None:
    """Note that the hold has ended."""
    _holds.reset(token)


def mark(lock_file: str, tag: str) -> HoldToken:
    """Say what items that are stored under a hold that the caller has are marked with, until :func:`leave`."""
    return enter(lock_file, replace(_holds.get()[lock_file], tag=tag))


__all__: Final = ["CanCheck", "Held", "HoldToken", "Mode", "enter", "held", "leave", "mark"]
