"""
One path under examination: where its lock would live, what is mounted there, and what the file system answers.

It runs in a thread of its own, for a file system that hangs must not hang who waits for the answer. A call that hangs
cannot be ended: what it has made then stays behind, and the report names it.
"""

from __future__ import annotations

import errno
import grp
import os
import shlex
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from nfsrwlock.cli.outcome import CliError
from nfsrwlock.cli.preparing import directory_of_lock
from nfsrwlock.doctor import cost, filesystems
from nfsrwlock.doctor.report import Check, Level, Progress, Report
from nfsrwlock.doctor.scratch import Scratch, left_behind
from nfsrwlock.text import printable
from nfsrwlock_core import LockError
from nfsrwlock_core.system.mounts import mount_of
from nfsrwlock_core.system.paths import lock_path_of
from nfsrwlock_core.system.process import current_identity

_FREE_SOME: Final = "Free some space or inodes."
_TRY_AGAIN: Final = "Find out why, and try again."
#: Races the processes that there are, see :func:`nfsrwlock.doctor.rendezvous.alone`.
Compare = Callable[[Scratch, Report, Progress], list[Check]]


@dataclass
class Examination:
    """
    Looks at one path; :attr:`report` has the answer, as far as it has come.

    :param lock_dir: where locks are kept, if not beside the data
    :param compare: races processes, of this host or of two
    """

    path: str
    lock_dir: str | None
    compare: Compare
    #: What it does, and since when.
    doing: str = "looking for the directory"
    since: float = field(default_factory=time.monotonic)
    #: The directory it has made, until it is removed.
    scratch: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.report = Report(path=self.path, home="", host=current_identity().host)

    def run(self) -> None:
        """
        Examine, until :attr:`stopped` is set.

        :raises CliError: there is no such directory, or the second node did not come or stay
        :raises OSError: what the file system answered otherwise
        """
        report = self.report
        report.home = home = home_of(report.path, self.lock_dir)
        if not os.path.isdir(report.path):
            report.lock_path = lock_path_of(report.path, self.lock_dir)
        mount = mount_of(home)
        report.scope = filesystems.scope_of(mount)
        if mount is not None:
            report.file_system = mount.to_dict()
        report.checks += filesystems.explain(mount)
        self._progress("asking for free space")
        report.checks.append(_space(home))
        self._progress("looking for what was left behind")
        report.checks += left_behind(home)
        self._progress("making a directory")
        try:
            scratch = Scratch.make(home)
        except OSError as error:
            report.checks.append(_refused(home, error))
            return
        self.scratch = scratch.path
        try:
            report.checks.append(_permission(home, scratch))
            try:
                report.checks += self.compare(scratch, report, self._progress)
            except OSError as error:
                text = f"The rounds ended early: the file system answers {error.strerror}."
                report.checks.append(Check("rounds", Level.UNFIT, text, _TRY_AGAIN))
            report.checks.append(cost.measure(scratch.root, mount, self._progress))
        except (LockError, OSError) as error:
            report.checks.append(Check("cost", Level.UNFIT, f"A lock could not be taken: {error}.", _TRY_AGAIN))
        finally:
            if scratch.remove():
                self.scratch = None
            else:
                text = f"{printable(scratch.path)} could not be removed."
                report.checks.append(Check("leftover", Level.WARNING, text, f"rm -r {shlex.quote(scratch.path)}"))
            scratch.close()

    def _progress(self, doing: str) -> None:
        if self.stopped.is_set():
            raise CancelledError
        self.doing, self.since = doing, time.monotonic()


def home_of(path: str, lock_dir: str | None) -> str:
    """
    Return the directory in which locks on ``path``, or on files in the directory ``path``, live.

    :raises CliError: there is no such directory
    """
    if not path:
        raise CliError("an empty path cannot be examined: check the variable in PATH")
    file = os.path.join(path, "file") if os.path.isdir(path) else path
    return os.path.realpath(directory_of_lock(file, lock_dir, remedy="correct the path"))


def _space(home: str) -> Check:
    found = os.statvfs(home)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
    level = Level.OK
    if (found.f_blocks and free < 2**20) or (inodes is not None and inodes < 100):
        level = Level.WARNING
    if (found.f_blocks and not free) or inodes == 0:
        level = Level.UNFIT
    known = "an unknown number of" if inodes is None else inodes
    text = (
        f"{free / 2**20:,.0f} MiB and {known} inodes free. Acquiring a lock needs one inode; releasing it needs none."
    )
    remedy = "" if level is Level.OK else _FREE_SOME
    return Check("space", level, text, remedy, facts={"free_bytes": free, "free_inodes": inodes})


def _refused(home: str, error: OSError) -> Check:
    remedy = "Ask for write permission, or keep locks elsewhere with --lock-dir (or NFSRWLOCK_DIR)."
    why = error.strerror or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = _FREE_SOME
    elif error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() == 0:
        why += " (an NFS server usually maps root to nobody: try as the user who will take the locks)"
    return Check("permission", Level.UNFIT, f"No lock can be made in {printable(home)}: {why}.", remedy)


def _permission(home: str, scratch: Scratch) -> Check:
    about, owner = os.stat(home), os.fstat(scratch.fd).st_uid
    group = str(about.st_gid)
    with suppress(KeyError):
        group = f"{grp.getgrgid(about.st_gid).gr_name} ({group})"
    text = f"You can make locks here. With --share group they would be for group {group}"
    if os.geteuid() != 0 and about.st_gid not in {os.getegid(), *os.getgroups()}:
        text += ", of which you are no member"
    if not about.st_mode & 0o020:
        text += ", whose members may not make any here (no group write permission)"
    mapped = owner != os.geteuid()
    text += f". The file server takes you for user {owner}." if mapped else "."
    return Check("permission", Level.NOTE if mapped else Level.OK, text, facts={"group": group, "owner": owner})
