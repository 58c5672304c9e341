"""
Exclusive outputs: made in a private directory beside their place, published by rename.

``/nfs/ref/genome.mmi`` is written as ``/nfs/ref/.genome.mmi.nfsrwlock/<token>/genome.mmi``. The private directory is
new for each run, so that the late writes of a job that was left behind never meet a later one's. Whoever holds the
lock removes what earlier holders have left there.

What it does not do: several outputs are not replaced in one step. While they are replaced, those that are still to come
are missing, never old: an old part beside a new one would look whole. If the process is killed in between, or loses its
lock, they stay missing, so that they are made anew; until they are, the old ones stay in the private directory.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from snakemake.io import IOFile, is_flagged

from nfsrwlock.snakemake.cache import run_async
from nfsrwlock.snakemake.messages import LockingError, job_name, say, warn
from nfsrwlock.snakemake.plan import Plan
from nfsrwlock.text import printable

_PLACE_CHARS: Final = 120
#: The file by which Snakemake knows the time of a directory.
_TIMESTAMP: Final = ".snakemake_timestamp"
_OLD: Final = ".nfsrwlock-old."
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class _Output:
    index: int
    file: Any
    final: str
    private: str


class Workspace:
    """
    The private places of one run of a job, under its locks.

    :param job: with exclusive outputs
    :raises LockingError: if they cannot be made
    """

    def __init__(self, job: Any, plan: Plan) -> None:
        self._job = job
        self._directories: dict[str, str] = {}
        #: Private directories of earlier runs, with old outputs that are nowhere else.
        self._remnants: list[str] = []
        names = {lock: hashlib.sha256(os.fsencode(lock)).hexdigest()[:8] for lock in plan.locks.paths_write}
        self._mine = "-".join(sorted(names.values()))[:80]
        self._outputs: list[_Output] = []
        try:
            for index in plan.exclusive:
                self._outputs.append(self._output(index, job.output[index]))
        except OSError as error:
            self.discard()
            raise LockingError(
                f"{job_name(job)} cannot make a private directory for its exclusive outputs: {error}"
            ) from None

    def _output(self, index: int, file: Any) -> _Output:
        final = str(file)
        parent, name = os.path.split(final)
        if parent not in self._directories:
            place = os.path.join(parent, _place_of(name))
            try:
                self._directories[parent] = self._private_directory(place)
            except PermissionError:  # another member of the group has left one here
                self._directories[parent] = self._private_directory(f"{place}.{os.geteuid()}")
        return _Output(index, file, final, os.path.join(self._directories[parent], name))

    def _private_directory(self, place: str) -> str:
        directory = os.path.join(place, f"{self._mine}.{secrets.token_hex(8)}")
        for left in reversed(range(_TRIES)):
            os.makedirs(place, exist_ok=True)
            self._remove_leftovers(place)
            try:
                os.mkdir(directory)
                break
            except FileNotFoundError:  # a holder before us, whose lock was lost, has just left
                if not left:
                    raise
        return directory

    def _remove_leftovers(self, place: str) -> None:
        # Of those who held these same locks before us; they hold them no more.
        for entry in os.listdir(place):
            if entry.rpartition(".")[0] == self._mine:
                directory = os.path.join(place, entry)
                if _holds_old_outputs(directory):
                    if directory not in self._remnants:
                        self._remnants.append(directory)
                        self._tell_of_old_outputs(directory)
                else:
                    say(self._job, f"removing what an earlier run left unfinished: {printable(directory)}")
                    shutil.rmtree(directory, ignore_errors=True)

    def redirected(self, files: Any) -> Any:
        """Return ``files``, the job's outputs as it will see them, with the exclusive ones in their private places."""
        private = {output.index: output.private for output in self._outputs}
        counter = iter(range(len(files)))
        return type(files)(toclone=files, custom_map=lambda file: private.get(next(counter), file))

    # When the job has succeeded

    def publish(self, check: Callable[[], None]) -> None:
        """
        Move the outputs into place.

        :param check: raises if the locks are not certain; called before each rename
        :raises LockingError: if an output is missing or not what the rule says; then nothing was published
        """
        self._examine()
        for output in self._outputs:
            _touch(output.private, is_directory=bool(output.file.is_directory))
        check()
        self._publish_the_rest(check)
        if len(self._outputs) > 1 or not self._replace_in_one_step(self._outputs[0], check):
            self._replace_one_by_one(check)
        for directory in (*self._remnants, *self._directories.values()):  # each old output has its successor
            shutil.rmtree(directory, ignore_errors=True)

    def _examine(self) -> None:
        for output in self._outputs:
            if not os.path.isdir(os.path.dirname(output.private)):
                raise LockingError(
                    f"what {job_name(self._job)} made of its output {output.final!r} is gone. Either "
                    f"{os.path.dirname(output.final)!r} was removed or replaced meanwhile: if it is an exclusive "
                    "output itself, let both rules name one lock, by lock=. Or the code of the rule has changed the "
                    "working directory and not gone back",
                )
            if is_flagged(output.file, "touch") and not os.path.lexists(output.private):
                with open(output.private, "x", encoding="ascii"):  # follows no link that came meanwhile
                    pass
            if not os.path.lexists(output.private):
                raise LockingError(
                    f"{job_name(self._job)} has not made its output {output.final!r}. An exclusive output must be "
                    "written to the path that {output} (or snakemake.output) gives, which is a private one: here "
                    f"{output.private!r}. A name beside it must be made from that path, not from the input's",
                )
            if os.path.isdir(output.private) != bool(output.file.is_directory):
                raise LockingError(
                    f"the output {output.final!r} is "
                    + ("no directory, although marked directory()" if output.file.is_directory else "a directory")
                    + ("" if output.file.is_directory else "; mark it directory()"),
                )
        self._ensure()

    def _ensure(self) -> None:
        ensured = []
        for output in self._outputs:
            if is_flagged(output.file, "ensure"):
                file = IOFile(output.private, rule=self._job.rule)
                file.clone_flags(output.file)
                ensured.append(file)
        if ensured:
            run_async(self._job.rule.workflow, self._job.dag.handle_ensure(self._job, ensured))

    def _replace_in_one_step(self, output: _Output, check: Callable[[], None]) -> bool:
        check()
        is_directory, was_directory = bool(output.file.is_directory), _is_directory(output.final)
        if was_directory:
            return is_directory and _exchange(output.private, output.final)
        if is_directory and os.path.lexists(output.final):
            return False
        os.replace(output.private, output.final)
        return True

    def _replace_one_by_one(self, check: Callable[[], None]) -> None:
        undo: list[tuple[str, str]] = []

        def rename(source: str, target: str) -> None:
            check()
            os.rename(source, target)
            undo.append((target, source))

        try:
            for output in self._outputs:  # the old ones first: there is never one of them beside a new one
                if os.path.lexists(output.final):
                    rename(output.final, _aside(output))
            for output in self._outputs:
                rename(output.private, output.final)
        except BaseException:
            for source, target in reversed(undo):
                check()  # not ours any more: whoever has the lock now decides what is there
                with suppress(OSError):
                    os.rename(source, target)
            raise

    def _publish_the_rest(self, check: Callable[[], None]) -> None:
        # What a program writes beside its output (an index, a log) would be beside it without the flag, too. It comes
        # first, so that the outputs are there only if all is.
        for parent, directory in self._directories.items():
            for name in sorted(os.listdir(directory)):
                path, final = os.path.join(directory, name), os.path.join(parent, name)
                if any(path == output.private for output in self._outputs):
                    continue
                check()
                if _is_directory(final):
                    kept = os.path.join(parent, f".{name}.{secrets.token_hex(4)}")
                    os.rename(path, kept)
                    warn(
                        self._job,
                        f"{job_name(self._job)} also wrote {printable(name)}, which is not among its outputs; it was "
                        f"moved to {printable(kept)}, for there is a directory {printable(final)} already",
                    )
                    continue
                os.rename(path, final)
                say(self._job, f"{job_name(self._job)} also wrote {printable(final)}, which is not among its outputs")

    # In any case

    def consequence(self) -> str:
        """Say what became of the outputs of a job that lost its locks."""
        if any(map(_holds_old_outputs, self._directories.values())):
            return "It was cut off while it replaced its outputs; some are missing now"
        return "Nothing was published"

    def discard(self) -> None:
        """Remove the private directories, but not those with an old output that is nowhere else."""
        for directory in self._directories.values():
            if _holds_old_outputs(directory):
                self._tell_of_old_outputs(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)
        for directory in (*self._directories.values(), *self._remnants):
            with suppress(OSError):
                os.rmdir(os.path.dirname(directory))  # others with another lock may be in it

    def _tell_of_old_outputs(self, directory: str) -> None:
        warn(
            self._job,
            f"{job_name(self._job)} was cut off while it replaced its outputs. Until new ones are made, those old ones "
            f"that are missing are in {printable(directory)}",
        )

    def keep(self) -> None:
        """Say where the unfinished outputs of a failed job are, for ``--keep-incomplete``."""
        for directory in self._directories.values():
            say(
                self._job,
                f"the unfinished outputs of {job_name(self._job)} are kept until its next run: {printable(directory)}",
            )


def _place_of(name: str) -> str:
    if len(name) > _PLACE_CHARS:
        name = name[:_PLACE_CHARS] + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.nfsrwlock"


def _aside(output: _Output) -> str:
    directory, name = os.path.split(output.private)
    return os.path.join(directory, f"{_OLD}{output.index}.{name}"[:250])


def _holds_old_outputs(directory: str) -> bool:
    try:
        return any(name.startswith(_OLD) for name in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # who knows


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _touch(path: str, *, is_directory: bool) -> None:
    # As Snakemake does after a job: what was unpacked from an archive may look older than the input.
    if is_directory and not os.path.islink(path):
        path = os.path.join(path, _TIMESTAMP)
        with suppress(FileExistsError), open(path, "x", encoding="ascii"):  # follows no link
            pass
    os.utime(path, follow_symlinks=False)


def _exchange(one: str, other: str) -> bool:
    """Let two directories change places in one step, where the system can do that (Linux, not on NFS)."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0)
