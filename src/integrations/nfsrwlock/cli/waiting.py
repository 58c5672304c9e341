"""
What the user sees while the locks are not free: a spinner on a terminal, one line a minute elsewhere.

It goes to stderr. Who need not wait sees nothing.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from nfsrwlock.text import duration, one_line, say

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner

    from nfsrwlock_core import WaitInfo

_LINE_EVERY_SECONDS: Final = 60.0
#: A wait that is as long as this for no known reason is odd.
ODD_SECONDS: Final = 5.0
FRAME_SECONDS: Final = 0.1


def describe(info: WaitInfo) -> str:
    """Say what is waited for, and who is in the way."""
    text = f"to {info.mode} {info.lock_file}"
    if info.blockers:
        text += f": {info.blockers[0].describe()}"
        if len(info.blockers) > 1:
            text += f" (and {len(info.blockers) - 1} more)"
    elif info.trouble is not None:
        text += f": the file system answers {info.trouble}"
    elif info.waited > ODD_SECONDS:
        text += ": nobody is known to be in the way, so the file system may be in trouble"
    return text if info.warning is None else f"{text}. {info.warning}"


class Progress:
    """Shows one wait. Nothing is printed before :meth:`update`; :meth:`close` leaves the terminal as it was."""

    def __init__(self) -> None:
        self._info: WaitInfo | None = None
        self._began = time.monotonic()
        self._line_due = self._began
        self._display: tuple[Live, Spinner] | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there was reason to show anything."""
        return self._info is not None

    def update(self, info: WaitInfo) -> None:
        """There is (new) reason to wait."""
        first, self._info = self._info is None, info
        if first:
            self._began = self._line_due = time.monotonic()
            self._display = _display()
        self.frame()

    def frame(self) -> None:
        """Show the time that has passed."""
        if self._info is None:
            return
        passed = time.monotonic() - self._began
        if self._display is not None:
            live, spinner = self._display
            from rich.text import Text  # noqa: PLC0415 - costs more to import than a free lock costs to take

            text = one_line(f"waiting {duration(float(int(passed)))} {describe(self._info)}")
            spinner.update(text=Text(text, no_wrap=True, overflow="ellipsis"))
            live.refresh()
        elif time.monotonic() >= self._line_due:
            self._line_due += _LINE_EVERY_SECONDS
            say(f"waiting {f'{duration(passed)} ' if passed >= 1 else ''}{describe(self._info)}")

    def acquired(self, *, always: bool) -> None:
        """Report the grant, where a wait was announced or ``always``."""
        if always or (self._info is not None and self._display is None):
            say(f"acquired after {duration(time.monotonic() - self._began)}")

    def close(self) -> None:
        """End the display; nothing of the spinner remains."""
        if self._display is not None:
            self._display[0].stop()
        self._display = self._info = None


def _display() -> tuple[Live, Spinner] | None:
    """A started spinner without a thread of its own (this process will fork); None where a spinner would disturb."""
    if not sys.stderr.isatty() or _is_in_background():
        return None
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.spinner import Spinner  # noqa: PLC0415

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        return None
    spinner = Spinner("dots")
    live = Live(
        spinner,
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    live.start()
    return live, spinner


def _is_in_background() -> bool:
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) != os.getpgrp()
    except OSError:
        return True
