"""
What a lock is made with: arguments first, Dask's configuration (``nfsrwlock:``) for what they leave open.

A name with a slash, or a path object, is a path. Any other name is one as ``distributed.Lock`` knows it and stands for
nothing on disk; its lock lives below the directory that Dask's configuration calls ``nfsrwlock.root``.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict, cast, get_args
from urllib.parse import quote

import dask.config
from dask.utils import parse_timedelta

from nfsrwlock.options import refuse_unknown
from nfsrwlock_core import LockSet, lock_home

Mode = Literal["read", "write"]
OnContention = Literal["block", "reschedule", "secede"]
#: ``auto``: a process on Dask's workers, whose tasks may hold the GIL for longer than a lease; a thread elsewhere.
Heartbeat = Literal["auto", "thread", "process"]

Time = float | str | timedelta


class Options(TypedDict, total=False):
    """What a :class:`~nfsrwlock.dask.Lock` is made with beside its name, times in all of Dask's forms."""

    mode: Mode
    timeout: Time | None
    on_contention: OnContention | None
    heartbeat: Heartbeat | None
    heartbeat_interval: Time | None
    stale_threshold: Time | None
    poll_interval: Time | None
    share: Literal["user", "group"] | None
    lock_dir: str | os.PathLike[str] | None


DEFAULTS: Final[dict[str, Any]] = {
    "root": None,
    "lock-dir": None,
    "share": "user",
    "heartbeat": "auto",
    "heartbeat-interval": "30s",
    "stale-threshold": None,
    "poll-interval": "250ms",
    "on-contention": "block",
    "reschedule-after": "200ms",
    "eviction-timeout": "10s",
}
dask.config.update_defaults({"nfsrwlock": DEFAULTS})
#: The core adds a suffix of its own; names in a directory have 255 bytes on the file systems that matter.
_NAME_MAX_BYTES: Final = 180


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    What two locks must agree on to be equal, and what travels with a lock; nothing of it depends on where it arrives.

    Times are seconds; the names are those of :class:`nfsrwlock.SoftReadWriteLock`.
    """

    path: str
    lock_path: str = ""
    #: Empty: the lock lives beside the path, whatever the environment says where it arrives.
    lock_dir: str
    mode: Mode
    #: How many may hold it shared at a time; 0: no limit.
    at_most: int = 0
    timeout: float
    heartbeat: Heartbeat
    heartbeat_interval: float
    stale_threshold: float | None
    poll_interval: float
    share: Any
    on_contention: OnContention
    reschedule_after: float

    def core_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that every lock class of the core takes."""
        names = ("heartbeat_interval", "stale_threshold", "poll_interval", "share", "lock_dir")
        return {name: getattr(self, name) for name in names}

    def lock_set(self, heartbeat: Literal["thread", "process"] = "thread") -> LockSet:
        """Return the lock as a set of one, which has resolved the path."""
        wanted: dict[str, Any] = {"limited": {self.path: self.at_most}} if self.at_most else {self.mode: self.path}
        return LockSet(**wanted, **self.core_arguments(), heartbeat=heartbeat)

    def at(self, path: str) -> Settings:
        """Return the same settings for another path; raise what is wrong with them."""
        probe = replace(self, path=path).lock_set()  # checks the values, and knows where the lock lives
        return replace(self, path=next(iter(probe.modes)), lock_path=probe.locks[0].lock_path)


def settings_of(path: str, options: Options) -> Settings:
    """Return the settings, or raise what is wrong with them. ``None`` stands for what Dask's configuration says."""
    refuse_unknown(options, "Lock", sorted(Options.__annotations__))

    def chosen(name: str) -> Any:
        given = options.get(name)
        return configured(name.replace("_", "-")) if given is None else given

    timeout, stale, directory = options.get("timeout"), chosen("stale_threshold"), options.get("lock_dir")
    try:
        home = lock_home(configured_directory("lock-dir") if directory is None else directory)
        return Settings(
            path=path,
            lock_dir="" if home is None else os.path.abspath(home),
            mode=_one_of("mode", options.get("mode", "write"), Mode),
            timeout=-1.0 if timeout is None else limit("timeout", timeout),
            heartbeat=_one_of("heartbeat", chosen("heartbeat"), Heartbeat),
            heartbeat_interval=seconds("heartbeat_interval", chosen("heartbeat_interval")),
            stale_threshold=None if stale is None else seconds("stale_threshold", stale),
            poll_interval=seconds("poll_interval", chosen("poll_interval")),
            share=chosen("share"),
            on_contention=_one_of("on_contention", chosen("on_contention"), OnContention),
            reschedule_after=configured_time("reschedule-after"),
        ).at(path)
    except (TypeError, ValueError) as error:
        # It names an argument; whoever gave none must learn where the value comes from.
        own = {key: value for key in DEFAULTS if (value := configured(key)) != DEFAULTS[key]}
        if own:
            said = ", ".join(f"nfsrwlock.{key}: {value!r}" for key, value in own.items())
            error.add_note(f"Where the lock's arguments leave it open, Dask's configuration counts, which says {said}")
        raise


def path_of(name: Any) -> str:
    """Return the path that ``name`` stands for."""
    if isinstance(name, os.PathLike) or (isinstance(name, str | bytes) and os.sep in os.fsdecode(name)):
        return os.fsdecode(name)
    if name in ("", b""):
        raise ValueError("a lock's name must not be empty")
    value = _plain(name)
    # What is no string has a file name that no string has, for "." is quoted.
    file_name = encoded(value) if isinstance(value, str) else f"{type(value).__name__}.{encoded(repr(value))}"
    root = configured_directory("root")
    if root is None:
        raise ValueError(
            f"the lock's name {name!r} is no path, and there is no directory for such locks; write ./{name} if a file "
            "is meant, or let 'nfsrwlock.root' in Dask's configuration (DASK_NFSRWLOCK__ROOT) name a directory that "
            "all workers share"
        )
    return os.path.join(root, file_name)


def _plain(name: Any) -> Any:
    # Whatever else there is may say something different of itself in each process. A list arrives at distributed's
    # scheduler as a tuple.
    if isinstance(name, tuple | list):
        return tuple(map(_plain, name))
    if name is None or type(name) in (str, bytes, bool, int, float):
        return name
    raise TypeError(
        "a lock's name must be a string, a path, a number, bytes, or a tuple or list of these, not "
        f"{type(name).__name__}"
    )


def encoded(name: str) -> str:
    """Return a file name that stands for ``name`` and for no other."""
    text = quote(name, safe="", errors="surrogateescape").replace(".", "%2E")
    if len(text) <= _NAME_MAX_BYTES:
        return text
    # No other name gives this one: "~" is not quoted, but what is this long is never taken as it is.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{text[: _NAME_MAX_BYTES - len(digest) - 1]}~{digest}"


def configured(key: str) -> Any:
    """Return what Dask's configuration says now."""
    return dask.config.get(f"nfsrwlock.{key}", DEFAULTS[key])


def configured_directory(key: str) -> str | None:
    """Return the directory that Dask's configuration names, ``~`` expanded; ``None`` if it names none."""
    if (value := configured(key)) is None:
        return None
    # A path that is not absolute would be another directory in every process.
    path = os.path.expanduser(os.fsdecode(value)) if isinstance(value, str | os.PathLike) else ""
    if not os.path.isabs(path):
        raise ValueError(f"nfsrwlock.{key} in Dask's configuration must be an absolute path, got {value!r}")
    return os.path.abspath(path)


def configured_time(key: str) -> float:
    """Return a time of Dask's configuration, which must be above 0, as seconds."""
    number = seconds(f"nfsrwlock.{key}", configured(key))
    if not 0 < number < math.inf:
        raise ValueError(f"nfsrwlock.{key} must be positive and finite, got {configured(key)!r}")
    return number


def seconds(name: str, value: object) -> float:
    """Return a time in any form that Dask takes (a number of seconds, ``"200ms"``, a timedelta) as seconds."""
    wrong = f"{name} must be a time such as 1.5, '200ms' or a timedelta, got {value!r}"
    if isinstance(value, bool):
        raise TypeError(wrong)
    try:
        return float(parse_timedelta(cast("float | str | timedelta", value)))  # its errors are what is wanted
    except (LookupError, OverflowError, ValueError):
        raise ValueError(wrong) from None
    except (AttributeError, TypeError):
        raise TypeError(wrong) from None


def limit(name: str, value: object) -> float:
    """Return a time limit as seconds, -1 for none. As with ``distributed.Lock``, a negative time has passed already."""
    number = seconds(name, value)
    if math.isnan(number):
        raise ValueError(f"{name} must not be nan")
    return -1.0 if number == math.inf else max(number, 0.0)


def _one_of(name: str, value: Any, allowed: Any) -> Any:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(allowed)))}, got {value!r}")
    return value
