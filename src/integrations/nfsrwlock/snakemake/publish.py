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
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Self

from snakemake.common import async_run
from snakemake.io import IOFile, is_flagged

from nfsrwlock.snakemake import unfinished
from nfsrwlock.snakemake.flags import is_exclusive
from nfsrwlock.snakemake.messages import LockingError, job_name, say, warn
from nfsrwlock.snakemake.plan import Plan
from nfsrwlock.text import printable
from nfsrwlock_core import LockSet

#: The file by which Snakemake knows the time of a directory.
_TIMESTAMP: Final = ".snakemake_timestamp"
_OLD: Final = ".nfsrwlock-old."
_TRIES: Final = 3
_OUTPUT, _PARAMS = 2, 3  # of run_wrapper's arguments
#: Flags of outputs that are not there, or need not be, when the job's work is done.
_NOT_YET_THERE: Final = ("touch", "temp", "pipe", "service", "storage_object")


class Workspace:
    """
    The private places of one run of a job, a block under its locks, which are held; none without exclusive outputs.

    At the end of the block they are removed, but not those with an old output that is nowhere else. If the job has
    failed, so is what it wrote to the real paths of its outputs; with ``--keep-incomplete``, the private directories
    stay then.
    """

    def __init__(self, job: Any, plan: Plan, locks: LockSet) -> None:
        self._job = job
        self._plan = plan
        self._locks = locks
        self._directories: dict[str, str] = {}
        #: Private directories of earlier runs, with old outputs that are nowhere else.
        self._remnants: list[str] = []
        names = (hashlib.sha256(os.fsencode(lock)).hexdigest()[:8] for lock in locks.paths_write)
        self._mine = "-".join(sorted(names))[:80]
        #: By path in a private directory: the exclusive output that is made there.
        self._outputs: dict[str, Any] = {}
        try:
            for index in plan.exclusive:
                file = job.output[index]
                self._outputs[self._private_path(file)] = file
            unfinished.remember(job, plan, locks)
        except OSError as error:
            self.__exit__()
            raise LockingError(
                f"{job_name(job)} cannot make a private directory for its exclusive outputs: {error}"
            ) from None

    def _private_path(self, final: str) -> str:
        parent, name = os.path.split(final)
        if parent not in self._directories:
            place = unfinished.private_place(final)
            try:
                self._directories[parent] = self._private_directory(place)
            except PermissionError:  # another member of the group has left one here
                self._directories[parent] = self._private_directory(f"{place}.{os.geteuid()}")
        return os.path.join(self._directories[parent], name)

    def _private_directory(self, place: str) -> str:
        directory = os.path.join(place, f"{self._mine}.{secrets.token_hex(8)}")
        for left in reversed(range(_TRIES)):
            try:
                os.makedirs(directory)
                break
            except FileNotFoundError:  # a holder before us, whose lock was lost, has just left
                if not left:
                    raise
        self._remove_leftovers(place, directory)
        return directory

    def _remove_leftovers(self, place: str, mine: str) -> None:
        # Of those who held these same locks before us; they hold them no more.
        for entry in os.listdir(place):
            directory = os.path.join(place, entry)
            if entry.rpartition(".")[0] == self._mine and directory != mine:
                if _holds_old_outputs(directory):
                    self._remnants.append(directory)
                    self._tell_of_old_outputs(directory)
                else:
                    say(self._job, f"removing what an earlier run left unfinished: {printable(directory)}")
                    shutil.rmtree(directory, ignore_errors=True)

    def redirected(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """
        Return the arguments of ``run_wrapper`` as the job will see them: exclusive outputs in their private places.

        So are params that were made from them, such as a prefix. What does not name a private directory when it is made
        from the private outputs (a sample's name, say) is left as it is.
        """
        if not self._outputs:
            return args
        outputs, params = args[_OUTPUT], args[_PARAMS]
        private = dict(zip(self._plan.exclusive, self._outputs, strict=True))
        counter = iter(range(len(outputs)))
        outputs = type(outputs)(toclone=outputs, custom_map=lambda file: private.get(next(counter), file))
        job = self._job
        moved = iter(job.rule.expand_params(job.wildcards_dict, job.input, outputs, job)[0])
        params = type(params)(toclone=params, custom_map=lambda value: self._located(value, next(moved)))
        return (*args[:_OUTPUT], outputs, params, *args[_PARAMS + 1 :])

    def _located(self, value: Any, moved: Any) -> Any:
        if isinstance(value, list | tuple) and type(value) is type(moved) and len(value) == len(moved):
            return type(value)(map(self._located, value, moved))
        if isinstance(value, dict) and isinstance(moved, dict):
            return {key: self._located(item, moved.get(key, item)) for key, item in value.items()}
        is_private = isinstance(moved, str | os.PathLike) and any(
            directory in os.fsdecode(moved) for directory in self._directories.values()
        )
        return moved if is_private else value

    # When the job has succeeded

    def publish(self) -> None:
        """Move the outputs into place: none of them if one is missing, or not what the rule says."""
        if not self._outputs:
            return
        self._examine()
        check = self._locks.check
        check()
        for lock in unfinished.written(self._plan, self._locks):
            unfinished.forget(lock)
        undo: list[tuple[str, str]] = []

        def rename(source: str, target: str) -> None:
            check()
            os.rename(source, target)
            undo.append((target, source))

        def set_aside(final: str) -> None:
            if os.path.lexists(final):
                aside = f"{_OLD}{len(undo)}"
                rename(final, os.path.join(self._directories[os.path.dirname(final)], aside))

        try:
            others = self._others()
            for path, final in others:
                set_aside(final)
                rename(path, final)
            if len(self._outputs) > 1 or not self._replace_in_one_step():
                for final in self._outputs.values():  # the old ones first: there is never one of them beside a new one
                    set_aside(final)
                for private, final in self._outputs.items():
                    rename(private, final)
        except BaseException:
            for target, source in reversed(undo):
                check()  # not ours any more: whoever has the lock now decides what is there
                with suppress(OSError):
                    os.rename(target, source)
            raise
        for path, final in others:
            self._tell_of_other(path, final)
        for directory in (*self._remnants, *self._directories.values()):  # each old output has its successor
            shutil.rmtree(directory, ignore_errors=True)

    def _examine(self) -> None:
        for private, final in self._outputs.items():
            if not os.path.isdir(os.path.dirname(private)):
                raise LockingError(
                    f"what {job_name(self._job)} made of its output {final!r} is gone. Either "
                    f"{os.path.dirname(final)!r} was removed or replaced meanwhile: if it is an exclusive "
                    "output itself, let both rules name one lock, by lock=. Or the code of the rule has changed the "
                    "working directory and not gone back"
                )
            if is_flagged(final, "touch") and not os.path.lexists(private):
                with open(private, "x", encoding="ascii"):  # follows no link that came meanwhile
                    pass
            if not os.path.lexists(private):
                raise LockingError(
                    f"{job_name(self._job)} has not made its output {final!r}. An exclusive output must be "
                    "written to the path that {output} (or snakemake.output) gives, which is a private one: here "
                    f"{private!r}. A name beside it must be made from that path, not from the input's"
                )
        self._refuse_links()
        for private, final in self._outputs.items():
            if os.path.isdir(private) != final.is_directory:
                problem = "no directory, although marked" if final.is_directory else "a directory; mark it"
                raise LockingError(f"the output {final!r} is {problem} directory()")
            _touch(private, is_directory=final.is_directory)
        self._examine_as_snakemake_does()

    def _refuse_links(self) -> None:
        # A relative link was made for the private directory or for the real one; only the second will do.
        for parent, directory in self._directories.items():
            for path in _links(directory):
                target = os.readlink(path)
                way = os.path.normpath(os.path.join(os.path.relpath(os.path.dirname(path), directory), target))
                now, then = (os.path.realpath(os.path.join(place, way)) for place in (directory, parent))
                real = os.path.join(os.path.realpath(directory), "")
                if not way.startswith((os.sep, os.pardir)) and os.path.lexists(os.path.join(directory, way)):
                    then = now  # it moves together with what it leads to
                is_lost = (os.path.isabs(target) and now.startswith(real)) or (now != then and os.path.exists(now))
                if is_lost or (path in self._outputs and not os.path.exists(then)):
                    name = os.path.join(parent, os.path.relpath(path, directory))
                    raise LockingError(
                        f"{job_name(self._job)} has made {name!r} a symbolic link to {target!r}, which would lead "
                        "nowhere, or elsewhere, from there: the job makes its outputs in a private directory, here "
                        f"{directory!r}. Let the link hold an absolute path that is not in this directory, as "
                        'ln -s "$(realpath {input})" {output} does'
                    )

    def _examine_as_snakemake_does(self) -> None:
        # What it will find fault with after the job must not have been published by then.
        files = []
        for file in self._job.output:
            if not is_exclusive(file) and not any(is_flagged(file, kind) for kind in _NOT_YET_THERE):
                if not os.path.lexists(file):
                    raise LockingError(f"{job_name(self._job)} has not made its output {str(file)!r}")
                files.append(file)
        for private, final in self._outputs.items():
            file = IOFile(private, rule=self._job.rule)
            file.clone_flags(final)
            files.append(file)
        async_run(self._job.dag.handle_ensure(self._job, files))
        async_run(self._job.dag.check_output_mtime(self._job, files[-len(self._outputs) :]))

    def _replace_in_one_step(self) -> bool:
        ((private, final),) = self._outputs.items()
        self._locks.check()
        if _is_directory(final) or (final.is_directory and os.path.lexists(final)):
            return _exchange(private, final)
        os.replace(private, final)
        return True

    def _others(self) -> list[tuple[str, str]]:
        # What a program writes beside its output (an index, a log) would be beside it without the flag, too. It comes
        # first, so that the outputs are there only if all is.
        found = []
        for parent, directory in self._directories.items():
            for name in sorted(os.listdir(directory)):
                path, final = os.path.join(directory, name), os.path.join(parent, name)
                if path not in self._outputs:
                    kept = os.path.join(parent, f".{name}.{secrets.token_hex(4)}")
                    found.append((path, kept if _is_directory(final) else final))
        return found

    def _tell_of_other(self, path: str, final: str) -> None:
        name = os.path.basename(path)
        is_renamed = os.path.basename(final) != name
        (warn if is_renamed else say)(
            self._job,
            f"{job_name(self._job)} also wrote {printable(final)}, which is not among its outputs"
            + (f"; there is a directory {printable(name)} already" if is_renamed else ""),
        )

    # In any case

    def consequence(self) -> str:
        """Say what became of the outputs of a job that lost its locks."""
        if any(map(_holds_old_outputs, self._directories.values())):
            return "It was cut off while it replaced its outputs; some are missing now"
        return "Nothing was published"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None = None, *_: object) -> None:
        if exc_type is not None:
            private = {os.path.abspath(final): path for path, final in self._outputs.items()}
            unfinished.undo(self._job, self._plan, self._locks, private)
        for directory in self._directories.values():
            if exc_type is not None and self._job.rule.workflow.execution_settings.keep_incomplete:
                kept = f"the unfinished outputs of {job_name(self._job)} are kept until its next run"
                say(self._job, f"{kept}: {printable(directory)}")
            elif _holds_old_outputs(directory):
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


def _links(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(entry.path)


def _holds_old_outputs(directory: str) -> bool:
    try:
        return any(name.startswith(_OLD) for name in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # who knows


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


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
