"""
One text for threads and for tasks: it is a coroutine, which in a thread suspends for nothing.

The locks for threads and for asyncio have the same methods; only what those for asyncio return is waited for.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from typing import Any, TypeVar

_R = TypeVar("_R")


async def done(result: Any) -> Any:
    """Return what a method of either lock returns, once it has."""
    return await result if inspect.isawaitable(result) else result


def at_once(steps: Coroutine[Any, Any, _R]) -> _R:
    """Run, in a thread, steps that suspend for nothing."""
    try:
        steps.send(None)
    except StopIteration as end:
        result: _R = end.value
        return result
    finally:
        steps.close()
    raise AssertionError("in a thread there is nothing to wait for")
