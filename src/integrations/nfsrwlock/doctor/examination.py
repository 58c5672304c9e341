"""One path under examination: where its lock would live, what is mounted there, and what the file system answers."""

from __future__ import annotations

import errno
import grp
import os
import shlex
import stat
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass

from nfsrwlock.cli.outcome import CliError, Exit, in_options
from nfsrwlock.doctor import cost, filesystems, rendezvous
from nfsrwlock.doctor.players import race_here
from nfsrwlock.doctor.races import Plan, call_seconds
from nfsrwlock.doctor.report import Check, Level, Report
from nfsrwlock.doctor.scratch import Scratch, scratches_in
from nfsrwlock.doctor.verdicts import judge
from nfsrwlock.text import PROGRAM, printable, say
from nfsrwlock_core import LockError, lock_home
from nfsrwlock_core.system.mounts import Mount, mount_of
from nfsrwlock_core.system.paths import lock_path_of
from nfsrwlock_core.system.process import is_dead, is_same_kernel

_ELSEWHERE = "Ask for write permission, or keep locks elsewhere with --lock-dir (or NFSRWLOCK_DIR)."


@dataclass(frozen=True, slots=True)
class Wishes:
    """
    What was asked for.

    :param lock_dir: where locks are kept, if not beside the data
    :param peer: wait for a second node
    :param wait_seconds: for how long
    :param rounds: of each race
    :param processes: that race, on each host
    """

    lock_dir: str | None
    peer: bool
    wait_seconds: float
    rounds: int
    processes: int


class StoppedError(Exception):
    """The user does not want to wait for the end."""


class Examination:
    """
    Looks at one path, in a thread of its own: a file system that hangs must not hang who waits for the answer.

    After :meth:`start` it goes on until :meth:`wait` says that it is over. Then :attr:`error` says what was wrong with
    the question, and :attr:`report` has the answer.
    """

    def __init__(self, path: str, wishes: Wishes) -> None:
        self.report = Report(path=path, home="", host=rendezvous.host_name())
        self.error: CliError | None = None
        #: What it does, and since when.
        self.doing = "looking for the directory"
        self.since = time.monotonic()
        #: What it has made; removed again at its end.
        self.scratch: str | None = None
        self._wishes = wishes
        self._stopped = threading.Event()
        # Not the thread's own end: before Python 3.13 a signal during join() makes it look ended (bpo-45274).
        self._over = threading.Event()

    def start(self) -> None:
        """Begin."""
        self.since = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, for at most so long; return whether it has come."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Let it end soon, and clean up."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._examine()
        except CliError as error:
            self.error = error
        except StoppedError:
            pass
        except OSError as error:
            self.error = CliError(f"{printable(self.report.path)}: {_said(error)}", Exit.FAILED)
        except Exception as error:  # what did not come to its end must not end in a verdict
            what = f"internal error, please report it: {type(error).__name__}: {error}"
            self.error = CliError(f"{printable(self.report.path)}: {what}", Exit.FAILED)
        finally:
            self._over.set()

    def _progress(self, doing: str) -> None:
        if self._stopped.is_set():
            raise StoppedError
        self.doing, self.since = doing, time.monotonic()

    def _examine(self) -> None:
        report = self.report
        report.home = home = home_of(report.path, self._wishes.lock_dir)
        if not os.path.isdir(report.path):
            report.lock_path = lock_path_of(report.path, self._wishes.lock_dir)
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
            report.checks += self._race(scratch)
            report.checks.append(self._cost(scratch, mount))
        finally:
            if scratch.remove():
                self.scratch = None
            else:
                text = f"{printable(scratch.path)} could not be removed."
                report.checks.append(Check("leftover", Level.WARNING, text, f"rm -r {shlex.quote(scratch.path)}"))
            scratch.close()

    def _race(self, scratch: Scratch) -> list[Check]:
        wishes = self._wishes
        try:
            if wishes.peer:
                return self._race_with_peer(scratch)
            plan = Plan(wishes.rounds, call_seconds(scratch.root), wishes.processes)
            return judge(race_here(scratch, plan, self._progress))
        except CliError as error:
            if wishes.peer:
                raise
            return [Check("processes", Level.UNFIT, f"Processes of this host could not be compared: {error}.")]
        except OSError as error:
            text = f"The rounds came to an end: the file system says {_said(error)}."
            return [Check("rounds", Level.UNFIT, text, "Find out why, and try again.")]

    def _race_with_peer(self, scratch: Scratch) -> list[Check]:
        report, wishes = self.report, self._wishes
        rendezvous.invite(scratch)
        command = f"{PROGRAM} doctor --join {scratch.token} {shlex.quote(printable(report.home))}"
        say(f"on a second node, as the same user, run: {command}")
        say("(if the directory is mounted elsewhere there, give its path there)")
        result, peer = rendezvous.lead(scratch, wishes.rounds, wishes.processes, wishes.wait_seconds, self._progress)
        report.peer, report.two_hosts = peer.host, result.plan.two_hosts
        checks = [*filesystems.explain_other(peer.mount, peer.host, report.checks), *judge(result)]
        if not report.two_hosts:
            text = "The second node is this very host (one kernel, one cache), so nothing was tested between hosts."
            checks.append(Check("peer", Level.WARNING, text, "Run the command on another host."))
        return checks

    def _cost(self, scratch: Scratch, mount: Mount | None) -> Check:
        try:
            return cost.measure(scratch.root, mount, lambda: self._progress("measuring the cost"))
        except (LockError, OSError) as error:
            return Check("cost", Level.UNFIT, f"A lock could not be taken: {error}.", "Find out why, and try again.")


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
        wrong = f"cannot be looked at: {_said(error)}"
    if wrong:
        what = "the lock directory" if kept else f"the directory of {printable(path)}"
        raise CliError(f"{printable(home)}, {what}, {wrong}")
    return os.path.realpath(home)


def _space(home: str) -> Check:
    found = os.statvfs(home)
    free = found.f_bavail * found.f_frsize
    facts = {"free_bytes": free, "free_inodes": found.f_favail if found.f_files else None}
    inodes = "an unknown number of inodes" if not found.f_files else f"{found.f_favail} inodes"
    text = f"{free / 2**20:,.0f} MiB and {inodes} free. To announce oneself takes an inode; to release, nothing."
    remedy = "Free some space or inodes."
    if (found.f_blocks and not free) or (found.f_files and not found.f_favail):
        return Check("space", Level.UNFIT, f"Full: {text}", remedy, facts=facts)
    scarce = (found.f_blocks and free < 2**20) or (found.f_files and found.f_favail < 100)
    return Check("space", Level.WARNING if scarce else Level.OK, text, remedy if scarce else "", facts=facts)


def _left_behind(home: str) -> list[Check]:
    removed, doubtful = [], []
    for path in scratches_in(home):
        who, gone = None, False
        with suppress(OSError), closing(Scratch(path)) as scratch:
            who = scratch.maker()
            gone = who is not None and is_dead(who) and scratch.remove()
        if gone:
            removed.append(path)
        elif who is None or not is_same_kernel(who) or is_dead(who):
            doubtful.append(path)
    checks = []
    if removed:
        text = f"A doctor that was killed had left {_listed(removed)} behind; it is removed."
        checks.append(Check("leftover", Level.NOTE, text))
    if doubtful:
        text = f"{_listed(doubtful)}: of a doctor that works elsewhere now, or was killed there."
        remedy = f"If none works here any more: rm -r {shlex.join(doubtful)}"
        checks.append(Check("leftover", Level.NOTE, text, remedy))
    return checks


def _listed(paths: list[str]) -> str:
    return ", ".join(map(printable, paths))


def _refused(home: str, error: OSError) -> Check:
    texts = {
        errno.EACCES: "you may not make directories there",
        errno.EPERM: "you may not make directories there",
        errno.EROFS: "it is on a read-only file system",
        errno.ENOSPC: "there is no free space, or no free inode",
        errno.EDQUOT: "you are over your disk quota",
    }
    why = texts.get(error.errno or 0, _said(error))
    if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() == 0:
        why += " (an NFS server usually maps root to nobody: try as the user who will take the locks)"
    remedy = "Free some space or inodes." if error.errno in (errno.ENOSPC, errno.EDQUOT) else _ELSEWHERE
    return Check("permission", Level.UNFIT, f"No lock can be made in {printable(home)}: {why}.", remedy)


def _permission(home: str, scratch: Scratch) -> Check:
    about = os.stat(home)
    owner = os.fstat(scratch.fd).st_uid
    group = _group(about.st_gid)
    text = f"You can make locks here. With --share group they would be for group {group}"
    if os.geteuid() != 0 and about.st_gid not in {os.getegid(), *os.getgroups()}:
        text += ", of which you are no member"
    if not about.st_mode & 0o020:
        text += ", whose members may not make any here (no group write permission)"
    mapped = owner != os.geteuid()
    text += f". The file server takes you for user {owner}." if mapped else "."
    return Check("permission", Level.NOTE if mapped else Level.OK, text, facts={"group": group, "owner": owner})


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__
