"""What the locks' methods return on Dask's event loop: a coroutine that is never taken for its own result."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .context import Caller, caller_here, run_in_thread, task_caller, thread_caller

Steps = Coroutine[Any, Any, Any]


class Awaitable(Steps):
    """
    A coroutine that refuses to be asked whether it is true, for it would say yes although nothing has happened yet.

    :param steps: makes the coroutine that is awaited
    :param call: what it is the result of, for the error
    :param is_try: it is an acquire that does not wait: it is false, for who does not await it does not get the lock. So
        does the end of a file of xarray's, which Python may call on any thread, the loop's as well
    """

    def __init__(self, steps: Callable[[], Steps], call: str, *, is_try: bool = False) -> None:
        self._make = steps
        self._call = call
        self._is_try = is_try
        # Made now, so that Python warns if it is never awaited; but nobody need await what was only tried.
        self._made = None if is_try else steps()

    def __bool__(self) -> bool:
        if self._is_try:
            return False
        raise RuntimeError(f"on Dask's event loop {self._call} must be awaited: nothing has been done yet")

    def _steps(self) -> Steps:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __await__(self) -> Generator[Any, None, Any]:
        return self._steps().__await__()

    def send(self, value: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._steps().send(value)

    def throw(self, *error: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._steps().throw(*error)

    def close(self) -> None:
        """See ``collections.abc.Coroutine``."""
        self._steps().close()


def run_or_await(steps: Callable[[Caller], Steps], call: str, *, is_async: bool, is_try: bool = False) -> Any:
    """
    Run the steps for the caller, and return their result or, on Dask's event loop, what is to be awaited for it.

    :param call: how an error calls it
    :param is_async: the caller is on Dask's event loop
    :param is_try: see :class:`Awaitable`
    """
    if not is_async:
        return run_in_thread(steps(thread_caller()))
    # Whoever calls here asks for the lock, not the task that asyncio.wait_for and others make of the call.
    caller = caller_here()
    return Awaitable(lambda: steps(caller if caller.is_coroutine else task_caller()), call, is_try=is_try)
