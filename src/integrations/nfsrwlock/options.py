"""What the ready-made forms of the lock pass on to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypedDict


class LeaseOptions(TypedDict, total=False):
    """
    Settings of :class:`nfsrwlock.SoftReadWriteLock` that say what a lock is, each with its meaning there.

    Everybody who uses one path must use the same ``share`` and ``lock_dir``.
    """

    heartbeat_interval: float
    stale_threshold: float | None
    heartbeat: Literal["thread", "process"]
    share: Literal["user", "group"]
    lock_dir: str | os.PathLike[str] | None


class LockOptions(LeaseOptions, total=False):
    """These, and how it is waited for."""

    timeout: float
    poll_interval: float


LOCK_OPTIONS: Final = sorted(LockOptions.__annotations__)


def refuse_unknown(options: Iterable[str], caller: str, known: Sequence[str] = LOCK_OPTIONS) -> None:
    """
    Make sure that ``options`` are names of settings.

    :param known: the names that there are, in order
    :raises TypeError: if one is not, with those that are
    """
    for name in options:
        if name not in known:
            raise TypeError(
                f"{caller} got an unexpected keyword argument {name!r}; lock settings are: {', '.join(known)}"
            )
