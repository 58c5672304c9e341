"""
``joblib.Memory`` that computes each result once, however many processes on any hosts ask for it at the same time.

What is stored and where is joblib's; the locks are :mod:`nfsrwlock.joblib.store`'s. What is not promised: a plain
``joblib.Memory`` on the same store takes no locks.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar, Unpack

import joblib
from joblib._store_backends import CacheWarning
from joblib.func_inspect import format_signature, get_func_name
from joblib.memory import _FUNCTION_HASHES, AsyncMemorizedFunc, MemorizedFunc, NotMemorizedResult

from nfsrwlock.freshness import Signature
from nfsrwlock.options import LockOptions, refuse_unknown
from nfsrwlock_core import LockLostError

from .around import held
from .calls import Call, Taken, TaskCall, ThreadCall
from .store import LINGER_S, TAG, CallId, Granularity, LockingStoreBackend, register_store_backend, tag_of

_Call = TypeVar("_Call", bound=Call)

#: What joblib's metadata of an item have in any case.
_METADATA: Final = frozenset({"duration", "input_args", "time"})
#: While joblib's own check of a function's code runs, the mark of that: `clear` is about other code's items only.
_checked_code: ContextVar[str | None] = ContextVar("nfsrwlock_joblib_checked_code", default=None)


class LockingMemorizedFunc(MemorizedFunc):  # type: ignore[misc]  # joblib has no types
    """A function whose results are cached, and computed once; made by :meth:`Memory.cache`."""

    store_backend: LockingStoreBackend
    _kind: type[ThreadCall | TaskCall] = ThreadCall

    # -- whether a stored result may be used --------------------------------------------------------------------------

    @property
    def _tag(self) -> str:
        return tag_of(self.func_code_info[0])

    def _is_in_cache_and_valid(self, call_id: CallId) -> bool:
        return self.store_backend.contains_item(call_id) and self._is_valid(call_id)

    def _is_valid(self, call_id: CallId) -> bool:
        metadata = self.store_backend.get_metadata(call_id)
        if TAG not in metadata:
            # It was stored by joblib, whose rule is that all items are of the code beside them. Whoever replaces that
            # code marks those items before that stay: so another look, after the one at the code.
            if not self._is_stored_code_ours():
                return False
            metadata = self.store_backend.get_metadata(call_id)
        if metadata.get(TAG, self._tag) != self._tag:
            return False
        if self.cache_validation_callback is None:
            return True
        # A callback counts on what joblib writes, which a full disk or a crash may have kept from the file.
        return metadata.keys() >= _METADATA and bool(self.cache_validation_callback(metadata))

    def _is_stored_code_ours(self) -> bool:
        try:
            if _FUNCTION_HASHES.get(self.func) == self._hash_func():
                return True  # as joblib: what this process has once seen to fit keeps fitting
        except TypeError:
            pass  # not every callable can be hashed
        return self.store_backend.stored_tag(self.func_id) == self._tag

    def _check_previous_func_code(self, stacklevel: int = 2) -> bool:
        token = _checked_code.set(self._tag)
        try:
            return bool(super()._check_previous_func_code(stacklevel=stacklevel + 1))
        finally:
            _checked_code.reset(token)

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Tell whether a call is cached and valid, under its shared lock. Calls and removes nothing."""
        call = self._begun(ThreadCall, args, kwargs)
        if held(self.store_backend.lock_file(call.call_id)) is not None:
            return self._is_in_cache_and_valid(call.call_id)  # asked by its own computation
        return call.run(self._look_up(call))

    async def _look_up(self, call: Call) -> bool:
        store, call_id = self.store_backend, call.call_id
        await call.take("read")
        found = store.contains_item(call_id) or store.signature(call_id) is not None
        return found and self._is_valid(call_id)

    # -- the call -----------------------------------------------------------------------------------------------------

    def _cached_call(self, args: Any, kwargs: Any, shelving: bool) -> Any:
        # In a coroutine function joblib awaits what this returns.
        call = self._begun(self._kind, args, kwargs)
        return call.run(self._steps(call, args, kwargs, shelving))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """
        Compute the call whether it is cached or not, store the result, return it and what is known of the call.

        Of a coroutine function, await what it returns.
        """
        call = self._begun(self._kind, args, kwargs)
        return call.run(self._steps(call, args, kwargs, shelving=False, force=True))

    def _begun(self, kind: type[_Call], args: Any, kwargs: Any) -> _Call:
        call_id = (self.func_id, self._get_args_id(*args, **kwargs))
        return kind(self.store_backend, call_id, partial(self.func, *args, **kwargs))

    async def _steps(
        self, call: Call, args: Any, kwargs: Any, shelving: bool, *, force: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        # Gives what joblib's own _cached_call gives: the output or a reference to it, and what is known of the call.
        # A caller looks without the lock for what is small, and then under the shared lock. What it does not find it
        # computes under the exclusive lock, after another look, because whoever had the lock before may have computed
        # it. While it waits for the exclusive lock it keeps looking: what has appeared need not be computed, and is
        # loaded under the shared lock, together with all the others who waited.
        store, call_id = self.store_backend, call.call_id
        if self._verbose >= 20:  # as joblib
            logging.basicConfig(level=logging.INFO)
            name, signature = format_signature(self.func, *args, **kwargs)
            self.info(f"Querying {name} with signature {signature} (argument hash {call_id[1]}) in {store.location}")
        # A callback is asked under the lock only: once for each call, and never about a result that is not complete.
        if not force and self.cache_validation_callback is None and (small := store.small(call_id)) is not None:
            loaded = await self._load(call, args, kwargs, shelving, small=small) if self._is_valid(call_id) else None
            if loaded is not None:
                return loaded[0], {}
        is_new = not force and store.signature(call_id, depth=0) is None  # its lock is free, or somebody computes it
        while True:
            seen = None
            if not force and not is_new:
                await call.take("read")
                found = store.contains_item(call_id)
                seen = None if found else store.signature(call_id)
                if (found or seen is not None) and self._is_valid(call_id):
                    loaded = await self._load(call, args, kwargs, shelving)
                    if loaded is not None:
                        return loaded[0], {}
                seen = store.signature(call_id) if found else seen
                await call.give()
            taken = await call.take("write", blocking=not is_new, seen=seen, until_changed=not force, tag=self._tag)
            is_new = False
            if taken is Taken.MAPPED_HERE:
                return self._not_stored(await call.compute(), shelving, taken.value)
            if taken is not Taken.YES:
                continue
            now = store.signature(call_id)
            if not force and now is not None and now != seen:
                await call.give()
                continue
            return await self._compute_and_store(call, args, kwargs, shelving)

    async def _load(
        self, call: Call, args: Any, kwargs: Any, shelving: bool, *, small: Signature | None = None
    ) -> tuple[Any] | None:
        # Under the shared lock; or without it what is small, if it is the same afterwards. Gives a tuple of the output,
        # or None if it cannot be loaded.
        store, call_id = self.store_backend, call.call_id
        try:
            started = time.time()
            if shelving:
                output = self._get_memorized_result(call_id)
            else:
                output = await store.load_under(call, timestamp=self.timestamp, verbose=self._verbose)
            if small is not None and store.signature(call_id, depth=1) != small:
                return None
            if self._verbose > 4 and not shelving:
                self._print_duration(time.time() - started, context="cache loaded ")
        except Exception:
            # No word of it if this client only believed that it was there, or if it comes again under the lock.
            if small is None and store.signature(call_id) is not None:
                _, signature = format_signature(self.func, *args, **kwargs)
                self.warn(f"Exception while loading results for {signature}\n {traceback.format_exc()}")
            return None
        return (output,)

    @staticmethod
    def _not_stored(output: Any, shelving: bool, reason: object) -> tuple[Any, dict[str, Any]]:
        warnings.warn(f"Unable to cache to disk: {reason}.", CacheWarning, stacklevel=2)
        return (NotMemorizedResult(output) if shelving else output), {}

    async def _compute_and_store(
        self, call: Call, args: Any, kwargs: Any, shelving: bool
    ) -> tuple[Any, dict[str, Any]]:
        # The exclusive lock is held.
        store, call_id = self.store_backend, call.call_id
        self._check_previous_func_code(stacklevel=4)
        if self._verbose > 10:
            location = store.get_cached_func_info([self.func_id])["location"]
            _, name = get_func_name(self.func)
            self.warn(f"Computing func {name}, argument hash {call_id[1]} in location {location}")
        self._before_call(args, kwargs)
        started = time.time()
        output = await call.compute()
        try:
            store.check_hold(call_id)
        except LockLostError as error:
            return self._not_stored(output, shelving, error)
        store.remove(call_id)  # not earlier: if the function had raised, what was there would be as good as before
        # Before the result is there, so that whoever finds it finds its mark, too, even if this process is killed.
        metadata = self._persist_input(time.time() - started, call_id, args, kwargs)
        store.dump_item(call_id, output, verbose=self._verbose)
        if self._verbose > 0:  # as joblib
            self._print_duration(time.time() - started)
        if shelving:
            return self._get_memorized_result(call_id, metadata), metadata
        if self.mmap_mode is not None:
            await call.give()
            await call.take("read")
            loaded = await self._load(call, args, kwargs, shelving)
            output = output if loaded is None else loaded[0]
        return output, metadata

    # -- removal ------------------------------------------------------------------------------------------------------

    def clear(self, warn: bool = True) -> None:
        """
        Remove the function's results but for those that are in use; never waits.

        :param warn: say so in the log; also how many were in use and stay
        """
        if self._verbose > 0 and warn:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        keep = _checked_code.get()
        busy = self.store_backend.remove_all(self.func_id, keep=keep)
        if busy and warn and keep is None:  # else their mark says that they are of other code
            self.warn(f"{busy} results of {self.func_id} are in use and stay")
        func_code, _, first_line = self.func_code_info
        self._write_func_code(func_code, first_line)


class AsyncLockingMemorizedFunc(LockingMemorizedFunc, AsyncMemorizedFunc):  # type: ignore[misc]
    """A coroutine function whose results are cached, and computed once."""

    _kind = TaskCall


class Memory(joblib.Memory):  # type: ignore[misc]  # joblib has no types
    """
    ``joblib.Memory`` with compute-once: change the import, keep everything else, the store included.

    Of any number of threads, processes and hosts that call a cached function with the same arguments at the same time,
    one computes; the others wait and load. If it raises, or dies, the next one computes. ``clear``, ``reduce_size`` and
    the removal that follows a change of the function's code pass by what is in use. With ``mmap_mode`` a result stays
    in use for as long as the array, or any view of it, lives in the process that loaded it.

    A result that is ready when the exclusive lock has been lost (the process was stopped, the server away, for longer
    than the lease) is returned and not stored, with a ``CacheWarning``. For functions that hold the GIL for longer than
    the lease say ``heartbeat="process"``.

    :param location: the store, as in joblib; ``None``: no caching, and no locks
    :param backend: ``"local"`` or ``"nfsrwlock"``, which mean the same here
    :param granularity: ``"item"``: a lock for each function and arguments. ``"function"``: one for each function, so
        that it is computed by one caller at a time, whatever the arguments; it makes fewer files
    :param linger: seconds for which the shared lock of a large result that is loaded again and again is kept at a time.
        Who wants it exclusively on another host, or to remove the result, finds it in use for that much longer; 0: give
        it back after each load
    :param options: settings of the locks, see :class:`nfsrwlock.SoftReadWriteLock`; ``timeout`` is for each wait

    The other parameters are joblib's.

    :raises TypeError: if ``backend`` is another one, or an option is unknown or of the wrong type
    :raises ValueError: if settings are out of range or contradict each other

    A cached call raises what its function raises, and :class:`Timeout`, :class:`LockPathError`, and
    :class:`DeadlockError` if it is made, with the same arguments, by its own computation.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | None = None,
        backend: str = "local",
        mmap_mode: str | None = None,
        compress: bool | int | tuple[str, int] = False,
        verbose: int = 1,
        backend_options: dict[str, Any] | None = None,
        *,
        granularity: Granularity = "item",
        linger: float = LINGER_S,
        **options: Unpack[LockOptions],
    ) -> None:
        if backend not in ("local", "nfsrwlock"):
            raise TypeError(
                f"Unknown location {location} or backend {backend}: nfsrwlock keeps its store in a directory, "
                "so backend must be 'local' or 'nfsrwlock'"
            )
        refuse_unknown(options, "Memory()")
        register_store_backend()
        super().__init__(
            location=location,
            backend="nfsrwlock",
            mmap_mode=mmap_mode,
            compress=compress,
            verbose=verbose,
            backend_options={"granularity": granularity, "linger": linger, **(backend_options or {}), **options},
        )

    def cache(
        self,
        func: Callable[..., Any] | None = None,
        ignore: list[str] | None = None,
        verbose: int | None = None,
        mmap_mode: str | bool | None = False,
        cache_validation_callback: Callable[[dict[str, Any]], bool] | None = None,
    ) -> Any:
        """Return ``func`` with its results cached and computed once; parameters as in joblib."""
        cached = super().cache(func, ignore, verbose, mmap_mode, cache_validation_callback)
        if not isinstance(cached, MemorizedFunc):
            return cached  # there is no store, or no function yet
        # joblib names its classes in there. Ours have the same state.
        is_coroutine = isinstance(cached, AsyncMemorizedFunc)
        cached.__class__ = AsyncLockingMemorizedFunc if is_coroutine else LockingMemorizedFunc
        # joblib would read the source at the first call. The file may have been changed by then, and what this process
        # computes would be marked as computed by code that it does not have.
        _ = cached.func_code_info
        return cached

    def clear(self, warn: bool = True) -> None:
        """Remove all results but for those that are in use; never waits. Locks stay."""
        if warn:
            self.warn("Flushing completely the cache")
        if self.store_backend is None:
            return
        busy = self.store_backend.remove_all("")
        _FUNCTION_HASHES.clear()
        if busy and warn:
            self.warn(f"{busy} results are in use and stay")
