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
import stat
import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

from nfsrwlock.cli.outcome import CliError, in_options
from nfsrwlock.doctor import cost, filesystems, players, rendezvous
from nfsrwlock.doctor.races import Plan, call_seconds, prepare
from nfsrwlock.doctor.report import TRY_AGAIN, Check, Level, Report
from nfsrwlock.doctor.scratch import Scratch, scratches_in
from nfsrwlock.doctor.verdicts import Result, judge
from nfsrwlock.text import printable
from nfsrwlock_core import LockError, lock_home
from nfsrwlock_core.system.mounts import Mount, mount_from, mount_of
from nfsrwlock_core.system.paths import lock_path_of
from nfsrwlock_core.system.process import current_identity, is_dead, is_same_kernel

_FREE_SOME: Final = "Free some space or inodes."


@dataclass
class Examination:
    """
    Looks at one path; :attr:`report` has the answer, as far as it has come.

    :param lock_dir: where locks are kept, if not beside the data
    :param peer_seconds: how long to wait for a second node; ``None``: do without one
    :param rounds: of each race
    :param processes: that race, on each host
    """

    path: str
    lock_dir: str | None
    peer_seconds: float | None
    rounds: int
    processes: int
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
        report.checks += _left_behind(home)
        self._progress("making a directory")
        try:
            scratch = Scratch.make(home)
        except OSError as error:
            report.checks.append(_refused(home, error))
            return
        self.scratch = scratch.path
        try:
            report.checks.append(_permission(home, scratch))
            report.checks += self._race(scratch, mount)
            report.checks.append(self._cost(scratch, mount))
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

    def _race(self, scratch: Scratch, mount: Mount | None) -> list[Check]:
        try:
            if self.peer_seconds is not None:
                return self._race_with_peer(scratch, mount, self.peer_seconds)
            plan = Plan(self.rounds, call_seconds(scratch.files), self.processes)
            prepare(scratch.root, plan, lambda: self._progress("preparing the rounds"))
            records = players.play(scratch, range(plan.players), lambda: time.monotonic() + 0.05, self._progress)
            return judge(Result(plan, records))
        except CliError as error:
            if self.peer_seconds is not None:
                raise
            return [Check("processes", Level.UNFIT, f"Processes of this host could not be compared: {error}.")]
        except OSError as error:
            text = f"The rounds ended early: the file system answers {said(error)}."
            return [Check("rounds", Level.UNFIT, text, TRY_AGAIN)]

    def _race_with_peer(self, scratch: Scratch, mount: Mount | None, seconds: float) -> list[Check]:
        result, peer = rendezvous.lead(scratch, self.rounds, self.processes, seconds, self._progress)
        self.report.peer, self.report.two_hosts = peer["host"], bool(result.sights)
        other = filesystems.explain_other(mount_from(peer["mount"]), peer["host"], mount)
        checks = [*other, *judge(result)]
        if not result.sights:
            text = "The second node is this very host (one kernel, one cache), so nothing was tested between hosts."
            checks.append(Check("peer", Level.WARNING, text, "Run the command on another host."))
        return checks

    def _cost(self, scratch: Scratch, mount: Mount | None) -> Check:
        try:
            return cost.measure(scratch.root, mount, lambda: self._progress("measuring the cost"))
        except (LockError, OSError) as error:
            return Check("cost", Level.UNFIT, f"A lock could not be taken: {error}.", TRY_AGAIN)


def home_of(path: str, lock_dir: str | None) -> str:
    """
    Return the directory in which locks on ``path``, or on files in the directory ``path``, live.

    :raises CliError: there is no such directory
    """
    if not path:
        raise CliError("an empty path cannot be examined: check the variable in PATH")
    if "\0" in path:
        raise CliError("a path cannot contain a null byte")
    try:
        kept = lock_home(lock_dir)
    except ValueError as error:
        raise CliError(in_options(str(error))) from None
    home = kept or (path if os.path.isdir(path) else os.path.dirname(path.rstrip("/")) or os.curdir)
    try:
        wrong = "" if stat.S_ISDIR(os.stat(home).st_mode) else "is not a directory; correct the path"
    except FileNotFoundError:
        wrong = "does not exist; correct the path"
    except OSError as error:
        wrong = f"cannot be looked at: {said(error)}"
    if wrong:
        what = "the lock directory" if kept else f"the directory of {printable(path)}"
        raise CliError(f"{printable(home)}, {what}, {wrong}")
    return os.path.realpath(home)


def said(error: OSError) -> str:
    """Return the error in the system's words."""
    return error.strerror or type(error).__name__


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


def _left_behind(home: str) -> list[Check]:
    removed, doubtful, checks = [], [], []
    for path in scratches_in(home):
        who, gone = None, False
        with suppress(OSError), closing(Scratch(path)) as scratch:
            who = scratch.maker()
            gone = who is not None and is_dead(who) and scratch.remove()
        if gone:
            removed.append(path)
        elif who is None or not is_same_kernel(who) or is_dead(who):
            doubtful.append(path)
    if removed:
        text = f"A doctor that was killed had left this behind; it is removed: {printable(shlex.join(removed))}."
        checks.append(Check("leftover", Level.NOTE, text))
    if doubtful:
        text = f"Of a doctor that works elsewhere now, or was killed there: {printable(shlex.join(doubtful))}."
        remedy = f"If none works here any more: rm -r {shlex.join(doubtful)}"
        checks.append(Check("leftover", Level.NOTE, text, remedy))
    return checks


def _refused(home: str, error: OSError) -> Check:
    remedy = "Ask for write permission, or keep locks elsewhere with --lock-dir (or NFSRWLOCK_DIR)."
    why = said(error)
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
