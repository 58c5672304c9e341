"""
What a job did to the real paths of its exclusive outputs by itself, past the private ones: undone under the lock.

A command may write to a literal path. If its job fails, what is there must not count as made. So before a job runs, it
is written down with each of its exclusive locks what the outputs are; they are compared when the job has failed, and if
it was cut off, by whoever has the lock next, reader or writer. What somebody else wrote under a later grant stays.

What it cannot do: bring back what was overwritten. Such a file is removed, so that it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from nfsrwlock.snakemake.messages import LockingError, job_name, warn
from nfsrwlock.snakemake.plan import Plan, lock_set, plan_of
from nfsrwlock.text import printable
from nfsrwlock_core import HoldStatus, LockSet, SoftReadWriteLock

#: What private directories of this adapter end with; they begin with a dot.
SUFFIX: Final = ".nfsrwlock"
_RECORD: Final = "before"
_NAME_BYTES: Final = 120


def private_place(path: str) -> str:
    """Return the private directory that belongs to ``path``, beside it."""
    parent, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_BYTES:
        name = encoded[:_NAME_BYTES].decode(errors="ignore") + hashlib.sha256(encoded).hexdigest()[:16]
    return os.path.join(parent, f".{name}{SUFFIX}")


def identity(path: str) -> str:
    """Return what changes if ``path`` is changed, or anything in it; empty if nothing is there."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    found = [_text(status)]
    for here, names, files in os.walk(path) if stat.S_ISDIR(status.st_mode) else ():
        entries = [os.path.join(here, name) for name in (*names, *files)]
        found += [f"{os.path.relpath(entry, path)} {_text(os.lstat(entry))}" for entry in entries]
    return hashlib.sha256(os.fsencode("\n".join(sorted(found)))).hexdigest()[:16]


def _text(status: os.stat_result) -> str:
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def record_of(lock: SoftReadWriteLock) -> str:
    """Return the path of the record for one lock, which lives with the numbers of its grants: it states one."""
    return os.path.join(lock.lock_path, _RECORD)


def remember(job: Any, plan: Plan, locks: LockSet) -> None:
    """Write down what the exclusive outputs are, under their locks and before the job changes them."""
    for lock in written(plan, locks):
        before = {
            _real(job.output[index]): identity(str(job.output[index]))
            for index, path in plan.exclusive.items()
            if path == lock.lock_file
        }
        with open(record_of(lock), "w", encoding="utf-8", opener=_no_link) as file:
            json.dump({"generation": lock.generation, "before": before}, file)


def forget(lock: SoftReadWriteLock) -> None:
    """Remove the record for one lock: its outputs are about to be published, or are as they were."""
    with suppress(OSError):
        os.unlink(record_of(lock))


def undo(job: Any, plan: Plan, locks: LockSet, private: Mapping[str, str]) -> None:
    """
    Take away what this job, which has failed, has made of its outputs' real paths.

    It goes to its ``private`` path, or is removed. If that cannot be done, the record stays, for the next holder.
    """
    try:
        for lock in written(plan, locks):
            if lock.status is HoldStatus.HELD:  # else it is for the next holder to do
                _undo(job, lock, lock.generation, private)
                forget(lock)
    except OSError as error:
        warn(job, f"what {job_name(job)} left unfinished cannot be removed: {error}")


def undo_earlier(job: Any, plan: Plan, locks: LockSet) -> None:
    """Do the same for the last writer before this job, if it was cut off; what it reads must not be unfinished."""
    wanted, exclusive = {want.path for want in plan.wanted}, set(plan.exclusive.values())
    try:
        for lock in locks.locks:
            if lock.lock_file not in wanted or not os.path.exists(record_of(lock)):
                continue
            is_ours = lock.lock_file in exclusive
            paths = _undo(job, lock, (lock.generation or 0) - is_ours, {})
            if is_ours:
                forget(lock)
            elif paths:
                raise LockingError(
                    f"{job_name(job)} cannot read {printable(', '.join(paths))}: an earlier job was cut off while it "
                    "wrote there. Run the workflow again to make it anew"
                )
    except OSError as error:
        raise LockingError(
            f"{job_name(job)} must not go on: an earlier job was cut off, and what it left cannot be removed ({error})"
        ) from None


def _undo(job: Any, lock: SoftReadWriteLock, grant: int | None, private: Mapping[str, str]) -> list[str]:
    generation, recorded = _load(record_of(lock))
    if generation != grant:  # somebody has written since
        return []
    # Whoever may write beside the lock may have made the record up: it says nothing of other files than the job's.
    own = {_real(file): os.path.abspath(str(file)) for file in (*job.input, *job.output)}
    changed = [own[path] for path, before in recorded.items() if path in own and identity(own[path]) != before]
    for path in changed:
        _take_away(job, path, private.get(path))
    return changed


def is_cut_off(job: Any, file: Any) -> bool:
    """Whether the last job that was to make ``file``, an output of ``job``, has not ended, here or elsewhere."""
    plan, path = plan_of(job), _real(file)
    if plan is None:
        return False
    locks = written(plan, lock_set(plan.wanted))
    return any(path in _load(record_of(lock))[1] for lock in locks)


def written(plan: Plan, locks: LockSet) -> list[SoftReadWriteLock]:
    """Return the locks on exclusive outputs of a job."""
    exclusive = set(plan.exclusive.values())
    return [lock for lock in locks.locks if lock.lock_file in exclusive]


def _real(file: Any) -> str:
    """Return the path by which any workflow knows a file; a link in its last part is a file itself."""
    directory, name = os.path.split(str(file))
    return os.path.join(os.path.realpath(directory), name)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _load(record: str) -> tuple[Any, dict[str, Any]]:
    try:
        with open(record, encoding="utf-8", opener=_no_link) as file:
            found = json.load(file)
        return found["generation"], dict(found["before"])
    except (OSError, ValueError, LookupError, TypeError):  # cut off while it was written, so nothing had begun
        return None, {}


def _take_away(job: Any, path: str, private: str | None) -> None:
    aside = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}{SUFFIX}")
    if private is not None and not os.path.lexists(private):
        aside = private
    with suppress(FileNotFoundError):  # removed by the job
        os.rename(path, aside)
        warn(
            job,
            f"{printable(path)} is unfinished and was removed: a job has written to it that then failed. Commands must "
            "write to the path that {output} gives",
        )
    if aside != private:
        with suppress(OSError):
            os.unlink(aside)
        shutil.rmtree(aside, ignore_errors=True)
