"""What the locks' methods return on Dask's event loop: a coroutine that is never taken for its own result."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class Awaitable(Coroutine[Any, Any, Any]):
    """
    A coroutine that refuses to be asked whether it is true, for it would say yes although nothing has happened yet.

    :param coroutine: to be awaited
    :param call: what it is the result of, for the error
    :param is_try: it is an acquire that does not wait; who takes it for its result is told that the lock is not taken.
        So does the end of a file of xarray's, which Python may call on any thread, the loop's as well
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], call: str, *, is_try: bool = False) -> None:
        self._coroutine = coroutine
        self._call = call
        self._is_try = is_try

    def __bool__(self) -> bool:
        if self._is_try:
            self._coroutine.close()
            return False
        raise RuntimeError(f"on Dask's event loop {self._call} must be awaited: nothing has been done yet")

    def __await__(self) -> Generator[Any, None, Any]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """See ``collections.abc.Coroutine``."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """See ``collections.abc.Coroutine``."""
        self._coroutine.close()
