"""``distributed.Semaphore``'s contract on a file: a lock that several may hold at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from nfsrwlock_core import SoftSemaphore

from .lock import Lock
from .settings import Options, Time


class Semaphore(Lock):
    """
    A semaphore in the place of ``distributed.Semaphore``: the same methods, but it needs no scheduler.

    At most ``max_leases`` are held at a time, by whatever tasks, clusters, hosts and programs: a lease is a permit of
    :class:`nfsrwlock.SoftSemaphore` on the same path, and ``nfsrwlock run --permits`` takes one, too. Each acquire
    takes one more. What an object holds that nobody can reach any more is given back.

    :param max_leases: how many may be held at a time; all who use the name must state the same

    An acquire raises :class:`~nfsrwlock.LimitMismatchError` if somebody who came first states another number. The other
    parameters, without ``mode``, and errors are those of :class:`Lock`.
    """

    def __init__(
        self,
        max_leases: int = 1,
        name: Any = None,
        scheduler_rpc: Any = None,
        loop: Any = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(name, scheduler_rpc, loop, mode="read", **options)  # type: ignore[misc]
        SoftSemaphore(self.path, max_leases, lock_dir=self._settings.lock_dir)  # raises what is wrong with the number
        self._settings = replace(self._settings, at_most=max_leases)

    @property
    def max_leases(self) -> int:
        """How many may be held at a time."""
        return self._settings.at_most

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.max_leases}>"

    def acquire(self, timeout: Time | None = None) -> Any:  # type: ignore[override]
        """
        Take a lease. On Dask's event loop, await the result.

        Parameter, result and errors are those of ``Lock.acquire``.
        """
        return super().acquire(timeout=timeout)

    def _count(self) -> int:
        return sum(peer.at_most > 0 for peer in self._holders())

    def _is_locked(self) -> bool:
        return super()._is_locked() or self._count() >= self.max_leases
