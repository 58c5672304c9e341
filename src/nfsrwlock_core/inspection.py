"""
Who holds a lock and who waits for it, for people: needs no lock, changes nothing.

Everything that decides anything is in the protocol. What is shown here may use wall clocks and the file server's time
stamps, and says that it is an estimate where it does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from . import trace
from .errors import LockBusyError, LockPathError, path_error
from .names import Announcement, Listing, Mode, beat_name, gone_name, parse_beats, parse_listing
from .protocol.removal import evict
from .protocol.watch import Watch
from .system.directory import MOVE_AWAY, LockDirectory, opened, refusal
from .system.paths import lock_path_of
from .system.process import ancestors, is_dead, is_same_kernel, user_name

#: How often an operator's removal is tried against a holder that beats.
_TRIES: Final = 50
#: A wait that is as long as this for no known reason is odd.
_ODD_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """
    One participant of a lock.

    :param name: its entry in the lock directory
    :param token: 32 hex digits that name this attempt and no other
    :param mode: ``"read"``, ``"write"``, or ``"unknown"`` for an entry that this version does not understand
    :param state: ``"holding"`` or ``"waiting"``, as far as one listing tells
    :param host: host name, as the participant states it
    :param pid: its process id there
    :param user: its user name, or number where this host knows no name
    :param since: when it announced itself, seconds since the epoch on *its* clock
    :param silent_for: seconds since its latest heartbeat: an estimate from the file server's time stamp
    :param lease: seconds of silence after which any host may evict it
    :param evictable_in: seconds until then, at the earliest; 0 if it may be evicted now
    :param same_kernel: whether it runs on this boot of this machine
    :param alive: whether its process lives; ``None`` on another machine, where it cannot be known
    :param command: its command line, known once it has sent a heartbeat
    :param job: the id of its batch job, known once it has sent a heartbeat
    :param understood: ``False``: the entry counts as a holder because this version cannot read its name
    :param at_most: how many readers with a limit may hold at a time by what it says, 0 if it sets none
    """

    name: str
    token: str
    mode: Literal["read", "write", "unknown"]
    state: Literal["holding", "waiting"]
    host: str | None
    pid: int | None
    user: str | None
    since: float | None
    silent_for: float
    lease: float
    evictable_in: float
    same_kernel: bool
    alive: bool | None
    command: str | None = None
    job: str | None = None
    understood: bool = True
    at_most: int = 0

    @property
    def is_ancestor(self) -> bool:
        """Whether its process lives above the calling one, which it may wait for; as far as this machine tells."""
        above = {pid for pid, _ in ancestors()} - {os.getpid()} if self.same_kernel and self.alive else ()
        return self.pid in above

    def began(self) -> str:
        """Return ``since`` as people write it: the time of day, or the day if that is not today; empty if unknown."""
        if self.since is None:
            return ""
        try:
            then, today = time.localtime(self.since), time.localtime()
        except (OverflowError, ValueError, OSError):  # a name may state any time
            return "an impossible time"
        same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
        return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)

    def describe(self) -> str:
        """Return one line about this participant, for messages."""
        if not self.understood:
            return (
                f"an entry of unknown format ({_text(self.name[:80])!r}), which counts as held; if nothing uses it, "
                "remove it with 'nfsrwlock break'"
            )
        doing = {"read": "reading", "write": "writing", "unknown": "holding"}[self.mode]
        if self.state == "waiting":
            doing = f"waiting for {doing}"
        since = f" since {began}" if (began := self.began()) else ""
        job = f" (job {self.job})" if self.job else ""
        ended = ", its process has ended" if self.alive is False else ""
        return f"{self.user}@{self.host} pid {self.pid}{job}, {doing}{since}, silent for {self.silent_for:.0f} s{ended}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    """
    A lock as one listing shows it.

    :param lock_file: the path as it was asked for
    :param lock_path: the directory where the lock lives
    :param exists: whether that directory exists; a lock that nobody ever took has none
    :param holders: who holds the lock
    :param waiters: who waits announced; readers that wait for a writer do so without a trace, so they are not here
    :param generation: number of the latest granted write, 0 if there was none, ``None`` if the lock does not exist
    """

    lock_file: str
    lock_path: str
    exists: bool
    holders: tuple[PeerInfo, ...] = ()
    waiters: tuple[PeerInfo, ...] = ()
    generation: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitInfo:
    """
    What a caller that waits can show.

    :param lock_file: the path it waits for
    :param mode: how it asked
    :param waited: seconds so far
    :param blockers: who holds the lock, then who waits for it ahead; ``silent_for`` is since this process first saw it
    :param trouble: what the file system answers instead, if it does not let the lock be looked at
    :param warning: why the waiting may never end, if an ancestor of this process holds the lock
    """

    lock_file: str
    mode: Literal["read", "write"]
    waited: float
    blockers: tuple[PeerInfo, ...]
    trouble: str | None = None
    warning: str | None = None

    def describe(self) -> str:
        """Return who or what is in the way, for messages; empty if there was little time to see that."""
        if self.blockers:
            text = "; ".join(peer.describe() for peer in self.blockers[:3])
            if len(self.blockers) > 3:
                text += f" and {len(self.blockers) - 3} more"
        elif self.trouble is not None:
            text = f"the file system answers {self.trouble}"
        elif self.waited > _ODD_S:
            text = "nobody is known to be in the way, so the file system may be in trouble"
        else:
            text = ""
        return text if self.warning is None else f"{text}. {self.warning}"


def inspect(
    path: str | os.PathLike[str], *, lock_dir: str | os.PathLike[str] | None = None, previous: LockState | None = None
) -> LockState:
    """
    Return who holds the lock on ``path`` and who waits for it. Takes no lock and changes nothing.

    :param lock_dir: where locks live, if not beside the data; the default is ``NFSRWLOCK_DIR``, as for the lock itself
    :param previous: an earlier result for the same path; a waiter it showed that has not moved is shown the same way
    :raises LockPathError: if the lock directory cannot be read, or is no directory
    """
    lock_file = os.fsdecode(path)
    lock_path = lock_path_of(path, lock_dir)
    try:
        listing = list_lock(lock_path)
    except FileNotFoundError:
        return LockState(lock_file=lock_file, lock_path=lock_path, exists=False)
    peers = [_peer_info(lock_path, announcement) for announcement in listing.announcements.values()]
    was_holding = frozenset(peer.token for peer in previous.holders) if previous is not None else frozenset()
    holders, waiters = _told_apart(peers, was_holding)
    return LockState(
        lock_file=lock_file,
        lock_path=lock_path,
        exists=True,
        holders=holders,
        waiters=waiters,
        generation=listing.highest_generation,
    )


def list_lock(lock_path: str) -> Listing:
    """Return one listing of the lock that lives at ``lock_path``; FileNotFoundError and LockPathError say why not."""
    try:
        return parse_listing(LockDirectory(lock_path).listdir())
    except NotADirectoryError:
        raise refusal(lock_path) from None
    except PermissionError as error:
        raise LockPathError(
            lock_path, "cannot be read: permission denied", f"ask its owner, or {MOVE_AWAY}", error.errno
        ) from None
    except OSError as error:
        raise path_error(error, lock_path) or error from None


def _told_apart(
    peers: list[PeerInfo], was_holding: frozenset[str] = frozenset()
) -> tuple[tuple[PeerInfo, ...], tuple[PeerInfo, ...]]:
    # A reader without a limit stays announced only while it holds (it withdraws at once when it sees a writer), so it
    # holds, and a writer beside it waits. Of those that stand in line, be they writers or readers with a limit, the
    # ones that announced themselves first hold: later ones wait for them.
    peers = sorted(peers, key=lambda peer: (peer.token not in was_holding, peer.since or 0.0, peer.token))
    limited = [peer for peer in peers if peer.at_most and peer.mode == "read"]
    holders = [peer for peer in peers if peer.mode == "read" and not peer.at_most]
    holders += limited[: limited[0].at_most] if limited else []
    holders = holders or peers[:1]
    held = {peer.name for peer in holders}
    waiters = [peer for peer in peers if peer.name not in held]
    return tuple(holders), tuple(replace(peer, state="waiting") for peer in waiters)


def _peer_info(lock_path: str, announcement: Announcement) -> PeerInfo:
    silent: float = 0.0
    record: dict[str, Any] = {}
    with contextlib.suppress(OSError), opened(f"{lock_path}/{announcement.name}") as fd:
        silent = max(0.0, time.time() - os.fstat(fd).st_mtime)  # the server stamps the directory at every beat
        record = _read_record(fd)
    return peer_info(announcement, silent_for=silent, record=record)


def _read_record(directory: int) -> dict[str, Any]:
    try:
        beat = parse_beats(os.listdir(directory))
        if beat is None:
            return {}
        record = json.loads(os.readlink(beat_name(beat), dir_fd=directory))
    except (OSError, ValueError, RecursionError):
        return {}  # it moved on, or there was no room for its record: only a courtesy is missing
    return record if isinstance(record, dict) else {}


def peer_info(announcement: Announcement, *, silent_for: float, record: dict[str, Any] | None = None) -> PeerInfo:
    """Return what is known of a participant from its name, the time it was silent, and its record if it has one."""
    who = announcement.who
    lease = announcement.lease_ms / 1000
    same_kernel = who is not None and is_same_kernel(who)
    alive = (not is_dead(who)) if who is not None and same_kernel else None
    record = record or {}
    return PeerInfo(
        name=announcement.name,
        token=announcement.token,
        mode=announcement.mode.value if announcement.understood else "unknown",
        state="holding",
        host=None if who is None else _text(who.host),
        pid=None if who is None else who.pid,
        user=None if who is None else user_name(who.uid),
        since=announcement.since_ms / 1000 if announcement.understood else None,
        silent_for=round(silent_for, 1),
        lease=lease,
        evictable_in=0.0 if alive is False else round(max(0.0, lease - silent_for), 1),
        same_kernel=same_kernel,
        alive=alive,
        command=_text(record.get("command")),
        job=_text(record.get("job")),
        understood=announcement.understood,
        at_most=announcement.at_most if announcement.mode is Mode.READ else 0,
    )


def _text(value: object) -> str | None:
    # Others wrote it, and it is shown in one line on a terminal.
    return "".join(c if c.isprintable() else "?" for c in value[:300]) if isinstance(value, str) else None


def watched_peers(others: tuple[Announcement, ...], watch: Watch, now: float) -> tuple[PeerInfo, ...]:
    """Return ``others`` as a waiting participant knows them, holders first; asks nothing of the lock's file system."""
    peers = [peer_info(peer, silent_for=watch.silence(peer.name, now)) for peer in others]
    holders, waiters = _told_apart(peers)
    return holders + waiters


def break_lock(
    path: str | os.PathLike[str],
    *,
    token: str | None = None,
    force: bool = False,
    lock_dir: str | os.PathLike[str] | None = None,
) -> tuple[PeerInfo, ...]:
    """
    Remove participants of a lock by hand, for an operator who knows that they are gone.

    Whoever is removed while it lives learns of it at its next heartbeat or at its release; until then it may overlap
    with its successor.

    :param token: remove only this one; all if ``None``
    :param force: remove also those whose process is alive on this machine
    :returns: those that were removed
    :raises LockBusyError: if one of them is alive on this machine and ``force`` is false; then nothing is removed
    :raises LockPathError: if the lock directory cannot be read or changed
    """
    state = inspect(path, lock_dir=lock_dir)
    wanted = [peer for peer in state.holders + state.waiters if token is None or peer.token == token]
    alive = [peer for peer in wanted if peer.alive]
    if alive and not force:
        raise LockBusyError(
            f"{alive[0].describe()} is alive on this machine; end that process, or use force if it must lose the lock"
        )
    files = LockDirectory(state.lock_path)
    removed = []
    try:
        for peer in wanted:
            if _remove_by_hand(files, peer):
                removed.append(peer)
                trace.log_eviction(state.lock_path, Announcement(peer.name, peer.understood))
    except OSError as error:
        raise path_error(error, state.lock_path) or error from None
    return tuple(removed)


def _remove_by_hand(files: LockDirectory, peer: PeerInfo) -> bool:
    announcement = Announcement(peer.name, peer.understood)
    for _ in range(_TRIES):  # a live holder beats on, so the observed beat may be gone; the operator insists
        try:
            beat = parse_beats(files.listdir(peer.name))
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ESTALE:
                continue  # another NFS client has removed it just now: the next look tells
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            beat = None  # a file or a link under an announcement's name
        if evict(files, announcement, beat):
            if peer.alive is not False:
                with contextlib.suppress(OSError):  # a word for the holder, should it live and release before it beats
                    files.mkdir(gone_name(peer.token.rstrip("x")))
            return True
    # Entries that are no heartbeats: an operator may move them out of the way; nothing is deleted.
    files.rename(peer.name, gone_name(peer.token.rstrip("x")))
    return True
