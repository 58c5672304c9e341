"""
What is looked at before anybody is made to wait for a lock: whether there is a directory for it, and the command.

The keeper looks, for a look may hang as long as a file server does, and nobody but the keeper may hang.
"""

from __future__ import annotations

import os
import shutil

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.text import printable


def home_of_lock(lock_path: str, remedy: str = "correct the path, or have it made with --parents") -> str:
    """
    Return the directory in which ``lock_path`` lies: a missing one is more often a typing error than a wish.

    :param remedy: what to do if it is missing
    :raises CliError: it is missing, or no directory
    """
    home = os.path.dirname(lock_path)
    if not os.path.isdir(home):
        problem = "is not a directory; correct the path" if os.path.lexists(home) else f"does not exist; {remedy}"
        raise CliError(f"{printable(home)}, where the lock would be, {problem}")
    return home


def find_program(name: str) -> str:
    """
    Find the command as a shell does, before anybody is made to wait for a lock that it cannot use.

    :raises CliError: with code 127 if it does not exist, 126 if it cannot be executed
    """
    if (found := shutil.which(name)) is not None:
        return found
    if os.sep in name and os.path.isdir(name):
        raise CliError(f"{name}: is a directory", Exit.NOT_EXECUTABLE)
    if name and (unusable := shutil.which(name, mode=os.F_OK)) is not None:
        raise CliError(f"{unusable}: permission denied (not executable)", Exit.NOT_EXECUTABLE)
    reason = "no such file or directory" if os.sep in name else "command not found"
    raise CliError(f"{name}: {reason}", Exit.NOT_FOUND)
