"""The flags that a workflow's author writes. A flag says what is wanted; what comes of it is in the plan of a job."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from os import PathLike, fsdecode, fspath
from typing import Any, Final, Unpack

from snakemake.exceptions import WorkflowError
from snakemake.io import AnnotatedString, IOFile, _IOFile, flag

from nfsrwlock.snakemake.settings import Options, checked
from nfsrwlock_core import LockSet

#: Under these names the flags are kept with the file.
READ: Final = "nfsrwlock_read"
WRITE: Final = "nfsrwlock_write"
PERMIT: Final = "nfsrwlock_permit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a flag says about a file, or :func:`limited` about a rule."""

    #: The path that names the lock, with wildcards; ``None``: the file's own.
    lock: str | None
    #: How many may hold it shared at a time; 0: no limit.
    at_most: int = 0
    #: Whether a job may be skipped whose outputs somebody else has made meanwhile.
    once: bool = False
    #: How it is locked.
    options: Options


def shared_read(
    value: Any, *, at_most: int | None = None, lock: str | PathLike[str] | None = None, **options: Unpack[Options]
) -> Any:
    """
    Mark an input: while a job with this input runs, it holds the shared lock on it.

    Takes what an input may be: a path, a list, a function of the wildcards, a part of ``expand`` or ``multiext``, an
    output of another rule. Can be combined with ``ancient``, ``unpack`` and others, and be used in ``inputflags:``.

    :param at_most: how many jobs, on all hosts, may hold it so at a time; all must state the same. ``None``: no limit
    :param lock: one lock for all of these files, named by this path; wildcards are filled in. Default: each file's own.
        To lock files in a directory that is an exclusive output, name the directory here
    :param timeout: seconds that a job waits for its locks, ``inf`` for ever; default: a day
    :param stale_threshold: the lease, seconds; default: 90
    :param share: ``"user"`` or ``"group"``: who takes part in the lock
    :param lock_dir: a directory to keep the lock in, for data in directories that cannot be written
    :param heartbeat: ``"process"`` for Python code in ``run:`` that holds the GIL for longer than a lease
    :returns: the same, flagged; ``value`` itself is not changed
    :raises WorkflowError: if an option makes no sense
    """
    limit = 0 if at_most is None else _checked_limit("shared_read", at_most)
    name = None if lock is None else _path("shared_read: lock", lock)
    return _flagged(value, READ, Wish(lock=name, at_most=limit, options=checked("shared_read", options)))


def limited(path: str | PathLike[str], permits: int, **options: Unpack[Options]) -> Callable[[Any], int]:
    """
    Let each job of a rule hold a permit while it runs, of which there are so many, on all hosts and in all workflows.

    It stands in ``resources:``, under any name: ``resources: licence=limited("/nfs/licences/tool", 4)``. To Snakemake
    that is 1 of this resource.

    :param path: what the permits are for, wildcards are filled in; it need not exist
    :param permits: how many may be held at a time; all must state the same
    :raises WorkflowError: if an option makes no sense

    The other parameters are those of :func:`shared_read`.
    """

    def one(_: Any) -> int:
        return 1

    limit, lock = _checked_limit("limited", permits), _path("limited: path", path)
    one.flags = {PERMIT: Wish(lock=lock, at_most=limit, options=checked("limited", options))}  # type: ignore[attr-defined]
    return one


def permits_of(rule: Any) -> list[Wish]:
    """Return the permits that each job of a rule needs."""
    _, resources = rule.ruleinfo.resources or ((), {})
    return [wish for resource in resources.values() if (wish := wish_of(resource, PERMIT)) is not None]


def exclusive(
    value: Any, *, once: bool = False, lock: str | PathLike[str] | None = None, **options: Unpack[Options]
) -> Any:
    """
    Mark an output: the job that makes it holds the exclusive lock, and it appears by an atomic rename.

    In the job, ``{output}`` is a path of the same name in a private directory beside the real one, and so are
    ``params`` that are made from it. What the job wrote there is moved into place when the job has succeeded and its
    lock is certain. If it fails, what was there before stays as it is.

    :param once: skip the job if, once the lock is held, somebody else has made the outputs meanwhile and they are
        newer than the inputs, whatever the code and params of the other one. Needs every output of the rule to be
        exclusive
    :raises WorkflowError: if an option makes no sense

    The other parameters are those of :func:`shared_read`.
    """
    if not isinstance(once, bool):
        raise WorkflowError(f"exclusive: once must be True or False, not {once!r}")
    name = None if lock is None else _path("exclusive: lock", lock)
    return _flagged(value, WRITE, Wish(lock=name, once=once, options=checked("exclusive", options)))


def _checked_limit(where: str, limit: Any) -> int:
    try:
        return LockSet(limited={"any": limit}).limited.popitem()[1]
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"{where}: {error}") from None


def _path(what: str, path: Any) -> str:
    if not isinstance(path, str | PathLike) or not fspath(path):
        raise WorkflowError(f"{what} must be a path, not {path!r}")
    return fsdecode(path)


def _flagged(value: Any, name: str, wish: Wish, *, keeps: bool = False) -> Any:
    """Return a flagged copy of ``value``; if it ``keeps`` them, a file that has a flag of this name keeps its own."""
    if isinstance(value, Mapping):
        return {key: _flagged(item, name, wish, keeps=keeps) for key, item in value.items()}
    function = value if callable(value) else getattr(value, "callable", None)
    if function is None and not isinstance(value, str | PathLike):
        # What is neither a path nor several is for Snakemake to refuse.
        return [_flagged(item, name, wish, keeps=keeps) for item in value] if isinstance(value, Iterable) else value
    if keeps and wish_of(value, name) is not None:
        return value
    value = _own_copy(value)
    if function is not None:
        if name == WRITE:
            raise WorkflowError("exclusive: an output cannot be a function, in Snakemake only an input can")

        # Snakemake hands a function's flags on to the files that it returns, but not if they are to be unpacked.
        @wraps(function)  # Snakemake looks at the parameters
        def flagged(*args: Any, **kwargs: Any) -> Any:
            return _flagged(function(*args, **kwargs), name, wish, keeps=True)

        if callable(value):
            value = flagged
        else:
            value.callable = flagged
    return flag(value, name, wish)


def _own_copy(value: Any) -> Any:
    # flag() changes its argument in place, and what is flagged already may be another rule's output, whose other
    # consumers must not inherit the flag.
    if isinstance(value, _IOFile):
        other = IOFile(value._file, rule=value.rule)
        other.set_flags(dict(value.flags))
        return other
    if isinstance(value, AnnotatedString):
        other = copy.copy(value)
        other.flags = dict(value.flags)
        return other
    return value


def wish_of(file: Any, name: str) -> Wish | None:
    """Return what a flag (:data:`READ`, :data:`WRITE`, :data:`PERMIT`) says about a file or a resource, if any does."""
    flags = getattr(file, "flags", None)
    wish = flags.get(name) if flags else None
    return wish if isinstance(wish, Wish) else None


def is_exclusive(file: Any) -> bool:
    """Whether an output is marked as exclusive."""
    return wish_of(file, WRITE) is not None


def is_once(file: Any) -> bool:
    """Whether the job that makes this output may be skipped if somebody else has made it."""
    wish = wish_of(file, WRITE)
    return wish is not None and wish.once
