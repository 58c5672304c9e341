"""
What is printed: one line per message, and no byte of it able to steer the terminal.

Paths may hold newlines and bytes that are no UTF-8; host, user and command of a peer come from names and files that
anybody with access to the lock directory may have written.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM = "nfsrwlock"


def printable(text: str) -> str:
    r"""
    ``text`` with everything escaped that is not plainly printable: control characters, undecodable bytes.

    An undecodable byte shows as ``\\xff``, as it was before Python decoded it.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """``text`` as a single safe line: line breaks between sentences become spaces."""
    return printable(" ".join(part.strip() for part in text.splitlines() if part.strip()))


def duration(seconds: float) -> str:
    """
    A time span as a person says it: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``.

    >>> duration(200)
    '3 min 20 s'
    """
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}".removesuffix(".0") + " s"
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while not parts[0][0]:
        del parts[0]
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def console(width_without_terminal: int | None = None, *, stderr: bool = False) -> Console:
    """Return what prints tables to stdout, as wide as the terminal or ``$COLUMNS`` if there is one."""
    from rich.console import Console  # noqa: PLC0415 - costs more to import than most commands need

    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, width=None if has_width else width_without_terminal)


def say(message: str) -> None:
    """Print one line to stderr. A reader that has gone away is no reason to fail."""
    with suppress(OSError, ValueError):
        print(f"{PROGRAM}: {one_line(message)}", file=sys.stderr, flush=True)


def flush() -> None:
    """Write out what is buffered, before a fork would double it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
