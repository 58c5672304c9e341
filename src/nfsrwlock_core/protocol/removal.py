"""
How announcements are removed: another's by compare-and-swap, one's own with whatever is in it.

No name is ever used twice, so a removal that lands late removes nothing of anybody else's. An eviction is one operation
that the server carries out or refuses, and it refuses if the holder has beaten since it was observed.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable

from nfsrwlock_core.names import Announcement, beat_name, beats_in, gone_name, parse_beats, token_in
from nfsrwlock_core.system.directory import Files


def evict(files: Files, peer: Announcement, beat: int | None) -> bool:
    """
    Remove ``peer`` if its heartbeat is still the observed one; the first operation that succeeds is the eviction.

    It may be sent hours late or on a stale observation: then the server refuses it and nothing happens.

    :param beat: the heartbeat that was observed, ``None`` for an announcement without one
    :returns: whether this call removed it; ``False`` means: look again
    :raises OSError: what a system call said, other than that the peer has moved
    """
    has_moved = False
    try:
        if beat is not None:
            try:
                files.unlink(f"{peer.name}/{beat_name(beat)}")
            except FileNotFoundError:
                # Or this answers our own call, which was carried out before. The server tells: it removes only what
                # is empty, and who had a beat and has none was evicted or has let go.
                has_moved = True
        files.rmdir(peer.name)
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        return False  # a directory under a heartbeat's name: for an operator
    except NotADirectoryError:
        files.unlink(peer.name)  # a file or FIFO under an announcement's name cannot beat, and nobody holds by it
        return True
    except OSError as error:
        if not is_not_empty(error):
            raise
        if beat is not None and _remove_ghosts(files, peer.name, beat):
            return True
        if has_moved:
            return False
        entries = files.listdir(peer.name)
        if parse_beats(entries) is not None or not entries:
            return False  # a beat has come
        # Without a beat, what is left is in the way of the rmdir only. If we have just removed the beat, or an NFS
        # client has left of it what is still open somewhere (.nfs…), then there was one and the announcement is dead.
        if beat is None and any(not entry.startswith(".nfs") for entry in entries):
            return False
        files.rename(peer.name, gone_name(peer.token.rstrip("x")))
    return True


def _remove_ghosts(files: Files, name: str, beat: int) -> bool:
    # A call that timed out on a soft mount may be carried out much later and make an early beat once more. What is
    # below the observed beat is not the holder's latest, so it may go; whether a later one has come, the server tells.
    with contextlib.suppress(OSError):  # then it is looked at again
        for number in beats_in(files.listdir(name)):
            if number < beat:
                files.unlink(f"{name}/{beat_name(number)}")
        files.rmdir(name)
        return True
    return False


def remove_announcement(files: Files, name: str, beat: int | None, *, unheard: bool = False) -> bool:
    """
    Remove an announcement of our own, with whatever beat it has.

    :param beat: the latest beat we know of
    :param unheard: later ones may have been sent
    :returns: whether the first removal found what we left: proof that nobody had evicted us
    :raises OSError: what a system call said; call again
    """
    found, untouched = False, beat is None and not unheard
    if beat is not None:
        try:
            files.unlink(f"{name}/{beat_name(beat)}")
            found = True
        except FileNotFoundError:
            pass  # a beat that was not heard of came after it, or we were evicted: the directory will tell
    for _ in range(8):
        try:
            files.rmdir(name)
        except FileNotFoundError:
            # It may be the client's cache of missing names that says so.
            if is_unlisted(files, name):
                return found
        except OSError as error:
            if not is_not_empty(error):
                raise
            with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile: the next round will tell
                later = _beat_to_remove(files.listdir(name), beat)
                if later is None:
                    files.rename(name, gone_name(token_in(name)))  # remains of open files: out of the way
                    return found or untouched
                files.unlink(f"{name}/{beat_name(later)}")
                # Only we make beats. A later one ends our own, unbroken chain; an earlier one is a call of ours that
                # timed out and was carried out after all, which proves nothing.
                found |= beat is None or later > beat
        else:
            return found or untouched
    raise OSError(errno.EBUSY, "the announcement cannot be removed", name)


def _beat_to_remove(entries: list[str], known: int | None) -> int | None:
    # Which beat keeps our own announcement from being removed, None if something else does. A listing without any entry
    # is older than what the rmdir met: then it can only be the beat after the one that we know of, of which we did not
    # hear.
    if entries:
        return parse_beats(entries)
    return 0 if known is None else known + 1


def is_unlisted(files: Files, name: str) -> bool:
    """
    Return whether a fresh listing of the lock directory shows that ``name`` is gone.

    :raises OSError: if it cannot be listed
    """
    try:
        return name not in files.listdir()
    except FileNotFoundError:
        return True  # the whole lock directory was removed


def remove_quietly(files: Files, names: Iterable[str]) -> None:
    """Remove directories that nobody needs, as far as that is possible."""
    for name in names:
        with contextlib.suppress(OSError):  # leftovers harm nobody, and the next one will try again
            files.rmdir(name)


def is_not_empty(error: OSError) -> bool:
    """Whether rmdir(2) failed because something was in the directory; POSIX allows both numbers."""
    return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
