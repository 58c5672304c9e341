"""
The command ``nfsrwlock``: locks for the shell.

``nfsrwlock run`` guards a command, ``hold`` a block of a shell script; ``status`` shows who holds and waits,
``break`` takes a lock away from a dead holder.

What ``run`` promises: the command starts when all its locks are held, and it does not run while the hold is
uncertain. That covers a file server that does not answer, an eviction, and the SIGKILL or SIGSTOP of either of the two
processes that ``run`` consists of (:mod:`nfsrwlock.cli.keeper`). What it does not cover: both of them killed at once,
one killed while the other is stopped, processes that have detached themselves from the command (a double fork) at the
moment when the process you started is killed, and anything the command leaves running when it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfsrwlock_core.lazy import lazily

if TYPE_CHECKING:
    from nfsrwlock.cli.app import main

__all__ = ["main"]
__getattr__, __dir__ = lazily(__name__, {"main": ".app"})  # needs click, which only the command line needs
