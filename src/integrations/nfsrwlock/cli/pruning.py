"""``nfsrwlock prune``: lock directories that nobody uses are removed."""

from __future__ import annotations

from collections.abc import Iterable

import click

from nfsrwlock.cli.outcome import Exit
from nfsrwlock.cli.status import below
from nfsrwlock.text import printable, say
from nfsrwlock_core import LockError, prune


def prune_below(directories: Iterable[str], unused_s: float) -> int:
    """Remove what was not used for so many seconds, and say what was kept and why; return the exit code."""
    code, removed = Exit.OK, 0
    for directory in directories:
        for path in below(directory):
            try:
                reason = prune(path, unused_s=unused_s, lock_dir="")
            except (LockError, OSError) as error:
                say(str(error))
                code = Exit.FAILED
                continue
            removed += reason is None
            click.echo(f"{printable(path)}: {'removed' if reason is None else f'kept, {reason}'}")
    click.echo(f"{removed} lock director{'y' if removed == 1 else 'ies'} removed")
    return code
