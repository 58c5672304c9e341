"""
That changing the import is enough: one suite for filelock's reader/writer locks and ours, synchronous and asynchronous.

What a test states here holds of all of them. Where ours is different on purpose, the end of this file says so, and
states both sides: "Where ours is different". What filelock's own locks do is tested with its newest release only, by
`make test-newest` (the marker `peers`): it may change without any fault of ours.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import pickle
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import filelock
import pytest

import nfsrwlock
from actors import Raised, Stage, in_forked_child, wait_until


class Awaitable:
    """A lock for threads behind the face of one for tasks, so that a story can be told once for both."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)

    async def acquire_read(self, *args: Any, **kwargs: Any) -> Any:
        return Proxy(self, self.lock.acquire_read(*args, **kwargs))

    async def acquire_write(self, *args: Any, **kwargs: Any) -> Any:
        return Proxy(self, self.lock.acquire_write(*args, **kwargs))

    @asynccontextmanager
    async def read_lock(self, *args: Any, **kwargs: Any) -> AsyncIterator[None]:
        with self.lock.read_lock(*args, **kwargs) as got:
            yield got

    @asynccontextmanager
    async def write_lock(self, *args: Any, **kwargs: Any) -> AsyncIterator[None]:
        with self.lock.write_lock(*args, **kwargs) as got:
            yield got

    async def release(self, **kwargs: Any) -> None:
        self.lock.release(**kwargs)

    async def close(self) -> None:
        self.lock.close()


class Proxy:
    def __init__(self, face: Awaitable, proxy: Any) -> None:
        self.face = face
        self.proxy = proxy

    async def __aenter__(self) -> Any:
        assert self.proxy.__enter__() is self.face.lock
        return self.face

    async def __aexit__(self, *exc_info: object) -> None:
        self.proxy.__exit__(*exc_info)


@dataclass(frozen=True)
class Subject:
    """One implementation, and what of it lies outside of what is compared."""

    cls: type
    package: str
    suffix: str

    @property
    def is_async(self) -> bool:
        return self.cls.__name__.startswith("Async")

    def __call__(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        lock = self.cls(path, *args, **kwargs)
        return lock if self.is_async else Awaitable(lock)

    def peer(self, path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """A lock that has nothing to do with others of this process, like one of another process."""
        return self(path, is_singleton=False, poll_interval=0.02, **kwargs)

    def destroy(self, path: Path) -> None:
        """Take the lock away from whoever holds it, as somebody does who removes its directory."""
        # In one step, for its holder may be changing what is in it just now.
        os.rename(f"{path}{self.suffix}", f"{path}.destroyed")
        shutil.rmtree(f"{path}.destroyed")


FILELOCK = Subject(filelock.SoftReadWriteLock, "filelock", ".rw")
OURS = Subject(nfsrwlock.SoftReadWriteLock, "nfsrwlock", ".rwlock")
FILELOCK_ASYNC = Subject(filelock.AsyncSoftReadWriteLock, "filelock", ".rw")
OURS_ASYNC = Subject(nfsrwlock.AsyncSoftReadWriteLock, "nfsrwlock", ".rwlock")


def theirs(*values: Any, name: str = "filelock") -> Any:
    """Parameters of a test that then states what filelock does."""
    return pytest.param(*values, id=name, marks=pytest.mark.peers)


of_all = pytest.mark.parametrize(
    "subject",
    [
        theirs(FILELOCK),
        pytest.param(OURS, id="ours"),
        theirs(FILELOCK_ASYNC, name="filelock-async"),
        pytest.param(OURS_ASYNC, id="ours-async"),
    ],
)
of_threads = pytest.mark.parametrize("subject", [theirs(FILELOCK), pytest.param(OURS, id="ours")])
of_tasks = pytest.mark.parametrize("subject", [theirs(FILELOCK_ASYNC), pytest.param(OURS_ASYNC, id="ours")])
of_modes = pytest.mark.parametrize("mode", ["read", "write"])

pairs = pytest.mark.parametrize(
    ("peer", "ours"),
    [
        theirs(filelock.SoftReadWriteLock, nfsrwlock.SoftReadWriteLock, name="threads"),
        theirs(filelock.AsyncSoftReadWriteLock, nfsrwlock.AsyncSoftReadWriteLock, name="tasks"),
    ],
)


def story(func: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a coroutine be a test: its body is one task."""

    @functools.wraps(func)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(func(*args, **kwargs))

    return test


def acquire(lock: Any, mode: str, *args: Any, **kwargs: Any) -> Any:
    return (lock.acquire_read if mode == "read" else lock.acquire_write)(*args, **kwargs)


def opposite(mode: str) -> str:
    return "write" if mode == "read" else "read"


async def is_free_for(peer: Any, mode: str) -> bool:
    """Whether a peer could have the lock now; it does not keep it."""
    try:
        async with await acquire(peer, mode, blocking=False):
            return True
    except filelock.Timeout:
        return False


# -- names, defaults, settings ----------------------------------------------------------------------------------------


@pairs
def test_the_constructor_takes_what_filelocks_takes_with_the_same_defaults(peer: type, ours: type) -> None:
    expected = inspect.signature(peer.__init__).parameters
    found = inspect.signature(ours.__init__).parameters
    for name, parameter in expected.items():
        assert found[name].default == parameter.default
        assert found[name].kind == parameter.kind
    extensions = found.keys() - expected.keys()
    assert extensions == {"heartbeat", "share", "lock_dir", "linger", "numbered"}
    assert all(found[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extensions)


@pairs
def test_every_public_name_of_filelocks_class_is_there_with_the_same_parameters(peer: type, ours: type) -> None:
    for name in (name for name in dir(peer) if not name.startswith("_")):
        expected, found = inspect.getattr_static(peer, name), inspect.getattr_static(ours, name)
        assert isinstance(found, property) == isinstance(expected, property), name
        if isinstance(expected, property):
            continue
        expected_parameters = inspect.signature(getattr(peer, name)).parameters
        found_parameters = inspect.signature(getattr(ours, name)).parameters
        for parameter in expected_parameters.values():
            assert found_parameters[parameter.name].default == parameter.default, name
            assert found_parameters[parameter.name].kind == parameter.kind, name
        for extension in found_parameters.keys() - expected_parameters.keys():
            assert found_parameters[extension].kind is inspect.Parameter.KEYWORD_ONLY, name


@of_all
def test_the_defaults_are_those_that_filelock_documents(subject: Subject, tmp_path: Path) -> None:
    lock = subject(tmp_path / "data")
    assert lock.lock_file == str(tmp_path / "data")
    assert lock.timeout == -1
    assert lock.blocking is True
    assert lock.generation is None
    assert lock.compromise is None
    if subject.is_async:
        assert lock.loop is None
        # Ours makes none of its own; filelock does since 4.3.
        assert subject is FILELOCK_ASYNC or lock.executor is None
    else:
        assert (lock.heartbeat_interval, lock.stale_threshold, lock.poll_interval) == (30.0, 90.0, 0.25)


@of_threads
def test_the_settings_can_be_read_back(subject: Subject, tmp_path: Path) -> None:
    lock = subject(str(tmp_path / "data"), 7, blocking=False, heartbeat_interval=2, stale_threshold=9, poll_interval=1)
    assert (lock.timeout, lock.blocking) == (7, False)
    assert (lock.heartbeat_interval, lock.stale_threshold, lock.poll_interval) == (2, 9, 1)
    assert subject(tmp_path / "other", heartbeat_interval=2).stale_threshold == 6


@of_tasks
def test_loop_and_executor_can_be_read_back(subject: Subject, tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as executor:
        lock = subject(tmp_path / "data", loop=loop, executor=executor)
        assert lock.loop is loop
        assert lock.executor is executor
    loop.close()


BAD_SETTINGS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"timeout": "1"}, TypeError),
    ({"timeout": True}, TypeError),
    ({"timeout": None}, TypeError),
    ({"timeout": 10**400}, ValueError),
    ({"blocking": "false"}, TypeError),
    ({"blocking": 1}, TypeError),
    ({"heartbeat_interval": 0}, ValueError),
    ({"heartbeat_interval": -1}, ValueError),
    ({"heartbeat_interval": math.nan}, ValueError),
    ({"heartbeat_interval": math.inf}, ValueError),
    ({"heartbeat_interval": True}, TypeError),
    ({"heartbeat_interval": "30"}, TypeError),
    ({"heartbeat_interval": 1e12}, ValueError),
    ({"stale_threshold": 30.0}, ValueError),
    ({"stale_threshold": 1}, ValueError),
    ({"stale_threshold": math.nan}, ValueError),
    ({"stale_threshold": math.inf}, ValueError),
    ({"stale_threshold": "90"}, TypeError),
    ({"poll_interval": 0}, ValueError),
    ({"poll_interval": -0.25}, ValueError),
    ({"poll_interval": math.nan}, ValueError),
    ({"poll_interval": 90}, ValueError),
    ({"poll_interval": False}, TypeError),
]


@of_all
@pytest.mark.parametrize(
    ("settings", "error"),
    BAD_SETTINGS,
    ids=[f"{name}={str(value)[:9]}" for bad, _ in BAD_SETTINGS for name, value in bad.items()],
)
@pytest.mark.parametrize("is_singleton", [True, False])
def test_bad_settings_are_refused_at_construction(
    subject: Subject, settings: dict[str, Any], error: type[Exception], is_singleton: bool, tmp_path: Path
) -> None:
    with pytest.raises(error):
        subject(tmp_path / "data", is_singleton=is_singleton, **settings)


@of_all
@story
async def test_a_negative_or_nan_timeout_is_refused_by_the_acquire_not_by_the_constructor(
    subject: Subject, tmp_path: Path
) -> None:
    for number, (timeout, wanted) in enumerate([(-2, "non-negative number or -1"), (math.nan, "number of seconds")]):
        lock = subject(tmp_path / f"data{number}", timeout)
        with pytest.raises(ValueError, match=f"timeout must be a {wanted}, not {timeout}(.0)?$"):
            await lock.acquire_read()
        async with await lock.acquire_read(1):
            pass


@of_all
@of_modes
@story
async def test_arguments_of_an_acquire_are_checked(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject(tmp_path / "data")
    for timeout in ("1", True, [], object()):
        with pytest.raises(TypeError):
            await acquire(lock, mode, timeout)
    for blocking in ("no", 0, 1.0):
        with pytest.raises(TypeError):
            await acquire(lock, mode, blocking=blocking)
    for timeout in (-0.5, -math.inf, math.nan):
        with pytest.raises(ValueError, match="timeout"):
            await acquire(lock, mode, timeout)
    for timeout in (0, 1, 1.5, Decimal("0.5"), Fraction(1, 2), -1, math.inf):
        async with await acquire(lock, mode, timeout):
            pass
    async with await acquire(lock, mode, -2, blocking=False):  # a time that is not waited for cannot be wrong
        pass


@of_all
@story
async def test_paths_of_any_kind_name_one_lock(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    peer = subject.peer(tmp_path / "data")
    for path in ("data", "./data", tmp_path / "data", str(tmp_path / "link" / "data")):
        async with await subject.peer(path).acquire_write():
            assert not await is_free_for(peer, "write"), path


@of_all
@story
async def test_a_relative_path_goes_on_to_mean_the_same_when_the_directory_is_changed(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    lock = subject("data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with await lock.acquire_write():
        assert not await is_free_for(subject.peer(tmp_path / "data"), "read")


@of_all
@story
async def test_missing_parent_directories_are_made(subject: Subject, tmp_path: Path) -> None:
    async with subject(tmp_path / "a" / "b" / "data").write_lock():
        assert (tmp_path / "a" / "b").is_dir()


# -- holding ----------------------------------------------------------------------------------------------------------


@of_all
@story
async def test_readers_share_and_a_writer_is_alone(subject: Subject, tmp_path: Path) -> None:
    lock, peer = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data")
    async with lock.read_lock():
        assert await is_free_for(peer, "read")
        assert not await is_free_for(peer, "write")
    async with lock.write_lock():
        assert not await is_free_for(peer, "read")
        assert not await is_free_for(peer, "write")
    assert await is_free_for(peer, "write")


@of_all
@of_modes
@story
async def test_a_proxy_gives_the_lock_and_releases_it_at_the_end_of_its_block(
    subject: Subject, mode: str, tmp_path: Path
) -> None:
    lock, peer = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data")
    proxy = await acquire(lock, mode)
    async with proxy as got:
        assert got is lock
        assert not await is_free_for(peer, "write")
    assert await is_free_for(peer, "write")


async def divide_by_zero_in(block: Any) -> None:
    async with block as got:
        assert got is None
        raise ZeroDivisionError


@of_all
@story
async def test_an_exception_leaves_the_block_and_the_lock(subject: Subject, tmp_path: Path) -> None:
    lock, peer = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data")
    for block in (lock.read_lock, lock.write_lock):
        with pytest.raises(ZeroDivisionError):
            await divide_by_zero_in(block())
        assert await is_free_for(peer, "write")


@of_all
@of_modes
@story
async def test_it_is_reentrant_and_ends_with_the_last_level(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock, peer = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data")
    await acquire(lock, mode)
    generation = await generation_of(lock)
    await acquire(lock, mode, timeout=0)
    async with await acquire(lock, mode, blocking=False):
        assert await generation_of(lock) == generation
    await lock.release()
    assert not await is_free_for(peer, "write")
    await lock.release()
    assert await is_free_for(peer, "write")


@of_all
@of_modes
@story
async def test_neither_upgrade_nor_downgrade(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject.peer(tmp_path / "data")
    async with await acquire(lock, mode):
        with pytest.raises(RuntimeError, match="upgrade" if mode == "read" else "downgrade"):
            await acquire(lock, opposite(mode))
        with pytest.raises(RuntimeError, match="upgrade" if mode == "read" else "downgrade"):
            await acquire(lock, opposite(mode), blocking=False)
    async with await acquire(lock, opposite(mode)):
        pass


@of_all
@of_modes
@story
async def test_to_release_what_is_not_held_is_an_error_unless_forced(
    subject: Subject, mode: str, tmp_path: Path
) -> None:
    lock = subject.peer(tmp_path / "data")
    with pytest.raises(RuntimeError):
        await lock.release()
    await lock.release(force=True)
    await acquire(lock, mode)
    await lock.release()
    with pytest.raises(RuntimeError):
        await lock.release()


@of_all
@of_modes
@story
async def test_a_forced_release_ends_all_levels(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject.peer(tmp_path / "data")
    for _ in range(3):
        await acquire(lock, mode)
    await lock.release(force=True)
    assert await is_free_for(subject.peer(tmp_path / "data"), "write")
    with pytest.raises(RuntimeError):
        await lock.release()


@of_all
@of_modes
@story
async def test_close_releases_and_refuses_from_then_on(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject.peer(tmp_path / "data")
    await acquire(lock, mode)
    await acquire(lock, mode)
    await lock.close()
    assert await is_free_for(subject.peer(tmp_path / "data"), "write")
    await lock.close()
    for other in ("read", "write"):
        with pytest.raises(RuntimeError, match="closed"):
            await acquire(lock, other)
    await lock.release(force=True)


@of_all
@story
async def test_the_generation_grows_with_every_write_and_is_none_without_a_hold(
    subject: Subject, tmp_path: Path
) -> None:
    lock = subject.peer(tmp_path / "data")
    latest = 0
    for _ in range(3):
        assert lock.generation is None
        async with lock.write_lock():
            assert lock.generation > latest
            latest = lock.generation
    async with lock.read_lock():
        assert await generation_of(lock) >= latest


async def generation_of(lock: Any) -> int:
    # The one name that differs: see "Where ours is different".
    if isinstance(lock, nfsrwlock.AsyncSoftReadWriteLock):
        return await lock.read_generation()
    return lock.generation


# -- waiting ----------------------------------------------------------------------------------------------------------


@of_all
@of_modes
@story
async def test_a_call_that_may_not_wait_gives_up_at_once(subject: Subject, mode: str, tmp_path: Path) -> None:
    peer = subject.peer(tmp_path / "data")
    patient, hasty = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data", blocking=False)
    async with await acquire(peer, opposite(mode)):
        for lock, arguments in (
            (patient, {"blocking": False}),
            (patient, {"blocking": False, "timeout": 60}),
            (patient, {"timeout": 0}),
            (hasty, {}),
            (hasty, {"timeout": 60}),
        ):
            started = time.monotonic()
            with pytest.raises(filelock.Timeout):
                await acquire(lock, mode, **arguments)
            assert time.monotonic() - started < 10
    async with await acquire(hasty, mode):
        pass


@of_all
@of_modes
@story
async def test_a_timeout_is_waited_for_and_then_raised(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject(tmp_path / "data", 0.15, poll_interval=0.02)
    async with await acquire(subject.peer(tmp_path / "data"), opposite(mode)):
        for arguments, wanted in (({}, 0.15), ({"timeout": 0.25}, 0.25), ({"timeout": Decimal("0.05")}, 0.05)):
            started = time.monotonic()
            with pytest.raises(filelock.Timeout) as caught:
                await acquire(lock, mode, **arguments)
            assert wanted - 0.01 <= time.monotonic() - started < wanted + 10
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.lock_file == str(tmp_path / "data")
            assert str(tmp_path / "data") in str(caught.value)


@of_all
@story
async def test_blocking_overrides_an_instance_that_does_not_block(subject: Subject, tmp_path: Path) -> None:
    lock = subject.peer(tmp_path / "data", timeout=0.2, blocking=False)
    async with await acquire(subject.peer(tmp_path / "data"), "write"):
        started = time.monotonic()
        with pytest.raises(filelock.Timeout):
            await lock.acquire_read(blocking=True)
        assert time.monotonic() - started >= 0.19


@of_all
@of_modes
@story
async def test_one_that_waits_gets_the_lock_when_it_is_released(subject: Subject, mode: str, tmp_path: Path) -> None:
    holder, waiter = subject.peer(tmp_path / "data"), subject.peer(tmp_path / "data")
    order: list[str] = []

    def wait_in_thread() -> None:
        async def wait() -> None:
            async with await acquire(waiter, mode, 60):
                order.append("waiter")

        asyncio.run(wait())

    thread = threading.Thread(target=wait_in_thread)
    async with await acquire(holder, opposite(mode)):
        thread.start()
        await asyncio.sleep(0.2)
        order.append("holder")
    await asyncio.to_thread(thread.join, 60)
    assert order == ["holder", "waiter"]


@of_all
@story
async def test_a_waiting_writer_keeps_new_readers_out(subject: Subject, tmp_path: Path) -> None:
    reader, writer, late = (subject.peer(tmp_path / "data") for _ in range(3))
    granted = threading.Event()

    def write_in_thread() -> None:
        async def write() -> None:
            async with await writer.acquire_write(60):
                granted.set()

        asyncio.run(write())

    thread = threading.Thread(target=write_in_thread)
    async with await reader.acquire_read():
        thread.start()
        deadline = time.monotonic() + 20
        while await is_free_for(late, "read"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert not granted.is_set()
    await asyncio.to_thread(thread.join, 60)
    assert granted.is_set()
    assert await is_free_for(late, "read")


@of_all
@story
async def test_a_timeout_can_be_pickled(subject: Subject, tmp_path: Path) -> None:
    async with await acquire(subject.peer(tmp_path / "data"), "write"):
        with pytest.raises(filelock.Timeout) as caught:
            await subject.peer(tmp_path / "data").acquire_read(blocking=False)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert copy.lock_file == caught.value.lock_file
    assert str(copy) == str(caught.value)


# -- one instance per path --------------------------------------------------------------------------------------------


@of_threads
def test_a_path_has_one_instance(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = subject.cls(tmp_path / "data")
    for other in ("data", "./data", str(tmp_path / "data"), tmp_path / "." / "data"):
        assert subject.cls(other) is lock
        assert subject.cls.get_lock(other) is lock
    assert subject.cls(tmp_path / "other") is not lock
    assert subject.cls(tmp_path / "data", is_singleton=False) is not lock
    assert subject.cls(tmp_path / "data") is lock


@of_threads
def test_an_instance_that_nobody_refers_to_is_forgotten(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data", 5)
    del lock
    assert subject.cls(tmp_path / "data", 6).timeout == 6


@of_threads
def test_a_second_call_with_another_timeout_or_blocking_is_refused(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data", 5)
    for arguments in ({"timeout": 6}, {"timeout": -1}, {"timeout": 5, "blocking": False}, {"timeout": math.nan}):
        with pytest.raises(ValueError, match=r"timeout|blocking"):
            subject.cls(tmp_path / "data", **arguments)
        with pytest.raises(ValueError, match=r"timeout|blocking"):
            subject.cls.get_lock(tmp_path / "data", **arguments)
    assert subject.cls(tmp_path / "data", 5.0) is lock


@of_threads
def test_timeouts_without_a_limit_are_one_and_the_same(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data", -1)
    assert subject.cls(tmp_path / "data", math.inf) is lock


@of_threads
def test_a_second_call_with_other_tuning_gets_the_first_ones(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data", heartbeat_interval=5)
    assert subject.cls(tmp_path / "data", heartbeat_interval=7, stale_threshold=70, poll_interval=1) is lock
    assert (lock.heartbeat_interval, lock.stale_threshold, lock.poll_interval) == (5, 15, 0.25)
    with pytest.raises(ValueError, match="heartbeat_interval"):
        subject.cls(tmp_path / "data", heartbeat_interval=-7)


@of_threads
def test_a_second_call_with_another_callback_is_refused_and_one_without_joins(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data", on_compromise=print)
    assert subject.cls(tmp_path / "data", on_compromise=print) is lock
    assert subject.cls(tmp_path / "data") is lock
    assert subject.cls.get_lock(tmp_path / "data") is lock
    with pytest.raises(ValueError, match="on_compromise"):
        subject.cls(tmp_path / "data", on_compromise=repr)


@of_threads
def test_a_callback_cannot_be_added_to_an_instance_without_one(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data")
    with pytest.raises(ValueError, match="on_compromise"):
        subject.cls(lock.lock_file, on_compromise=print)


@of_threads
def test_a_subclass_has_instances_of_its_own(subject: Subject, tmp_path: Path) -> None:
    class Special(subject.cls):  # type: ignore[name-defined,misc]
        pass

    class Other(Special):
        pass

    locks = [cls(tmp_path / "data") for cls in (subject.cls, Special, Other)]
    assert [type(lock) for lock in locks] == [subject.cls, Special, Other]
    assert [cls(tmp_path / "data") for cls in (subject.cls, Special, Other)] == locks
    assert locks[0] is not locks[1] is not locks[2]


@of_threads
def test_a_subclass_may_have_a_constructor_of_its_own(subject: Subject, tmp_path: Path) -> None:
    class Special(subject.cls):  # type: ignore[name-defined,misc]
        def __init__(self, lock_file: str, timeout: float = -1, **settings: Any) -> None:
            super().__init__(lock_file, timeout, **settings)
            self.more = 1

    assert Special(tmp_path / "data").more == 1
    assert Special(tmp_path / "data", is_singleton=False).more == 1


def test_a_subclass_may_have_keyword_arguments_and_defaults_of_its_own(tmp_path: Path) -> None:
    made: list[str] = []

    class Special(nfsrwlock.SoftReadWriteLock):
        def __init__(self, lock_file: Path, *, label: str = "none", **settings: Any) -> None:
            super().__init__(lock_file, **settings)
            self.label = label
            made.append(label)

    lock = Special(tmp_path / "data", label="mine", heartbeat_interval=5)
    assert (lock.label, lock.heartbeat_interval) == ("mine", 5)
    assert Special(tmp_path / "data", label="other") is lock
    assert made == ["mine"], "an instance that exists is not constructed again"
    with pytest.raises(ValueError, match="timeout"):
        Special(tmp_path / "data", timeout=3)

    class Plain(nfsrwlock.SoftReadWriteLock):
        def __init__(self, lock_file: Path) -> None:
            super().__init__(lock_file)

    assert Plain(tmp_path / "data") is Plain(tmp_path / "data")


@pytest.mark.parametrize("is_singleton", [True, False])
def test_a_misspelt_keyword_names_the_class(is_singleton: bool, tmp_path: Path) -> None:
    for _ in range(2):  # also when the path has an instance
        with pytest.raises(TypeError, match=r"^SoftReadWriteLock\.__init__\(\) .*'tiemout'"):
            nfsrwlock.SoftReadWriteLock(tmp_path / "data", tiemout=1, is_singleton=is_singleton)  # type: ignore[call-arg]
        lock = nfsrwlock.SoftReadWriteLock(tmp_path / "data")
    assert lock.timeout == -1


def test_a_constructor_that_asks_for_the_same_lock_is_refused(tmp_path: Path) -> None:
    class One(nfsrwlock.SoftReadWriteLock):
        def __init__(self, lock_file: Path) -> None:
            super().__init__(lock_file)
            Two(lock_file)

    class Two(nfsrwlock.SoftReadWriteLock):
        def __init__(self, lock_file: Path) -> None:
            super().__init__(lock_file)
            if depends:
                One(lock_file)

    depends = True
    with pytest.raises(RuntimeError, match=r"construction is already active .* of One for") as caught:
        One(tmp_path / "data")
    assert not isinstance(caught.value, RecursionError)
    depends = False
    assert One(tmp_path / "data") is One(tmp_path / "data")  # nothing is left of the first attempt


def test_a_slow_constructor_delays_no_other_class_and_classes_may_have_keywords(tmp_path: Path) -> None:
    class Labelled:
        def __init_subclass__(cls, *, label: str = "") -> None:
            cls.label = label

    entered, go_on = threading.Event(), threading.Event()

    class Slow(nfsrwlock.SoftReadWriteLock, Labelled, label="slow"):
        def __init__(self, lock_file: Path) -> None:
            entered.set()
            assert go_on.wait(60)
            super().__init__(lock_file)

    assert Slow.label == "slow"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(Slow, tmp_path / "data")
        assert entered.wait(60)
        try:
            other = nfsrwlock.SoftReadWriteLock(tmp_path / "data")
            assert nfsrwlock.SoftReadWriteLock(tmp_path / "data") is other
        finally:
            go_on.set()
        assert Slow(tmp_path / "data") is slow.result()


@story
async def test_a_lock_itself_is_no_block_and_says_what_is(tmp_path: Path) -> None:
    lock: Any = nfsrwlock.SoftReadWriteLock(tmp_path / "data")
    with pytest.raises(TypeError, match=r"which mode\? Use read_lock\(\) or write_lock\(\)"), lock:
        pass
    lock = nfsrwlock.AsyncSoftReadWriteLock(tmp_path / "data")
    with pytest.raises(TypeError, match=r"which mode\? Use read_lock\(\) or write_lock\(\)"):
        async with lock:
            pass


@pytest.mark.parametrize("cls", [nfsrwlock.SoftReadWriteLock, nfsrwlock.AsyncSoftReadWriteLock])
@pytest.mark.parametrize("ask", [lambda cls: cls, lambda cls: cls.__init__], ids=["class", "constructor"])
def test_the_signature_shows_the_settings_with_their_defaults(cls: type, ask: Callable[[type], Any]) -> None:
    found = inspect.signature(ask(cls)).parameters
    assert [name for name in found if name != "self"][:3] == ["lock_file", "timeout", "blocking"]
    assert (found["timeout"].default, found["heartbeat_interval"].default, found["share"].default) == (-1, 30.0, "user")


@of_threads
def test_instances_of_one_path_hold_together(subject: Subject, tmp_path: Path) -> None:
    with subject.cls(tmp_path / "data").write_lock(), subject.cls(tmp_path / "data").write_lock(timeout=0):
        pass


@of_tasks
@story
async def test_wrappers_of_one_path_share_the_holds_of_their_tasks(subject: Subject, tmp_path: Path) -> None:
    first, second = subject(tmp_path / "data"), subject(tmp_path / "data")
    await first.acquire_write()
    await second.acquire_write(timeout=0)
    await first.release()
    assert not await is_free_for(subject.peer(tmp_path / "data"), "read")
    with pytest.raises(RuntimeError):
        await first.release()
    await second.close()
    assert await is_free_for(subject.peer(tmp_path / "data"), "write")
    async with first.write_lock():
        pass


# -- threads and tasks ------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result(60)


@of_threads
def test_a_write_lock_belongs_to_its_thread(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data")
    with lock.write_lock():
        for work in (lock.acquire_write, lock.acquire_read, lock.release):
            with pytest.raises(RuntimeError):
                in_thread(work)
        in_thread(lambda: None)
        with lock.write_lock():
            pass
    assert in_thread(lambda: lock.acquire_write().__exit__(None, None, None)) is None


@of_threads
def test_another_thread_may_force_a_release(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data")
    lock.acquire_write()
    in_thread(lambda: lock.release(force=True))
    with pytest.raises(RuntimeError):
        lock.release()


@of_threads
def test_threads_share_a_read_lock_and_each_gives_back_its_own_levels(subject: Subject, tmp_path: Path) -> None:
    lock, peer = subject.cls(tmp_path / "data"), subject.cls(tmp_path / "data", is_singleton=False)
    lock.acquire_read()
    with pytest.raises(RuntimeError):
        in_thread(lock.release)
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire_read, 0).result(60)
        lock.release()
        with pytest.raises(RuntimeError):
            lock.release()
        with pytest.raises(filelock.Timeout):
            peer.acquire_write(blocking=False)
        other.submit(lock.release).result(60)
    with peer.write_lock(blocking=False):
        pass


@of_threads
def test_closing_ends_the_waiting_of_another_thread(subject: Subject, tmp_path: Path) -> None:
    holder = subject.cls(tmp_path / "data", is_singleton=False)
    waiter = subject.cls(tmp_path / "data", is_singleton=False, poll_interval=0.02)
    with holder.write_lock(), ThreadPoolExecutor(1) as other:
        waiting = other.submit(waiter.acquire_read)
        time.sleep(0.2)
        waiter.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(20)


@of_tasks
@story
async def test_a_hold_belongs_to_its_task(subject: Subject, tmp_path: Path) -> None:
    lock = subject(tmp_path / "data", poll_interval=0.02)
    async with lock.write_lock():
        with pytest.raises(RuntimeError):
            await asyncio.create_task(lock.release())
        await asyncio.create_task(lock.release(force=True))
        for mode in ("read", "write"):
            with pytest.raises(filelock.Timeout):
                await asyncio.create_task(acquire(lock, mode, 0.1))
    async with lock.read_lock():
        await asyncio.create_task(read_once(lock))
        with pytest.raises(filelock.Timeout):
            await asyncio.create_task(acquire(lock, "write", 0.1))


async def read_once(lock: Any) -> None:
    async with lock.read_lock(timeout=5):
        pass


# -- losing it --------------------------------------------------------------------------------------------------------


@of_all
@of_modes
@story
async def test_a_hold_that_is_gone_is_reported_once_and_must_be_released_first(
    subject: Subject, mode: str, tmp_path: Path
) -> None:
    reports: list[filelock.LeaseCompromise] = []
    lock = subject.peer(tmp_path / "data", on_compromise=reports.append, heartbeat_interval=0.1, stale_threshold=20)
    await acquire(lock, mode)
    assert lock.compromise is None
    subject.destroy(tmp_path / "data")
    await asyncio.to_thread(wait_until, lambda: reports)
    assert lock.compromise.reason == reports[0].reason
    assert reports[0].lock_file == str(tmp_path / "data")
    assert len(reports[0].token) == 32
    assert reports[0].reason in ("evicted", "refresh-failed")
    with pytest.raises(RuntimeError):
        await acquire(lock, mode)
    await asyncio.sleep(0.5)
    assert len(reports) == 1
    await lock.release()
    assert lock.compromise is not None  # until the next hold begins
    async with await acquire(lock, mode):
        assert lock.compromise is None
    assert lock.compromise is None


@of_threads
@of_modes
def test_the_callback_may_release_what_it_is_told_is_lost(subject: Subject, mode: str, tmp_path: Path) -> None:
    released = threading.Event()

    def let_go(_: filelock.LeaseCompromise) -> None:
        lock.release()
        released.set()

    lock = subject.cls(tmp_path / "data", on_compromise=let_go, heartbeat_interval=0.1, stale_threshold=20)
    (lock.acquire_read if mode == "read" else lock.acquire_write)()
    subject.destroy(tmp_path / "data")
    assert released.wait(20)
    with pytest.raises(RuntimeError):
        lock.release()


# -- fork and exit ----------------------------------------------------------------------------------------------------


@of_all
@of_modes
@story
async def test_a_forked_child_inherits_nothing_and_harms_nothing(subject: Subject, mode: str, tmp_path: Path) -> None:
    lock = subject(tmp_path / "data")
    await acquire(lock, mode)

    def child() -> dict[str, Any]:
        # The parent's loop cannot run here, but a coroutine that does not wait can be stepped by hand.
        found: dict[str, Any] = {"generation": lock.generation}
        with pytest.raises(RuntimeError) as caught:
            acquire(lock, mode).send(None)
        found["refusal"] = str(caught.value)
        for work in (lock.release(), lock.release(force=True), lock.close()):
            with pytest.raises(StopIteration):
                work.send(None)
        return found

    assert "fork" in in_forked_child(child)["refusal"]
    assert not await is_free_for(subject.peer(tmp_path / "data"), "write")
    await lock.release()
    assert await is_free_for(subject.peer(tmp_path / "data"), "write")


@of_threads
def test_a_forked_child_can_make_a_lock_of_its_own_on_the_path(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data")

    def child() -> list[Any]:
        own = subject.cls(tmp_path / "data", 5)  # another timeout: the parent's instance does not count
        try:
            own.acquire_write(blocking=False)
        except filelock.Timeout:
            refused = True
        own.acquire_read(blocking=False)
        own.release()
        return [own is lock, refused]

    with lock.read_lock():
        assert in_forked_child(child) == [False, True]


@of_threads
def test_the_block_of_an_inherited_hold_can_be_left_in_the_child(subject: Subject, tmp_path: Path) -> None:
    lock = subject.cls(tmp_path / "data")

    @contextmanager
    def forking() -> Any:
        with lock.write_lock(), lock.write_lock():
            yield

    block = forking()
    block.__enter__()
    assert in_forked_child(lambda: block.__exit__(None, None, None)) is False
    with pytest.raises(filelock.Timeout):
        subject.cls(tmp_path / "data", is_singleton=False).acquire_read(blocking=False)
    block.__exit__(None, None, None)


HOLDERS = {
    "a lock": "lock = package.SoftReadWriteLock({path!r}); lock.acquire_{mode}(); lock.acquire_{mode}()",
    "a lock that nobody refers to": "package.SoftReadWriteLock({path!r}, is_singleton=False).acquire_{mode}(); pass",
    "a lock for tasks": (
        "async def main():\n"
        "    lock = package.AsyncSoftReadWriteLock({path!r})\n"
        "    return await lock.acquire_{mode}()\n"
        "hold = asyncio.run(main())"
    ),
}


@of_threads
@of_modes
@pytest.mark.parametrize("what", HOLDERS)
def test_what_is_held_is_released_when_the_interpreter_exits(
    subject: Subject, what: str, mode: str, tmp_path: Path
) -> None:
    with Stage(tmp_path) as stage:
        # Under another host's name, because on this one a dead process is found out anyway.
        actor = stage.actor(f"import asyncio, {subject.package} as package", host="elsewhere")
        actor.do(HOLDERS[what].format(path=str(tmp_path / "data"), mode=mode))
        peer = subject.cls(tmp_path / "data")
        with pytest.raises(filelock.Timeout):
            peer.acquire_write(blocking=False)
        assert actor.leave() == 0
        with peer.write_lock(blocking=False):
            pass


# -- Where ours is different ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "is_error"),
    [
        theirs(FILELOCK, False),
        (OURS, True),
        theirs(FILELOCK_ASYNC, False, name="filelock-async"),
        (OURS_ASYNC, True),
    ],
)
@story
async def test_different_the_end_of_a_block_says_that_the_hold_was_lost(
    subject: Subject, is_error: bool, tmp_path: Path
) -> None:
    loop, lost = asyncio.get_running_loop(), asyncio.Event()
    lock = subject.peer(
        tmp_path / "data",
        heartbeat_interval=0.1,
        stale_threshold=20,
        on_compromise=lambda _: loop.call_soon_threadsafe(lost.set),
    )

    async def work() -> None:
        async with lock.write_lock():
            subject.destroy(tmp_path / "data")
            assert await lost.wait()

    if is_error:
        with pytest.raises(nfsrwlock.LockLostError):
            await work()
    else:
        await work()


def test_different_settings_are_fixed_because_locks_are_compared_by_them(tmp_path: Path) -> None:
    ours = nfsrwlock.SoftReadWriteLock(tmp_path / "data")
    with pytest.raises(AttributeError):
        ours.timeout = 5


@pytest.mark.peers
def test_different_settings_of_filelocks_can_be_changed(tmp_path: Path) -> None:
    filelock.SoftReadWriteLock(tmp_path / "data").timeout = 5


def test_different_locks_of_equal_settings_are_equal_and_can_be_pickled(tmp_path: Path) -> None:
    ours = [nfsrwlock.SoftReadWriteLock(tmp_path / "data", is_singleton=False) for _ in range(2)]
    assert ours[0] == ours[1]
    assert pickle.loads(pickle.dumps(ours[0])) == ours[0]


@pytest.mark.peers
def test_different_locks_of_filelock_with_equal_settings_are_unequal_and_cannot_be_pickled(tmp_path: Path) -> None:
    peers = [filelock.SoftReadWriteLock(tmp_path / "data", is_singleton=False) for _ in range(2)]
    assert peers[0] != peers[1]
    with pytest.raises(TypeError):
        pickle.dumps(peers[0])


@pytest.mark.peers
def test_different_the_directories_are_apart_so_the_two_do_not_exclude_each_other(tmp_path: Path) -> None:
    with filelock.SoftReadWriteLock(tmp_path / "data").write_lock():
        assert os.listdir(tmp_path) == ["data.rw"]
        with nfsrwlock.SoftReadWriteLock(tmp_path / "data").write_lock(blocking=False):
            assert sorted(os.listdir(tmp_path)) == ["data.rw", "data.rwlock"]


@pytest.mark.parametrize(("subject", "generations"), [theirs(FILELOCK_ASYNC, 1), (OURS_ASYNC, 2)])
@story
async def test_different_each_task_is_announced_by_itself(subject: Subject, generations: int, tmp_path: Path) -> None:
    # filelock's tasks join one hold of their process. Ours wait for each other on disk, by the protocol itself.
    lock = subject(tmp_path / "data")
    inspector = Path(f"{tmp_path / 'data'}{subject.suffix}")
    held, done = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with lock.read_lock():
            held.set()
            await done.wait()

    task = asyncio.create_task(read())
    await held.wait()
    async with lock.read_lock():
        entries = os.listdir(inspector / "holders") if subject is FILELOCK_ASYNC else os.listdir(inspector)
        assert len(entries) == generations
    done.set()
    await task


@pytest.mark.parametrize(("subject", "first"), [theirs(FILELOCK_ASYNC, 1), (OURS_ASYNC, 0)])
@story
async def test_a_task_that_reads_has_a_generation(subject: Subject, first: int, tmp_path: Path) -> None:
    # Ours is the version of the data: the number of the latest write.
    lock = subject(tmp_path / "data")
    async with lock.read_lock():
        assert lock.generation == first


@pytest.mark.parametrize(("subject", "is_refused"), [theirs(FILELOCK_ASYNC, True), (OURS_ASYNC, False)])
def test_different_wrappers_for_tasks_may_differ_in_their_defaults(
    subject: Subject, is_refused: bool, tmp_path: Path
) -> None:
    # filelock's stand for one synchronous lock. Ours have nothing in common but the holds of tasks.
    first = subject(tmp_path / "data", 5)
    if is_refused:
        with pytest.raises(ValueError, match="timeout"):
            subject(tmp_path / "data", 6)
    else:
        assert (first.timeout, subject(tmp_path / "data", 6).timeout) == (5, 6)


@pytest.mark.peers
def test_different_a_hold_may_come_back_after_an_outage() -> None:
    # filelock's heartbeat ends with its first failure. Ours goes on, and a success proves that the hold never ended:
    # see test_lock_loss. What both share: while it lasts, `compromise` says so.
    assert {name for name in dir(OURS.cls) if not name.startswith("_")} - {
        name for name in dir(FILELOCK.cls) if not name.startswith("_")
    } == {
        *(
            "blocking",
            "timeout",
            "lock_file",
            "heartbeat_interval",
            "stale_threshold",
            "poll_interval",
        ),  # attributes there
        *("check", "status", "is_locked", "lease_remaining", "lock_path", "heartbeat", "share", "lock_dir"),
        *("linger", "numbered", "witness"),
    }


def test_different_the_error_of_a_release_is_also_a_lock_error(tmp_path: Path) -> None:
    with pytest.raises(nfsrwlock.LockNotHeldError) as caught:
        nfsrwlock.SoftReadWriteLock(tmp_path / "data").release()
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, nfsrwlock.LockError)


def test_raised_in_a_child_is_told(tmp_path: Path) -> None:
    with pytest.raises(Raised, match="ZeroDivisionError"):
        in_forked_child(lambda: 1 / 0)
