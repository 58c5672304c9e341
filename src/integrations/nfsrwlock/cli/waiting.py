"""
What the user sees while the locks are not free: a spinner on a terminal, one line a minute elsewhere.

It goes to stderr. Nothing is printed unless the command has to wait.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Final

from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.text import duration, one_line, say

_LINE_EVERY_SECONDS: Final = 60.0
#: A wait of which nothing is heard for as long as this is odd.
ODD_SECONDS: Final = 5.0
FRAME_SECONDS: Final = 0.1
_SPINNER: Final = "|/-\\"


class Progress:
    """Shows one wait, once there is a :attr:`wish`; :meth:`close` leaves the terminal as it was."""

    def __init__(self) -> None:
        #: What is waited for, by the latest news; empty as long as there is no reason to show anything.
        self.wish = ""
        self._began = time.monotonic()
        #: When the next line is due, in seconds from then; 0: nothing has been said.
        self._line_due = 0.0
        # A spinner disturbs nobody there.
        can_draw = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._draws = can_draw and Terminal().in_foreground

    def frame(self) -> None:
        """Show the time that has passed."""
        passed = time.monotonic() - self._began
        if self.wish and self._draws:
            from rich.cells import set_cell_size  # noqa: PLC0415 - a free lock is taken in less time than an import

            spinner = _SPINNER[int(passed / FRAME_SECONDS) % len(_SPINNER)]
            text = one_line(f"{spinner} waiting {duration(float(int(passed)))} {self.wish}")
            _draw(set_cell_size(text, (os.get_terminal_size(2).columns or 80) - 1))
        elif self.wish and passed >= self._line_due:
            say(f"waiting {f'{duration(passed)} ' if self._line_due else ''}{self.wish}")
            self._line_due = passed + _LINE_EVERY_SECONDS

    def acquired(self, *, always: bool) -> None:
        """Report the grant, where a line has said that it is waited for, or ``always``."""
        self.close()
        if always or self._line_due:
            say(f"acquired after {duration(time.monotonic() - self._began)}")

    def close(self) -> None:
        """End the display; nothing of the spinner remains."""
        if self.wish and self._draws:
            _draw("\x1b[K")
        self.wish = ""


def _draw(line: str) -> None:
    with suppress(OSError, ValueError):
        print(f"\r{line}\r", end="", file=sys.stderr, flush=True)
