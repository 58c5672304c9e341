"""
``distributed.Lock``'s methods, once for callers in threads, who block, and for coroutines on Dask's loop, who await.

What a method does is a coroutine. For a caller in a thread nothing in it suspends, so it runs to its end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from nfsrwlock.driving import at_once

from .context import Caller, caller_here, is_on_dask_loop, task_caller, thread_caller
from .settings import Time, limit

Steps = Coroutine[Any, Any, Any]


class LockMethods:
    """The methods of ``distributed.Lock``, over :meth:`_acquire` and :meth:`_release`."""

    async def _acquire(self, caller: Caller, blocking: bool, seconds: float | None) -> bool:
        # ``seconds``: the limit; -1: none; ``None``: the lock's own, and whoever calls does not look at the result.
        raise NotImplementedError

    async def _release(self, caller: Caller, *, is_unwinding: bool = False) -> bool:
        # ``is_unwinding``: an exception is on its way already, which says why the work is void.
        raise NotImplementedError

    def _is_async(self) -> bool:
        return is_on_dask_loop()

    def _run(self, steps: Callable[[Caller], Steps], name: str, *, is_try: bool = False) -> Any:
        if not self._is_async():
            return at_once(steps(thread_caller()))
        # Whoever calls here asks for the lock, not the task that asyncio.wait_for and others make of the call.
        caller = caller_here()
        return Awaitable(
            lambda: steps(caller if caller.is_coroutine else task_caller()), f"{name}() of {self!r}", is_try=is_try
        )

    def acquire(self, blocking: bool = True, timeout: Time | None = None) -> Any:
        """
        Take the lock. On Dask's event loop, await the result.

        :param blocking: ``False``: do not wait
        :param timeout: how long to wait: seconds, ``"200ms"`` or a timedelta; ``None``: as the lock says
        :returns: ``True``; ``False`` if it could not be had and ``blocking=False`` or ``timeout=`` allowed for that
        :raises ValueError: if a time-out is given for a call that is not to wait
        :raises Timeout: if the lock's own time-out is over
        :raises distributed.Reschedule: in a task, with ``on_contention="reschedule"``
        :raises LockPathError: if the lock cannot live at its path
        :raises DeadlockError: if the caller holds the path shared and asks for it exclusively without a limit
        :raises TypeError: in a coroutine, if a member of a combination is a thread's lock
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify a timeout for a non-blocking call")
        seconds = None if timeout is None else limit("timeout", timeout)
        return self._run(lambda caller: self._acquire(caller, blocking, seconds), "acquire", is_try=not blocking)

    def release(self) -> Any:
        """
        Give the lock back: the caller's own hold if it has one, else the oldest. On Dask's loop, await the result.

        :returns: ``True``, also in a forked child, which ends nothing; ``False`` if a member of a combination says so
        :raises LockNotHeldError: if the lock is not held through this object
        :raises LockLostError: if the hold was lost before, so that what was done under it may overlap with others
        """
        return self._run(self._release, "release")

    def __await__(self) -> Generator[Any, None, Self]:
        async def ready() -> Self:
            return self

        return ready().__await__()

    def __enter__(self) -> Self:
        if self._is_async():
            raise RuntimeError(
                f"'with' on {self!r} would block Dask's event loop; in a coroutine use 'async with', and make a "
                "function of client.run, which Dask calls on its loop, a coroutine"
            )
        at_once(self._acquire(thread_caller(), True, None))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        at_once(self._release(thread_caller(), is_unwinding=exc_value is not None))

    async def __aenter__(self) -> Self:
        await self._acquire(task_caller(), True, None)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release(task_caller(), is_unwinding=exc_value is not None)


class Awaitable(Steps):
    """
    A coroutine that refuses to be asked whether it is true, for it would say yes although nothing has happened yet.

    :param make: returns the coroutine that is awaited
    :param call: what it is the result of, for the error
    :param is_try: it is an acquire that does not wait. It is false: whoever does not await it does not get the lock.
        xarray asks so at the end of a file, which Python may call on any thread, the loop's as well
    """

    def __init__(self, make: Callable[[], Steps], call: str, *, is_try: bool) -> None:
        self._make = make
        self._call = call
        self._is_try = is_try
        if not is_try:
            _ = self._steps  # made now, so that Python warns if it is never awaited

    @cached_property
    def _steps(self) -> Steps:
        return self._make()

    def __bool__(self) -> bool:
        if self._is_try:
            return False
        raise RuntimeError(f"on Dask's event loop {self._call} must be awaited: nothing has been done yet")

    def __await__(self) -> Generator[Any, None, Any]:
        return self._steps.__await__()

    def send(self, value: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._steps.throw(*error)

    def close(self) -> None:
        """See ``collections.abc.Coroutine``."""
        self._steps.close()
