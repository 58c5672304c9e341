"""An exception as a signal's handler raises it: between any two calls that a module makes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType, ModuleType

import pytest

#: Of tests in which a real signal comes, or as good as one; docs/concepts/guarantees.md says what that means to users.
needs_whole_with_blocks = pytest.mark.xfail(
    sys.version_info[:2] == (3, 14),
    reason="an exception may skip the end of a `with` block: python/cpython#148874",
    strict=False,
)


def interrupted_at(
    number: int, module: ModuleType, call: Callable[[], object], by: Callable[[], object] | None = None
) -> bool:
    """
    Raise at the end of the ``number``-th call that ``module`` makes meanwhile; return whether there was one.

    :param by: called instead of that
    """
    left = number

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        caller = frame if event == "c_return" else frame.f_back if event == "return" else None
        # What ends by a `yield` has not ended.
        if caller is not None and caller.f_code.co_filename == module.__file__ and not frame.f_code.co_flags & 0x20:
            left -= 1
            if left == -1 and by is not None:
                by()
            elif left == -1:
                raise KeyboardInterrupt

    # A collection calls what others registered (distributed does), wherever it comes; Python ignores what that raises.
    gc.disable()
    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    assert left >= 0 or by is not None, f"the exception after call {number} was swallowed"
    return left < 0
