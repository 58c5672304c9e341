"""
joblib's store of results in a directory, with a lock for each item (or each function).

The files are those of ``joblib.Memory``: either can read what the other wrote. Beside them, as ``<store>.locks``, lies
a tree of locks, outside of what joblib lists and clears. One entry is added to an item's ``metadata.json``: a digest of
the source code that computed it, by which a result of another version of the function is recognised, whoever wrote it
when.

Registered with joblib as the backend ``nfsrwlock``, it makes a plain ``joblib.Memory`` safe against removals under a
reader's hands. It cannot make that compute once: joblib decides to compute before it asks the store for anything, and
tells it nothing if the function raises. :class:`nfsrwlock.joblib.Memory` does.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, Final, Literal, get_args

from joblib._store_backends import CacheWarning, FileSystemStoreBackend
from joblib.memory import extract_first_line
from joblib.memory import register_store_backend as _register

from nfsrwlock.driving import at_once
from nfsrwlock.freshness import Signature, signature_afresh
from nfsrwlock.options import LOCK_OPTIONS, LockOptions
from nfsrwlock_core import SoftReadWriteLock, Timeout, make_directories

from .around import held
from .calls import Call, Taken, ThreadCall
from .mapping import maps_in

Granularity = Literal["item", "function"]
CallId = tuple[str, str]

#: The entry of ``metadata.json`` that says which code computed an item.
TAG: Final = "nfsrwlock_func_code"
_LOCKS: Final = ".locks"
_ITEM: Final = re.compile(r"[a-f0-9]{32}")
_OUTPUT: Final = "output.pkl"
#: How often a directory is made anew that a cleaner removes in the same moment because it is empty.
_TRIES: Final = 100
#: How long a result's shared hold may be kept, seconds: hundreds of hits, and a delay that no computation worth storing
#: notices.
LINGER_S: Final = 0.25
#: A result of at most this size, bytes, is loaded without its lock: to load it again costs less than the lock.
_SMALL: Final = 1 << 20


@lru_cache(maxsize=256)
def tag_of(func_code: str) -> str:
    """Return the digest of a function's source code that its items are marked with."""
    return hashlib.sha256(func_code.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class LockingStoreBackend(FileSystemStoreBackend):  # type: ignore[misc]  # joblib has no types
    """
    The store; see the module.

    Its options, given as ``backend_options`` of a ``joblib.Memory``, are ``granularity``, ``linger`` and the settings
    of :class:`nfsrwlock.SoftReadWriteLock` that :class:`nfsrwlock.LockOptions` names, besides joblib's own.
    """

    granularity: Granularity = "item"

    def configure(self, location: str, verbose: int = 1, backend_options: dict[str, Any] | None = None) -> None:
        """Set the store up; joblib calls this."""
        options = dict(backend_options or {})
        granularity = options.pop("granularity", "item")
        if granularity not in get_args(Granularity):
            raise ValueError(f"granularity must be 'item' or 'function', got {granularity!r}")
        if granularity == "function" and options.get("mmap_mode") is not None:
            raise ValueError(
                "mmap_mode needs granularity='item': with one lock for the function, each mapped array would keep "
                "everybody from computing anything"
            )
        # Others are passed on: joblib lets a backend take what it knows.
        linger = options.pop("linger", LINGER_S)
        own = {name: options.pop(name) for name in list(options) if name in LOCK_OPTIONS}
        # Resolved once: wherever the program goes, its results stay where their locks are.
        super().configure(os.path.realpath(location), verbose=verbose, backend_options=options)
        self.granularity = granularity
        self._linger = linger
        self._options = LockOptions(**own)  # type: ignore[typeddict-item]  # looked at above
        self._root = self.location + _LOCKS
        # Wrong settings are refused at once.
        of_all = SoftReadWriteLock(self._root, is_singleton=False, linger=linger, **self._options)
        self._agree_on_granularity(of_all.lock_path.removesuffix(".rwlock") + ".granularity", of_all.share)

    def _agree_on_granularity(self, marker: str, share: Literal["user", "group"]) -> None:
        # Who locks items and who locks functions would not see each other. A symbolic link is made whole or not at all,
        # by one of those who come at the same time.
        with suppress(OSError):  # it is there, or who may not write there, and cannot lock either
            make_directories(os.path.dirname(marker), share)
            os.symlink(self.granularity, marker)
        with suppress(OSError):
            if (agreed := os.readlink(marker)) != self.granularity:
                raise ValueError(
                    f"the store {self.location!r} is used with granularity={agreed!r}, not {self.granularity!r}: use "
                    f"the same in all programs, also in those that clean up. To change it, remove {marker!r} while "
                    "none runs"
                )

    # -- locks --------------------------------------------------------------------------------------------------------

    def lock_file(self, call_id: CallId) -> str:
        """Return the path that names the lock of an item: ``nfsrwlock status`` shows who holds it."""
        last = call_id[1] if self.granularity == "item" else "function"
        return os.path.join(self._root, call_id[0], last)

    def lock_for(self, call_id: CallId, kind: Callable[..., Any] = SoftReadWriteLock) -> Any:
        """Return a new lock object for an item: threads exclude each other by the same rules as processes do."""
        # A map's hold lasts for as long as the map does; there is nothing to keep after it. None leaves a directory:
        # there are as many locks as results.
        linger = 0.0 if self.mmap_mode is not None else self._linger
        return kind(self.lock_file(call_id), is_singleton=False, linger=linger, numbered=False, **self._options)

    def check_hold(self, call_id: CallId) -> None:
        """Make sure that the caller's hold on an item stands, if it has one; raise :class:`LockLostError` if not."""
        if (hold := held(self.lock_file(call_id))) is not None:
            hold.check()

    def signature(self, call_id: CallId, depth: int = 2) -> Signature | None:
        """Return by what one stored result differs from another, as the file server says; ``None`` if there is none."""
        return signature_afresh(os.path.join(self.location, *call_id, _OUTPUT), depth)

    def small(self, call_id: CallId) -> Signature | None:
        """
        Return the signature of a result that is loaded without its lock, from this host's cache, which may be old.

        A result is one file, which appears whole and is never changed. So it is loaded whole or not at all; and if
        its signature is still the same afterwards, whatever was read about the item in between was about this result.
        """
        with suppress(OSError):
            if self.mmap_mode is None and (found := self.signature(call_id, depth=0)) and found[1] <= _SMALL:
                return found
        return None

    @contextmanager
    def _exclusively(self, call_id: CallId, *, wait: bool) -> Iterator[None]:
        # Timeout says that the item is in use.
        lock_file = self.lock_file(call_id)
        if (outer := held(lock_file)) is not None:
            if outer.mode == "read":
                raise Timeout(lock_file, "this very thread reads it")
            yield
            return
        call = ThreadCall(self, call_id)
        try:
            if (taken := at_once(call.take("write", blocking=wait))) is not Taken.YES:
                raise Timeout(lock_file, taken.value)
            yield
        finally:
            at_once(call.give())

    # -- items --------------------------------------------------------------------------------------------------------

    def load_item(self, call_id: CallId, **options: Any) -> Any:
        """
        Load an item; unless it is small, under its shared lock, which memory maps in it keep for as long as they live.

        :raises KeyError: if there is none
        """
        if held(self.lock_file(call_id)) is not None:
            return super().load_item(call_id, **options)
        if (before := self.small(call_id)) is not None:
            try:
                return super().load_item(call_id, **options)
            except Exception:
                if self.signature(call_id, depth=1) == before:
                    raise  # nobody has removed it: it is damaged, or this is a signal's exception
        call = ThreadCall(self, call_id)
        return call.run(self._load(call, options))

    async def _load(self, call: Call, options: dict[str, Any]) -> Any:
        await call.take("read")
        try:
            return await self.load_under(call, **options)
        except FileNotFoundError as error:
            if self.signature(call.call_id) is None:  # this client only believed that it was there
                raise KeyError(f"there is no such item any more: {error.filename}") from error
            raise

    async def load_under(self, call: Call, **options: Any) -> Any:
        """Load a small item, or that of a call that holds its lock, which memory maps in it keep if they can."""
        item = super().load_item(call.call_id, **options)
        maps = [] if self.mmap_mode is None else maps_in(item)
        if maps and not await call.keep(maps):
            plain = copy.copy(self)
            plain.mmap_mode = None
            item = plain.load_item(call.call_id)
        return item

    def dump_item(self, call_id: CallId, item: Any, verbose: int = 1) -> None:
        """Store an item under its exclusive lock; as joblib, warn and go on where that is not possible."""
        try:
            with self._exclusively(call_id, wait=True):
                super().dump_item(call_id, item, verbose=verbose)
        except Timeout as error:
            warnings.warn(f"Unable to cache to disk: {error}.", CacheWarning, stacklevel=2)

    def _concurrency_safe_write(self, to_write: Any, filename: str, write_func: Callable[[Any, str], None]) -> None:
        call_id = os.path.split(os.path.relpath(os.path.dirname(filename), self.location))
        begun = f"{filename}.{secrets.token_hex(16)}"
        try:
            write_func(to_write, begun)
            # The moment in which a result becomes visible, and so the last one to make sure that it may.
            if _ITEM.fullmatch(call_id[1]):
                self.check_hold(call_id)
            os.replace(begun, filename)
        except BaseException:
            # joblib leaves what it could not write to its end, gigabytes perhaps, on a disk that is full.
            with suppress(OSError):
                os.unlink(begun)
            raise

    def get_metadata(self, call_id: CallId) -> dict[str, Any]:
        """Return what is known of a computation; nothing if that cannot be read."""
        metadata = super().get_metadata(call_id)
        return metadata if isinstance(metadata, dict) else {}

    def store_metadata(self, call_id: CallId, metadata: dict[str, Any]) -> None:
        """Store what is known of a computation, and, under a hold that says so, which code it was."""
        hold = held(self.lock_file(call_id))
        if hold is not None and hold.tag is not None:
            metadata = {**metadata, TAG: hold.tag}
        super().store_metadata(call_id, metadata)

    def create_location(self, location: str) -> None:
        """Make a directory, also while a cleaner removes those above it that are empty."""
        _whatever_cleaners_do(partial(super().create_location, location))

    def store_cached_func_code(self, call_id: list[str], func_code: str | None = None) -> None:
        """Store the code of a function, also while a cleaner removes its directory because it is empty."""
        _whatever_cleaners_do(partial(super().store_cached_func_code, call_id, func_code))

    # -- removal ------------------------------------------------------------------------------------------------------

    def clear_location(self, location: str) -> None:
        """
        Remove an item, or all of a function or of the store, but for those that are in use; joblib removes by this.

        Locks stay, and so do files that are none of joblib's.
        """
        call_id = os.path.split(os.path.relpath(location, self.location))
        if _ITEM.fullmatch(call_id[1]):
            self.remove_if_idle(call_id)
        else:
            self.remove_all(os.path.join(*call_id))

    def remove_if_idle(self, call_id: CallId, *, keep: str | None = None) -> bool:
        """
        Remove an item unless it is in use; never waits.

        :param keep: leave an item that is marked with this
        :returns: whether it is gone, or may stay
        """
        if not os.path.isdir(os.path.join(self.location, *call_id)):
            return True
        try:
            with self._exclusively(call_id, wait=False):
                if keep is None or self.get_metadata(call_id).get(TAG) != keep:
                    self.remove(call_id)
        except Timeout:
            return False
        return True

    def remove(self, call_id: CallId) -> None:
        """Remove what is there of an item. The caller holds its exclusive lock."""
        # The result first: without it there is no item, whatever a crash leaves of the rest.
        directory = os.path.join(self.location, *call_id)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, _OUTPUT))
        shutil.rmtree(directory, ignore_errors=True)

    def remove_all(self, func_id: str, *, keep: str | None = None) -> int:
        """
        Remove all items of a function, or of the store (``""``), that are not in use, and directories left empty.

        An item that is in use stays, and is marked as what it is if joblib wrote it without a mark: nobody will take it
        for a result of other code.

        :param keep: the mark of the code that the function has now: only its own items that other code computed go
        :returns: how many were in use
        """
        items = self._items(func_id, deep=keep is None)
        old = {func_id: self.stored_tag(func_id) for func_id, _ in items}  # now: other code may be stored meanwhile
        busy = [call_id for call_id in items if not self.remove_if_idle(call_id, keep=keep)]
        for call_id in busy:
            metadata = self.get_metadata(call_id)
            if TAG not in metadata and self.contains_item(call_id):
                super().store_metadata(call_id, {**metadata, TAG: old[call_id[0]]})
        if keep is None:
            self._prune(os.path.normpath(os.path.join(self.location, func_id)))
        return len(busy)

    def _items(self, func_id: str, *, deep: bool) -> list[CallId]:
        found = []
        for directory, names, _ in os.walk(os.path.join(self.location, func_id)):
            here = os.path.relpath(directory, self.location)
            found += [(here, name) for name in names if _ITEM.fullmatch(name)]
            names[:] = [name for name in names if deep and not _ITEM.fullmatch(name)]
        return found

    def stored_tag(self, func_id: str) -> str:
        """Return the mark of the code that lies beside a function's items; one that fits no code if none does."""
        try:
            return tag_of(extract_first_line(self.get_cached_func_code([func_id]))[0])
        except (OSError, ValueError):
            return ""

    def _prune(self, top: str) -> None:
        # Directories that hold no items any more, deepest first. rmdir(2) refuses the others, however they came by it.
        for directory, names, files in os.walk(top, topdown=False):
            if directory == self.location or _ITEM.fullmatch(os.path.basename(directory)):
                continue
            if any(os.path.isdir(os.path.join(directory, name)) for name in names):
                continue
            for name in files:
                if name == "func_code.py" or name.startswith("func_code.py."):
                    with suppress(OSError):
                        os.unlink(os.path.join(directory, name))
            with suppress(OSError):
                os.rmdir(directory)


def _whatever_cleaners_do(make: Callable[[], None]) -> None:
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return make()
    return make()


def register_store_backend() -> None:
    """
    Register the backend ``nfsrwlock`` with joblib, for ``joblib.Memory(location, backend="nfsrwlock")``.

    Call it once in each program that makes such a Memory; a Memory that arrives by pickle needs no call.
    """
    _register("nfsrwlock", LockingStoreBackend)
