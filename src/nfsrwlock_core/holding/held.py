"""
What stands behind a caller: the holds that cannot end before the caller itself does.

A process that holds a lock for another one (``nfsrwlock run`` and ``hold``) names that process by :func:`hold_for`. A
process below the named one that waits for this hold waits for itself, and gets :class:`DeadlockError` at once. So does
one that was given the hold's name in its environment (:data:`VARIABLE`), on whatever host. An ancestor that holds the
lock itself may release it in another thread, so there the waiting goes on, with a warning.

Nothing is read as long as nobody waits, and nothing of the lock's file system ever.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nfsrwlock_core.errors import DeadlockError
from nfsrwlock_core.names import Announcement, Identity, Mode
from nfsrwlock_core.system.process import ancestors, current_identity, is_same_kernel, start_of

from .hold import logger

if TYPE_CHECKING:
    from nfsrwlock_core.protocol.participant import Participant

#: Names of the holds that this process was started under (:attr:`HoldWitness.name`), separated by spaces.
VARIABLE: Final = "NFSRWLOCK_HELD"
#: Followed by a process id and the start time of that process, it names a descriptor of who holds for that process.
_MARK: Final = "nfsrwlock-for."
#: A holder with more descriptors than this is none of the small processes that hold for others.
_DESCRIPTORS_MOST: Final = 64
_NEVER_ENDS: Final = "waiting would never end. Take it once, around everything"
_DOING: Final = {Mode.READ: "shared", Mode.WRITE: "exclusively"}


def hold_for(pid: int) -> None:
    """
    Say that what this process holds from now on, it holds until process ``pid`` ends, for all that ``pid`` starts.

    It is said by an open descriptor, so it ends with this process, and only this user's processes can read it. Does
    nothing where there is no ``memfd_create`` (other systems than Linux).

    :param pid: of a process that this one sees
    """
    with suppress(AttributeError, OSError, ValueError, IndexError):
        os.memfd_create(f"{_MARK}{pid}.{start_of(pid)}")


class SelfWait:
    """
    Looks, while an attempt waits, whether it waits for itself.

    :param lock_file: the path that is asked for
    :param mode: in which it is asked for
    """

    def __init__(self, lock_file: str, mode: Mode) -> None:
        self._lock_file: Final = lock_file
        self._mode: Final = mode
        self._seen: set[tuple[str, bool]] = set()
        #: Why the waiting may never end.
        self.warning: str | None = None

    def look(self, participant: Participant) -> None:
        """
        Look at who has come into the way since the last look.

        :raises DeadlockError: if one of them holds the lock until an ancestor of this process ends
        """
        blockers = {peer.name for peer in participant.blockers}
        peers = {(peer.name, peer.name in blockers): peer for peer in participant.others}
        new = [(peer, key[1]) for key, peer in peers.items() if key not in self._seen]
        self._seen.update(peers)
        given = os.environ.get(VARIABLE, "").split()
        for peer, blocks in new:
            if blocks and peer.who is not None and peer.name in given:
                raise DeadlockError(f"{self._text(peer, peer.who, None)}; {_NEVER_ENDS}")
        here = [(peer, peer.who, blocks) for peer, blocks in new if peer.who is not None and is_same_kernel(peer.who)]
        if not here:
            return
        above = ancestors()
        for peer, who, blocks in here:
            whom = _held_for(who) & above
            is_ancestor = (who.pid, who.start) in above and who.pid != os.getpid()
            if not whom and not is_ancestor:
                continue
            text = self._text(peer, who, min(whom)[0] if whom else None)
            if whom and blocks:
                raise DeadlockError(f"{text}; {_NEVER_ENDS}")
            if self.warning is None and (blocks or self._mode is peer.mode is Mode.READ):
                # A writer that waits for the ancestor's shared hold may stand between; it may also give up.
                self.warning = f"{text}; if it waits for this process, neither will ever go on"
                logger.warning("%s", self.warning)

    def _text(self, peer: Announcement, who: Identity, whom: int | None) -> str:
        by = f"process {who.pid} ({_command(who.pid)})"
        kin = "an ancestor of this one"
        if whom is not None:
            kin = f"which acts for process {whom} ({_command(whom)}), {kin}"
        wish = f"cannot take the {self._mode.value} lock on {self._lock_file!r}"
        return f"{wish}: {by}, {kin}, holds it {_DOING[peer.mode]}"


def _held_for(who: Identity) -> set[tuple[int, int]]:
    # For which processes a peer on this kernel has said that it holds.
    found: set[tuple[int, int]] = set()
    if who.uid != current_identity().uid:
        return found
    with suppress(OSError, ValueError, IndexError):
        descriptors = os.listdir(f"/proc/{who.pid}/fd")
        if len(descriptors) > _DESCRIPTORS_MOST:
            return found
        for descriptor in descriptors:
            with suppress(FileNotFoundError):
                name = os.readlink(f"/proc/{who.pid}/fd/{descriptor}").removeprefix("/memfd:").split(" ")[0]
                if name.startswith(_MARK):
                    pid, start = name.removeprefix(_MARK).split(".")
                    found.add((int(pid), int(start)))
        if start_of(who.pid) != who.start:  # another process has the number by now
            return set()
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = os.fsdecode(file.read(200)).replace("\0", " ").strip()
        return "".join(c if c.isprintable() else "?" for c in text) or "of an unknown command"
    return "of an unknown command"
