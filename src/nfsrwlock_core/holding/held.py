"""
What a caller holds, by itself or by an ancestor: what cannot end before the caller does, so it must not wait for it.

A thread, or an asyncio task, whose wait for its own hold nothing can end gets :class:`DeadlockError`. A process that
holds a lock for another one (``nfsrwlock run`` and ``hold``) names that process by :func:`hold_for`; processes below
the named one that wait for this hold get the error at once, and so does one that was given the hold's name in its
environment (:data:`VARIABLE`), on whatever host. An ancestor that holds the lock itself may release it in another
thread, so there the waiting goes on, with a warning.

Nothing is read as long as nobody waits, and nothing of the lock's file system ever.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from nfsrwlock_core.errors import DeadlockError
from nfsrwlock_core.names import Identity, Mode
from nfsrwlock_core.system.process import ancestors, current_identity, is_same_kernel, stat_of
from nfsrwlock_core.trace import logger

from . import keeper
from .hold import Hold, HoldStatus

if TYPE_CHECKING:
    from nfsrwlock_core.protocol.participant import Participant

    from .kept import Use

#: Names of the holds that this process was started under (:attr:`HoldWitness.name`), separated by spaces.
VARIABLE: Final = "NFSRWLOCK_HELD"
#: Followed by a process id and the start time of that process, it names a descriptor of who holds for that process.
_MARK: Final = "nfsrwlock-for."
#: A holder with more descriptors than this is none of the small processes that hold for others.
_DESCRIPTORS_MOST: Final = 64
_DOING: Final = {Mode.READ: "shared", Mode.WRITE: "exclusively"}


def hold_for(pid: int) -> None:
    """
    Say that what this process holds from now on, it holds until process ``pid`` ends, for all that ``pid`` starts.

    It is said by an open descriptor, so it ends with this process, and only this user's processes can read it; nothing
    is said where there is no ``memfd_create`` (other systems than Linux). What this process holds from now on sends its
    first heartbeat at once, so that others see what runs under it.

    :param pid: of a process that this one sees
    """
    keeper.beat_at_once()
    with suppress(AttributeError, OSError, ValueError, IndexError):
        os.memfd_create(f"{_MARK}{pid}.{stat_of(pid).start}")


def holds_for(holder: int, pid: int) -> bool:
    """
    Whether process ``holder`` has said by :func:`hold_for` that it holds for process ``pid``.

    :param holder: the id of a process of this user; of others nothing can be known
    """
    with suppress(OSError, ValueError, IndexError):
        return (pid, stat_of(pid).start) in _named_by(holder)
    return False


def callers() -> set[object]:
    """Return what the calling code's holds are noted under: its thread, and its asyncio task if it is in one."""
    found: set[object] = {threading.get_ident()}
    if (asyncio := sys.modules.get("asyncio")) is not None:
        with suppress(RuntimeError, TypeError):  # no loop runs here, or no task
            found.add(ref(asyncio.current_task()))
    return found


def uses_of(mine: set[object]) -> Iterator[tuple[Use, Hold]]:
    """Yield all that this process holds and only ``mine`` can give back."""
    for hold in keeper.holds():
        for use in tuple(hold.users):
            whose: Collection[object] = tuple(use.threads) if use.task is None else (use.task,)
            if not use.may_move and not mine.isdisjoint(whose):
                yield use, hold


def own_hold(lock_path: str) -> Use | None:
    """
    Return what the calling thread, or asyncio task, holds of the lock that lives at ``lock_path``.

    :returns: its use of a hold that stands: in which ``mode``, and by which lock (``owner``); ``None`` if it has none
    """
    found = (pair for pair in uses_of(callers()) if pair[0].lock_path == lock_path)
    return next((use for use, hold in found if hold.status is HoldStatus.HELD), None)


def self_wait(lock_file: str, mode: Mode, by: str, held: Mode) -> str:
    """Return what to tell of a wait for ``by``, who cannot give the lock back before the waiting ends."""
    wish = f"cannot take the {mode.value} lock on {lock_file!r}"
    return f"{wish}: {by} holds it {_DOING[held]}; waiting would never end. Take it once, around everything"


class SelfWait:
    """
    Looks, while an attempt waits, whether it waits for itself.

    :param lock_file: the path that is asked for
    :param mode: in which it is asked for
    :param task: which asks for it; ``None``: the calling thread
    :param at_most: the limit that is asked for, 0: none
    """

    def __init__(self, lock_file: str, mode: Mode, task: ref[Any] | None = None, at_most: int = 0) -> None:
        self._lock_file: Final = lock_file
        self._at_most: Final = at_most
        self._mode: Final = mode
        self._task: Final = task
        self._seen: set[tuple[str, bool]] = set()
        #: Why the waiting may never end.
        self.warning: str | None = None

    def look(self, participant: Participant, *, is_endless: bool) -> None:
        """
        Look at who has come into the way since the last look.

        :param is_endless: nothing but a release of the lock can end the waiting
        :raises DeadlockError: if one of them holds the lock until the caller, or an ancestor of this process, ends
        """
        blockers = {peer.name for peer in participant.blockers}
        peers = {(peer.name, peer.name in blockers): peer for peer in participant.others}
        new = [(peer, key[1]) for key, peer in peers.items() if key not in self._seen]
        self._seen = set(peers)
        if not new:
            return
        given = os.environ.get(VARIABLE, "").split()
        mine: set[object] = callers() if self._task is None else {self._task}
        own = {hold.participant.name for _, hold in uses_of(mine)} if is_endless else set()
        ours = blockers & own.union(given)
        others = {peer.who for peer, _ in new if peer.who is not None and peer.who.pid != os.getpid()}
        near = {who for who in others if is_same_kernel(who)}
        above = ancestors() if near else set()
        held_for = {who: _held_for(who) & above for who in near}  # once for each process, however many wait in it
        for peer, blocks in new:
            if peer.who is None:
                continue
            whom = held_for.get(peer.who, set())
            is_own, is_above = peer.name in own, (peer.who.pid, peer.who.start) in above and peer.who.pid != os.getpid()
            if is_own:
                by = f"this very {'thread' if self._task is None else 'task'}"
            elif whom or is_above or (blocks and peer.name in given):
                by = _kin(peer.who, min(whom)[0] if whom else None)
            else:
                continue
            text = self_wait(self._lock_file, self._mode, by, peer.mode)
            # Of several permits, that of another may come free.
            none_comes_free = self._at_most < 2 or peer.mode is Mode.WRITE or len(ours) >= self._at_most
            if blocks and none_comes_free and (is_own or whom or peer.name in given):
                raise DeadlockError(text)
            if self.warning is None and (blocks or self._mode is peer.mode is Mode.READ):
                # A writer that waits for the ancestor's shared hold may stand between; it may also give up.
                self.warning = f"{text.partition(';')[0]}; if it waits for this process, neither will ever go on"
                logger.warning("%s", self.warning)


def _held_for(who: Identity) -> set[tuple[int, int]]:
    # For which processes a peer on this kernel has said that it holds.
    found: set[tuple[int, int]] = set()
    if who.uid != current_identity().uid:
        return found
    with suppress(OSError, ValueError, IndexError):
        found = _named_by(who.pid)
        if stat_of(who.pid).start != who.start:  # another process has the number by now
            return set()
    return found


def _named_by(holder: int) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    descriptors = os.listdir(f"/proc/{holder}/fd")
    for descriptor in descriptors if len(descriptors) <= _DESCRIPTORS_MOST else ():
        with suppress(FileNotFoundError):
            name = os.readlink(f"/proc/{holder}/fd/{descriptor}").removeprefix("/memfd:").split(" ")[0]
            if name.startswith(_MARK):
                pid, start = name.removeprefix(_MARK).split(".")
                found.add((int(pid), int(start)))
    return found


def _kin(who: Identity, whom: int | None) -> str:
    by = f"process {who.pid} ({_command(who.pid)})"
    acts = "" if whom is None else f"which acts for process {whom} ({_command(whom)}), "
    return f"{by}, {acts}an ancestor of this one,"


def _command(pid: int) -> str:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = os.fsdecode(file.read(200)).replace("\0", " ").strip()
        return "".join(c if c.isprintable() else "?" for c in text) or "of an unknown command"
    return "of an unknown command"
