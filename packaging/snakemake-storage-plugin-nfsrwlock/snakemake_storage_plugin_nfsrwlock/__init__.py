"""
``storage.nfsrwlock("/nfs/ref/genome.fa")``: shared files by Snakemake's own way, a storage plugin.

An input is copied to scratch under the shared lock, and a copy that is still of the same version is kept. An output is
made on scratch and stored under the exclusive lock, by rename. Nothing of Snakemake is changed.

What it does not do: remove anything that is stored. Snakemake asks a storage for that before each run and after each
failure, and does not say why, so an output would be missing until a job has succeeded. It only counts as removed for
the workflow that asked, until another one is stored.

A separate package only because Snakemake finds storages by this name. Every Snakemake process imports it; the names of
``nfsrwlock`` are loaded when they are first used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.settings import StorageProviderSettingsBase
from snakemake_interface_storage_plugins.storage_object import StorageObjectRead, StorageObjectWrite
from snakemake_interface_storage_plugins.storage_provider import (
    ExampleQuery,
    QueryType,
    StorageProviderBase,
    StorageQueryValidationResult,
)

import nfsrwlock

#: The file by which Snakemake knows the time of a directory.
_TIMESTAMP = ".snakemake_timestamp"
_BELOW_MS = 1_000_000
#: What a Snakefile may set besides the locks' settings.
_FOR_SNAKEMAKE = ("max_requests_per_second", "keep_local", "retrieve")
#: Locks, and what is being made: no part of the data.
_not_data = shutil.ignore_patterns("*.rwlock", ".*.nfsrwlock", ".*.partial")


def _setting(kind: type, text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text, "type": kind})


@dataclass
class StorageProviderSettings(StorageProviderSettingsBase):  # type: ignore[misc]
    """The settings of the locks; one that is ``None`` is as the lock has it by default."""

    timeout: float | None = _setting(float, "Seconds to wait for a lock, inf for ever. Default: a day.", 86400.0)
    stale_threshold: float | None = _setting(float, "The lease, seconds. Default: 90.")
    share: str | None = _setting(str, "'user' or 'group': who takes part in the locks. Default: user.")
    lock_dir: str | None = _setting(str, "The absolute path of a directory of locks. Default: beside the data.")
    heartbeat: str | None = _setting(str, "'thread' or 'process': what sends the heartbeats. Default: thread.")


class StorageProvider(StorageProviderBase):  # type: ignore[misc]
    """Files and directories, named by their absolute paths."""

    def __post_init__(self) -> None:
        given = vars(self.settings or StorageProviderSettings())
        options = {name: value for name, value in given.items() if value is not None and name not in _FOR_SNAKEMAKE}
        try:
            if "stale_threshold" in options:
                options["heartbeat_interval"] = max(float(options["stale_threshold"]), 1.0) / 3
            nfsrwlock.SoftReadWriteLock(self.local_prefix, is_singleton=False, **options)
        except (TypeError, ValueError) as error:
            raise WorkflowError(f"storage.nfsrwlock cannot be set so, {given}: {error}") from None
        #: What each lock is made with.
        self.options: dict[str, Any] = options
        self._is_claimed = False

    def claim(self) -> None:
        """
        Take the directory of copies for the workflows of this working directory.

        :raises WorkflowError: if those of another one have it: they would take half-made outputs for copies
        """
        claim, mine = Path(self.local_prefix, ".workflow"), os.getcwd()
        if self._is_claimed:
            return
        claim.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.symlink(mine, claim)
        if (owner := os.readlink(claim)) != mine:
            raise WorkflowError(
                f"the copies in {os.fspath(self.local_prefix)!r} are those of workflows in {owner!r}: choose another "
                "--local-storage-prefix, or remove that directory if none of them runs"
            )
        self._is_claimed = True

    @classmethod
    def example_queries(cls) -> list[ExampleQuery]:
        """Return what a query looks like."""
        return [ExampleQuery("/nfs/ref/genome.fa", "The absolute path of a file or directory.", QueryType.ANY)]

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        """Return whether it is an absolute path, also before its wildcards are filled in; if not, what it must be."""
        if str(query).startswith(("/", "{")) and str(query) == os.path.normpath(query).replace("//", "/") != "/":
            return StorageQueryValidationResult(query, valid=True)
        reason = "write the absolute path of a file or directory, such as /nfs/ref/genome.fa, without '..', '//' or a "
        return StorageQueryValidationResult(query, valid=False, reason=f"{reason}'/' at its end")

    def use_rate_limiter(self) -> bool:
        """No: it is a file system."""
        return False

    def default_max_requests_per_second(self) -> float:
        """Not used."""
        return 0.0

    def rate_limiter_key(self, query: str, operation: Any) -> None:
        """Not used."""


class StorageObject(StorageObjectRead, StorageObjectWrite):  # type: ignore[misc]
    """One file or directory: the original, which only :meth:`store_object` replaces, and its copy on scratch."""

    query: str
    provider: StorageProvider

    def local_suffix(self) -> str:
        """Return the whole path, so that files that lie together do so on scratch, too."""
        return self.query.lstrip("/")

    def local_path(self) -> Path:
        """
        Return where the copy is.

        :raises WorkflowError: if, by a link or a mount, that is the original: Snakemake deletes what is there; or if
            workflows of another working directory have their copies there
        """
        path: Path = super().local_path()
        for copy, named in zip((path, *path.parents), (Path(self.query), *Path(self.query).parents[:-1]), strict=False):
            with suppress(OSError):
                if os.path.samefile(copy, named):
                    what = f"the copy {os.fspath(copy)!r} would be {os.fspath(named)!r} itself"
                    raise WorkflowError(f"{what}, which Snakemake would delete: choose another --local-storage-prefix")
        self.provider.claim()  # only now: nothing is made among originals
        return path

    async def inventory(self, cache: Any) -> None:
        """Look at nothing in advance."""

    def get_inventory_parent(self) -> None:
        """Not used."""

    def exists(self) -> bool:
        """Return whether the original is there and does not count as removed."""
        note = self._removed()
        with suppress(OSError):
            # What a job has left on scratch is yet to be removed, too, and Snakemake removes only what exists.
            if note.read_text() == _identity(self.query) and not self.local_path().exists():
                text = f"{self.print_query} counts as removed here until another one is stored, says {note}"
                self.provider.logger.info(text)
                return False
        return os.path.exists(self.query)

    def mtime(self) -> float:
        """Return when the original was made; of a directory, what Snakemake has noted in it."""
        noted = os.path.join(self.query, _TIMESTAMP)
        return os.stat(noted if os.path.exists(noted) else self.query).st_mtime

    def size(self) -> int:
        """Return the bytes of a file, 0 for a directory."""
        return 0 if os.path.isdir(self.query) else os.path.getsize(self.query)

    def retrieve_object(self) -> None:
        """
        Copy the original under its shared lock, unless the copy is of this version already.

        The copy's time tells: half of the original's, so that Snakemake, which asks only if the original is newer, asks
        each time, and below the millisecond the generation.
        """
        copy, options = self.local_path(), self.provider.options
        # The original is not made here: if it is not there, looking at it raises.
        with nfsrwlock.fetch(self.query, lambda _: os.stat(self.query), **options) as held:
            half = os.stat(self.query).st_mtime_ns // 2
            stamp = half - half % _BELOW_MS + (held.generation or 0) % _BELOW_MS

            def build(place: Path) -> None:
                _copy(self.query, place)
                for path in (place, place / _TIMESTAMP):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        os.utime(path, ns=(stamp, stamp))
                held.check()

            def is_current(place: Path) -> bool:
                return os.stat(place).st_mtime_ns == stamp

            # Of the processes on a node one makes the copy.
            nfsrwlock.fetch(copy, build, is_valid=is_current, **{**options, "lock_dir": ""}).release()

    def cleanup(self) -> None:
        """Remove the lock on the copy, which Snakemake removes next."""
        with suppress(OSError, nfsrwlock.LockError):
            nfsrwlock.prune(self.local_path(), unused_s=0, lock_dir="")

    def store_object(self) -> None:
        """Replace the original by what the job has made, under the exclusive lock and by rename."""
        stored: list[Path] = []

        def build(place: Path) -> None:
            _copy(self.local_path(), place)
            stored.append(place)

        os.makedirs(os.path.dirname(self.query), exist_ok=True)
        nfsrwlock.fetch(self.query, build, is_valid=lambda _: bool(stored), **self.provider.options).release()

    def remove(self) -> None:
        """Remove what a job has left on scratch, and let the original count as removed, here."""
        copy = self.local_path()
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(OSError):
            copy.unlink()
        note = self._removed()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(_identity(self.query))
        text = f"{self.print_query} stays until another one is stored: storage.nfsrwlock removes nothing"
        self.provider.logger.info(text)

    def _removed(self) -> Path:
        name = hashlib.sha256(os.fsencode(self.query)).hexdigest()
        # Not below the prefix: that may be emptied, be a node's own, or be another one in the next run.
        return Path(".snakemake", "nfsrwlock-removed", name)


def _identity(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_ino} {status.st_mtime_ns}"


def _copy(source: str | os.PathLike[str], place: Path) -> None:
    if not os.path.isdir(source):
        shutil.copy2(source, place)
        return
    shutil.copytree(source, place, ignore=_not_data)
    for directory, _, _ in os.walk(place):  # it must be possible to remove it
        os.chmod(directory, os.stat(directory).st_mode | 0o700)
