"""
What is looked at before anybody is made to wait for a lock: whether there is a directory for it, and the command.

The keeper looks, for a look may hang as long as a file server does, and nobody but the keeper may hang.
"""

from __future__ import annotations

import os
import shutil

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.text import printable
from nfsrwlock_core import lock_home


def directory_of_lock(
    path: str, lock_dir: str | os.PathLike[str] | None, remedy: str = "correct the path, or have it made with --parents"
) -> str:
    """
    Return the directory for the lock on ``path``: a missing one is more often a typing error than a wish.

    :param lock_dir: where locks are kept, if not beside the data
    :param remedy: what to do if it is missing
    :raises CliError: it is missing, or no directory
    :raises ValueError: if ``lock_dir`` is no absolute path
    """
    home = lock_home(lock_dir)
    directory = home or os.path.dirname(path.rstrip("/")) or os.curdir
    if not os.path.isdir(directory):
        subject = "the lock directory" if home else f"the directory of {printable(path)}"
        problem = "is not a directory; correct the path" if os.path.lexists(directory) else f"does not exist; {remedy}"
        raise CliError(f"{printable(directory)}, {subject}, {problem}")
    return directory


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
