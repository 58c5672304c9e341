"""The settings of a lock, checked: what two locks must agree on to be equal, and what a lock pickles as."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Self, TypedDict, TypeVar, get_args

from .names import AT_MOST_MAX, LEASE_MAX_MS, LEASE_MIN_S
from .system.connection import standstill
from .system.directory import Share
from .system.paths import AnyPath, lock_path_of

if TYPE_CHECKING:
    from filelock import LeaseCompromise

_T = TypeVar("_T")
Heartbeat = Literal["thread", "process"]
_HEARTBEATS: Final = get_args(Heartbeat)
_SHARES: Final = get_args(Share)
#: A holder beats at least this often in its lease, so that two beats may fail before it runs out.
_BEATS_PER_LEASE: Final = 3
#: Who waits for a writer's turn waits for what is kept, too.
_LINGER_MAX_S: Final = 10.0
#: A time-out as long as this (150 years where the system allows it) is none: longer ones overflow the system's clocks.
_FOREVER_S: Final = threading.TIMEOUT_MAX / 2


class Options(TypedDict, total=False):
    """The keyword arguments that a lock and a set of locks have in common; the lock's constructor has the defaults."""

    blocking: bool
    heartbeat_interval: float
    stale_threshold: float | None
    poll_interval: float
    on_compromise: Callable[[LeaseCompromise], None] | None
    heartbeat: Heartbeat
    share: Share
    lock_dir: AnyPath | None
    linger: float
    numbered: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See :class:`nfsrwlock_core.SoftReadWriteLock` for what each means. Locks are compared by these."""

    lock_file: str = field(compare=False)
    lock_path: str
    timeout: float
    blocking: bool
    is_singleton: bool
    heartbeat_interval: float
    stale_threshold: float
    poll_interval: float
    on_compromise: Callable[[LeaseCompromise], None] | None
    heartbeat: Heartbeat
    share: Share
    lock_dir: str | None = field(compare=False)
    linger: float = 0.0
    numbered: bool = True
    #: Of a semaphore; 0: it is a lock.
    permits: int = 0

    @property
    def beat_interval(self) -> float:
        """Seconds between heartbeats: as asked for, but never too few to keep the lease."""
        return min(self.heartbeat_interval, self.stale_threshold / _BEATS_PER_LEASE)


class _Setting(property, Generic[_T]):
    # An attribute that shows the setting of its name.
    def __init__(self, doc: str) -> None:
        self._doc = doc

    def __set_name__(self, owner: type, name: str) -> None:
        super().__init__(attrgetter(f"_settings.{name}"))
        self.__doc__ = self._doc

    if TYPE_CHECKING:

        def __get__(self, lock: object, owner: type | None = None) -> _T: ...  # type: ignore[override]


class HasSettings:
    """
    What the locks for threads and for asyncio are alike in: what they were made with.

    Locks are equal if their settings are, and pickle as their settings: what arrives is not held.
    """

    _settings: Settings

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._closed = False

    lock_file = _Setting[str]("The path as it was given.")
    lock_path = _Setting[str]("The directory where the lock lives, absolute.")
    timeout = _Setting[float]("Seconds to wait by default; -1 for no limit.")
    blocking = _Setting[bool]("Whether an acquire waits by default.")
    heartbeat_interval = _Setting[float]("Seconds between heartbeats.")
    stale_threshold = _Setting[float]("The lease: seconds of silence after which any host may evict this holder.")
    poll_interval = _Setting[float]("Seconds between looks while waiting.")
    heartbeat = _Setting[Heartbeat]('What heartbeats come from: ``"thread"`` or ``"process"``.')
    share = _Setting[Share]('Who takes part: ``"user"`` or ``"group"``.')
    linger = _Setting[float]("How long after its grant a shared hold may be kept, seconds; 0: none is.")
    numbered = _Setting[bool]("Whether the grants of writes are numbered, and the lock directory stays.")
    lock_dir = _Setting[str | None]("The directory of locks as it was given; ``None``: the default.")

    if not TYPE_CHECKING:  # which knows that the lock is no block

        def __enter__(self, *_: object) -> NoReturn:
            raise TypeError(f"which mode? Use read_lock() or write_lock() for a block, not {self!r} itself")

        __exit__ = __aenter__ = __aexit__ = __enter__

    def _refuse_if_unusable(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"the lock on {self.lock_file!r} was invalidated by fork(); make a new one in the child")
        if self._closed:
            raise RuntimeError(f"the lock on {self.lock_file!r} has been closed")

    def _limit_of_call(self, timeout: float | None, blocking: bool | None) -> float:
        # What a call says, or else the lock: seconds, 0 for no waiting at all, -1 for no limit.
        known = self._settings
        value = known.timeout if timeout is None else seconds("timeout", timeout)
        if not (known.blocking if blocking is None else boolean("blocking", blocking)):
            return 0.0
        if math.isnan(value):
            raise ValueError("timeout must be a number of seconds, not nan")
        if value < 0 and value != -1:
            raise ValueError(f"timeout must be a non-negative number or -1, not {value}")
        return -1.0 if value >= _FOREVER_S else value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HasSettings):
            return NotImplemented
        return type(self) is type(other) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash((type(self), self._settings))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._restore, (self._settings,)

    @classmethod
    def _restore(cls, settings: Settings) -> Self:
        lock = cls.__new__(cls)
        lock._set_up(settings)
        return lock


def checked(
    lock_file: AnyPath,
    *,
    heartbeat_interval: float,
    stale_threshold: float | None,
    lock_dir: AnyPath | None,
    **others: Any,
) -> Settings:
    """
    Return the settings, or say what is wrong with them.

    :param others: the other fields of :class:`Settings` that a lock is made with
    :raises TypeError: if one is of the wrong type
    :raises ValueError: if one is out of range, or two contradict each other
    """
    interval = _positive("heartbeat_interval", heartbeat_interval)
    stale = interval * _BEATS_PER_LEASE if stale_threshold is None else _positive("stale_threshold", stale_threshold)
    poll = _positive("poll_interval", others["poll_interval"])
    if stale <= interval:
        raise ValueError(f"stale_threshold must exceed heartbeat_interval ({interval:g} s), got {stale:g}")
    if poll >= stale:
        raise ValueError(f"poll_interval must be below stale_threshold ({stale:g} s), got {poll:g}")
    if not LEASE_MIN_S <= stale <= LEASE_MAX_MS / 1000:
        origin = f" ({_BEATS_PER_LEASE} times heartbeat_interval)" if stale_threshold is None else ""
        raise ValueError(
            f"stale_threshold must be between {LEASE_MIN_S} s and {LEASE_MAX_MS // 1000} s, got {stale:g}{origin}"
        )
    on_compromise = others["on_compromise"]
    if on_compromise is not None and not callable(on_compromise):
        raise TypeError(f"on_compromise must be callable, not {type(on_compromise).__name__}")
    for name, allowed in (("heartbeat", _HEARTBEATS), ("share", _SHARES)):
        if others[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {others[name]!r}")
    for name in ("timeout", "linger"):
        others[name] = seconds(name, others[name])
    for name in ("blocking", "is_singleton", "numbered"):
        boolean(name, others[name])
    if not 0 <= others["linger"] <= _LINGER_MAX_S:
        raise ValueError(f"linger must be between 0 and {_LINGER_MAX_S:g} seconds, got {others['linger']!r}")
    standstill()  # what the environment says must be a number, too
    text = os.fsdecode(lock_file)
    given = {"heartbeat_interval": interval, "stale_threshold": stale, "poll_interval": poll}
    home = {"lock_path": lock_path_of(text, lock_dir), "lock_dir": None if lock_dir is None else os.fsdecode(lock_dir)}
    return Settings(lock_file=text, **(others | given | home))


def checked_limit(name: str, value: int) -> int:
    """
    Return how many may hold at a time.

    :raises TypeError: if it is no integer
    :raises ValueError: if it is below 1 or above 999,999
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not 1 <= value <= AT_MOST_MAX:
        raise ValueError(f"{name} must be between 1 and {AT_MOST_MAX}, got {value}")
    return value


def boolean(name: str, value: bool) -> bool:
    """
    Return ``value`` if it is a bool.

    :raises TypeError: if not; a string such as ``"false"`` would count as true
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def seconds(name: str, value: object) -> float:
    """
    Return ``value`` as a float.

    :raises TypeError: if it is no real number
    :raises ValueError: if it is too large
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):  # which no text has
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large to be a number of seconds: {value!r}") from None


def _positive(name: str, value: float) -> float:
    number = seconds(name, value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    if number > threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must not exceed threading.TIMEOUT_MAX ({threading.TIMEOUT_MAX:g} s), got {value!r}")
    return number
