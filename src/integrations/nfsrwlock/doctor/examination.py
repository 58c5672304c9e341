"""
One path under examination: where its lock would live, what is mounted there, what the file system answers and costs.

It runs in a thread of its own, for a file system that hangs must not hang who waits for the answer. A call that hangs
cannot be ended: what it has made then stays behind, and the report names it.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from typing import IO, Any, Final

from nfsrwlock.cli.outcome import CliError, Exit, Interrupted, as_cli_error
from nfsrwlock.cli.signals import TERMINATING, Signals
from nfsrwlock.doctor import filesystems
from nfsrwlock.doctor.rendezvous import alone, lead
from nfsrwlock.doctor.report import Check, Level, Report, show
from nfsrwlock.doctor.scratch import Scratch, home_of, left_behind
from nfsrwlock.text import printable, say
from nfsrwlock_core import LockError, SoftReadWriteLock
from nfsrwlock_core.system.mounts import Mount, mount_of, requests_of
from nfsrwlock_core.system.paths import lock_path_of
from nfsrwlock_core.system.process import current_identity
from nfsrwlock_core.system.workers import submit

#: How long the file system may take to answer one call.
_ANSWER_SECONDS: Final = 60.0
#: How long a second node may take to come.
_PEER_SECONDS: Final = 300.0
#: There are thousands of names to remove, and each may take a round trip.
_CLEAN_UP_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1
#: How many cycles of a lock are timed, if that takes no longer than this.
_CYCLES: Final = 100
_ENOUGH_SECONDS: Final = 4.0
#: From here on, a lock is slow enough for people to ask what is wrong.
_SLOW_MS: Final = 100.0
_FREE_SOME: Final = "Free some space or inodes."


def doctor(
    paths: Sequence[str],
    lock_dir: str | None,
    *,
    peer: bool,
    timeout: float | None,
    as_json: bool,
    to_share: IO[str] | None = None,
    rounds: int = 400,
    processes: int = 2,
) -> int:
    """
    Examine ``paths``, one after the other, and report; return the exit code.

    :param peer: do it together with a second node
    :param timeout: how long to wait for the second node, or for an answer of the file system, seconds
    :param to_share: where to write what may be shown to others, as JSON, in place of what is there
    :param rounds: of each race
    :param processes: that race, on each host
    :raises CliError: ``to_share`` could not be written
    """
    compare = partial(lead, wait_seconds=timeout or _PEER_SECONDS) if peer else alone
    patience = _ANSWER_SECONDS if timeout is None or peer else timeout
    reports: list[Report] = []
    codes: set[int] = set()
    with ExitStack() as at_end:
        if to_share is not None:
            if not os.path.exists(to_share.name):
                at_end.callback(_remove_if_empty, os.path.realpath(to_share.name))
            to_share.fileno()  # opens it: what cannot be written is named before all that takes long
        for path in dict.fromkeys(paths):
            examination = _Examination(path, lock_dir, partial(compare, rounds=rounds, processes=processes))
            try:
                examination.wait(patience)
            except CliError as error:
                codes.add(error.code)
                say(str(error))
                continue
            reports.append(examination.report)
            codes.add(Exit.OK if examination.report.fit else Exit.FAILED)
            if not as_json:
                if len(reports) > 1:
                    print()
                show(examination.report)
        if as_json:
            print(json.dumps([report.to_dict() for report in reports], indent=2), flush=True)
        if to_share is not None and reports:
            _replace(to_share, json.dumps([report.shareable().to_dict() for report in reports], indent=2))
    return min(codes - {Exit.OK}, default=Exit.OK)


def _remove_if_empty(path: str) -> None:
    # Another one may have written its report there meanwhile, or have removed it.
    with suppress(OSError):
        if os.path.getsize(path) == 0:
            os.unlink(path)


def _replace(file: IO[str], text: str) -> None:
    try:
        with file:
            gets_all_that_is_said = os.path.sameopenfile(file.fileno(), 1)
            if os.path.isfile(file.name) and not gets_all_that_is_said:
                file.truncate(0)
            print(text, file=file)
    except OSError as error:
        raise CliError(
            f"the report could not be written to {file.name}: {error.strerror}; name another file with --report",
            Exit.FAILED,
        ) from None


class _Examination:
    """
    Looks at one path; :attr:`report` has the answer, as far as it has come.

    :param lock_dir: where locks are kept, if not beside the data
    :param compare: races processes, of this host or of two, and returns what that showed
    """

    def __init__(self, path: str, lock_dir: str | None, compare: Callable[[Scratch, Report], list[Check]]) -> None:
        self.report = Report(path=path, home="", host=current_identity().host)
        self._lock_dir = lock_dir
        self._compare = compare
        self._doing = "looking for the directory"
        #: Seconds without progress, counted in looks: while this process stood still, nobody was silent.
        self._silent = 0.0
        #: The directory it has made, until it is removed.
        self._scratch: str | None = None
        self._stopped = threading.Event()

    def wait(self, patience: float) -> None:
        """
        Examine, until all is done or the file system has not answered for ``patience`` seconds.

        :raises CliError: there is no such directory, the second node did not come or stay, or something failed
        :raises Interrupted: a signal came
        """
        with Signals(TERMINATING) as signals:
            end = submit(self._run)
            while not end.done():
                for signum in signals.wait(_LOOK_SECONDS):
                    self._stopped.set()
                    wait([end], _CLEAN_UP_SECONDS)
                    if self._scratch is not None:
                        say(f"could not clean up; remove the directory {printable(self._scratch)}")
                    raise Interrupted(signum)
                if self._silent > patience:
                    self._stopped.set()
                    left = f" {printable(self._scratch)} is left behind." if self._scratch is not None else ""
                    text = f"No answer for {self._silent:.0f} s while {self._doing}.{left}"
                    remedy = "Find out whether the file server is up and can be reached; then try again."
                    self.report.checks.append(Check("answers", Level.UNFIT, text, remedy))
                    return
                self._silent += _LOOK_SECONDS
        try:
            end.result()
        except Exception as error:  # what did not come to its end must not end in a verdict
            raise as_cli_error(error) from None

    def _run(self) -> None:
        report = self.report
        report.home = home = home_of(report.path, self._lock_dir)
        if not os.path.isdir(report.path):
            report.lock_path = lock_path_of(report.path, self._lock_dir)
        mount = mount_of(home)
        report.scope = filesystems.scope_of(mount)
        if mount is not None:
            report.file_system = asdict(mount)
        report.checks += filesystems.explain(mount)
        self._progress("asking for free space")
        report.checks.append(_space(home))
        self._progress("making a directory")
        try:
            scratch = Scratch.make(home, self._progress)
        except OSError as error:
            report.checks += [_refused(home, error), *left_behind(home)]
            return
        self._scratch = scratch.path
        try:
            report.checks.append(_permission(home, scratch))
            report.checks += self._compare(scratch, report)
            report.checks.append(cost(scratch, mount))
        except (LockError, OSError) as error:
            remedy = "Find out why, and try again."
            report.checks.append(Check("rounds", Level.UNFIT, f"The trial ended early: {error}.", remedy))
        finally:
            if scratch.remove():
                self._scratch = None
            scratch.close()
        report.checks += left_behind(home)

    def _progress(self, doing: str) -> None:
        if self._stopped.is_set():
            raise CancelledError
        self._doing, self._silent = doing, 0.0


def _space(home: str) -> Check:
    found = os.statvfs(home)
    # A file system that makes inodes as it needs them counts none, or says -1 (CephFS).
    is_counted = found.f_files and found.f_favail >= 0
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail if is_counted else None
    # In parts of what is enough; what the file system does not count is.
    left = min(free / 2**20 if found.f_blocks else 1, 1 if inodes is None else inodes / 100)
    level = Level.UNFIT if not left else Level.WARNING if left < 1 else Level.OK
    known = "an unknown number of" if inodes is None else inodes
    text = f"{free / 2**20:,.0f} MiB and {known} inodes free. A hold needs one inode, from its first heartbeat on two."
    remedy = "" if level is Level.OK else _FREE_SOME
    return Check("space", level, text, remedy, facts={"free_bytes": free, "free_inodes": inodes})


def _refused(home: str, error: OSError) -> Check:
    remedy = "Ask for write permission, or keep locks elsewhere with --lock-dir (or NFSRWLOCK_DIR)."
    why = error.strerror or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = _FREE_SOME
    elif error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() == 0:
        why += " (an NFS server usually maps root to nobody: try as the user who will take the locks)"
    return Check("permission", Level.UNFIT, f"No lock can be made in {home}: {why}.", remedy)


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


def cost(scratch: Scratch, mount: Mount | None) -> Check:
    """Return what one uncontended acquire and release costs, to read and to write."""
    lock = SoftReadWriteLock(f"{scratch.root}/cost", lock_dir=scratch.root, is_singleton=False)
    mountpoint = mount.mountpoint if mount is not None else ""
    facts: dict[str, dict[str, Any]] = {}
    said = []
    for mode, acquire in (("read", lock.acquire_read), ("write", lock.acquire_write)):
        acquire()
        lock.release()  # the first one makes the lock directory
        times: list[float] = []
        requests: list[Counter[str]] = []
        until = time.monotonic() + _ENOUGH_SECONDS
        while len(times) < _CYCLES and (time.monotonic() < until or len(times) < 15):
            scratch.progress("measuring the cost")
            before, began = Counter(requests_of(mountpoint)), time.perf_counter()
            acquire()
            lock.release()
            times.append((time.perf_counter() - began) * 1000)
            requests.append(Counter(requests_of(mountpoint)) - before)
        median, late = statistics.median(times), statistics.quantiles(times, n=20, method="inclusive")[-1]
        facts[mode] = {"median_ms": round(median, 3), "p95_ms": round(late, 3), "cycles": len(times)}
        said.append(f"{mode} {median:.2f} ms (95 % within {late:.2f} ms)")
        medians = {kind: statistics.median(one[kind] for one in requests) for kind in sum(requests, Counter[str]())}
        if kinds := {kind: count for kind, count in Counter(medians).most_common() if count}:
            facts[mode] |= {"requests": sum(kinds.values()), "requests_by_kind": kinds}
            by_kind = ", ".join(f"{kind} {count:g}" for kind, count in kinds.items())
            said[-1] += f", {sum(kinds.values()):g} requests ({by_kind})"
    text = f"Acquire and release, uncontended: {'; '.join(said)}."
    if "requests" in facts["read"]:
        text += " The whole mount's requests are counted; these are the medians."
    if facts["read"]["median_ms"] <= _SLOW_MS:
        return Check("cost", Level.OK, text, facts=facts)
    remedy = "Take few locks and hold them longer; ask what the file server is busy with."
    return Check("cost", Level.NOTE, text, remedy, facts=facts)
