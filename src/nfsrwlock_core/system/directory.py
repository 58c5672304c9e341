"""
Every file-system call of the engine: the narrow interface that the protocol needs, and its real implementation.

:class:`Files` is what PROTOCOL.md section 6 speaks about: ``mkdir``, ``rmdir``, list, exclusive create,
``rename`` and ``unlink``, nothing else. The tests put a simulated NFS behind the same interface. Errors come out as
``OSError``, untranslated: what an error means depends on the step of the protocol that met it.

Changes go through a descriptor of the lock directory that was opened without following a symbolic link. Listings open
the directory anew by its path, because that is what makes an NFS client ask the server whether its copy is fresh;
a listing through a descriptor kept open was seen 55 s late.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Literal, Protocol

from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.names import gone_name

from .connection import connection
from .listing import mode_of, names_in
from .process import user_name

Share = Literal["user", "group"]

SUFFIX: Final = ".rwlock"
_USER_MODE: Final = 0o700
_GROUP_MODE: Final = 0o2770
#: What a directory is made with that gets its group and mode afterwards. No other directory has this mode.
_BEING_SHARED: Final = 0o1700
#: O_PATH makes the open itself cost no round trip on NFS. Elsewhere an ordinary descriptor does.
_OPEN_FLAGS: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How long a group's lock directory may be seen half made (made, but its group and mode not set yet). After that
#: whoever comes next removes it, and makes another.
_HALF_MADE_S: Final = 2.0
#: How often a listing that the server has broken off is made anew; it breaks off one in a thousand.
_LISTINGS_MOST: Final = 5
MOVE_AWAY: Final = "move it away (mv) while nobody holds the lock; the owner of the directory around it may do so"
#: A heartbeat's text where there is nothing more to say, or no room for it; a symbolic link cannot have none.
_NO_RECORD: Final = b"{}"
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG})
#: What a file system without symbolic links answers: EPERM by symlink(2), others by what was seen.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})


class Files(Protocol):
    """The entries of one lock directory. Names are relative to it; ``<announcement>/beat.<k>`` is the deepest."""

    def mkdir(self, name: str) -> None:
        """Make a directory; ``FileExistsError`` if the name is taken."""

    def rmdir(self, name: str = "") -> None:
        """Remove an empty directory, or the lock directory itself if it is empty."""

    def listdir(self, name: str = "") -> list[str]:
        """
        List the lock directory, or one announcement, opened afresh.

        Of a heartbeat, this is the question whether it is there: ``NotADirectoryError`` if so.
        """

    def create(self, name: str, record: bytes) -> None:
        """Create a heartbeat, no directory, if there is none. That it exists counts; what it says is for people."""

    def rename(self, old: str, new: str) -> None:
        """Rename ``old``, a name that only its maker renames."""

    def unlink(self, name: str) -> None:
        """Remove a heartbeat, or whatever else is no directory."""

    def connection(self) -> str | None:
        """Say what stands for the connection to a server whose other clients may stand still after a new one."""


class LockDirectory:
    """
    The real files of one lock.

    :param path: absolute path of the lock directory; made by :meth:`open` if it is missing, parents included
    :param share: who may take part: ``"user"`` (mode 0700) or ``"group"`` (the parent directory's group)
    :param device: what an earlier object for the same path found; it spares the check
    """

    def __init__(self, path: str, share: Share = "user", device: int | None = None) -> None:
        self.path: Final = path
        self.share: Final = share
        #: Which file system the lock is on (``st_dev``); known once the directory was opened and checked.
        self.device: int | None = device
        self._fd = -1

    def open(self) -> None:
        """
        Open the directory for the calls that follow; make it if need be, and check that it is fit.

        The check costs a round trip on NFS, so it is made once per object; later calls only open. A call while it is
        not open opens the directory for itself, by its path, and neither makes nor checks it: so a hold, which may
        last for days, keeps no descriptor, and notices if its directory was moved away.

        :raises LockPathError: if it is a symbolic link or a file, another user's, made for another ``share``, or on SMB
        :raises OSError: what the system said otherwise
        """
        if self._fd >= 0:
            return
        deadline, is_last = 0.0, False
        while True:
            found = None
            try:
                self._fd = self._open_or_make()
                if self.device is None:
                    found = os.fstat(self._fd)
                    self.device = self._check(found)
                return
            except (LockPathError, PermissionError):
                self.close()
                if is_last:
                    raise
                deadline = deadline or time.monotonic() + _HALF_MADE_S
                is_late = time.monotonic() > deadline
                # What is finished by now may not have been when it was looked at: it is tried once more, or while
                # others make it anew.
                half_made = self._half_made()
                is_last = not half_made and (is_late or found is None or not _is_being_shared(found.st_mode))
                if half_made and is_late:  # its maker was killed, or cut off, before it was done
                    deadline = 0.0
                    try:
                        os.rmdir(half_made)
                    except FileNotFoundError:
                        pass  # another one was faster
                    except OSError:  # not empty, so not just made, or not ours to remove
                        is_last = True
                time.sleep(0 if is_last else 0.05)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Give the descriptor back. The object can be opened again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    def mkdir(self, name: str) -> None:  # noqa: D102 - see Files
        here = self._here()
        try:
            os.mkdir(name, _GROUP_MODE if self.share == "group" else _USER_MODE, dir_fd=here)
        finally:
            self._leave(here)

    def rmdir(self, name: str = "") -> None:  # noqa: D102
        if not name:
            return os.rmdir(self.path)
        here = self._here()
        try:
            os.rmdir(name, dir_fd=here)
        finally:
            self._leave(here)

    def listdir(self, name: str = "") -> list[str]:  # noqa: D102
        if not name and self.device is not None and os.major(self.device):
            return os.listdir(self.path)  # a disk of this machine: no server breaks its listings off
        for _ in range(_LISTINGS_MOST):
            fd = self._descend(name, _LIST_FLAGS) if name else _open(self.path, _LIST_FLAGS)
            try:
                return names_in(fd)
            except FileNotFoundError:
                continue  # removed, as the next open will tell, or broken off by the server
            finally:
                _close(fd)
        raise OSError(errno.ESTALE, "the file server breaks off each listing", self.path)

    def create(self, name: str, record: bytes) -> None:  # noqa: D102
        with self._inside(name) as (parent, last):
            if self.share == "group":
                # The umask may have taken the group's right to remove a beat. It needs that right from the first beat
                # on; without a beat, the right to the lock directory is enough. So short holds never pay for this call.
                os.chmod(".", _GROUP_MODE, dir_fd=parent)
            create_beat(last, record, dir_fd=parent)

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        with self._inside(old) as (parent, last):
            os.rename(last, new.rpartition("/")[2], src_dir_fd=parent, dst_dir_fd=parent)

    def unlink(self, name: str) -> None:  # noqa: D102
        with self._inside(name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def connection(self) -> str | None:  # noqa: D102
        return None if self.device is None else connection(self.device)

    def _here(self) -> int:
        # A descriptor of the directory. No context manager: that makes up a tenth of an uncontended cycle's own time.
        return self._fd if self._fd >= 0 else _open(self.path, _OPEN_FLAGS)

    def _leave(self, here: int) -> None:
        if here != self._fd:
            _close(here)

    def _descend(self, name: str, flags: int) -> int:
        here = self._here()
        try:
            return _open(name, flags, here)
        finally:
            self._leave(here)

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[tuple[int, str]]:
        # Gives a descriptor of the directory that `name` lies in, and its last component. An announcement that is a
        # symbolic link, which only an attacker makes, is refused (ENOTDIR) and not followed.
        announcement, _, last = name.rpartition("/")
        here = self._descend(announcement, _OPEN_FLAGS) if announcement else self._here()
        try:
            yield here, last
        finally:
            self._leave(here)

    def _open_or_make(self) -> int:
        is_removed = False
        for _ in range(5):
            try:
                return _open(self.path, _OPEN_FLAGS)
            except FileNotFoundError:
                self.device = None  # whoever makes it now: what is found next must be checked
                # Linux 7.2 says so on NFSv4 of what it once found missing, too, until the directory around it is read.
                if is_removed:
                    with contextlib.suppress(OSError), os.scandir(os.path.dirname(self.path)) as entries:
                        next(entries, None)
                is_removed = False
                # Others remove it again, or put something else in its place, or nothing can be made there.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._make()
                    is_removed = True
            except NotADirectoryError:
                # O_DIRECTORY with O_NOFOLLOW answers ENOTDIR for a symbolic link, too.
                raise refusal(self.path) from None
        if is_removed:  # by those who use it; that may pass
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        raise LockPathError(self.path, "cannot be made", "check its parent directory", errno.ENOENT)

    def _make(self) -> None:
        made: list[str] = []
        try:
            _make(self.path, self.share, _USER_MODE, made)
        except FileExistsError:
            return
        except OSError:
            for directory in reversed(made):  # leave nothing behind; what others have begun to use is not empty
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            raise

    def _half_made(self) -> str:
        # The path of the deepest directory at or above it that can be seen, if it is just being made for the group. The
        # server is asked: a client that has seen it so may say so long after it is done, and in use.
        path = self.path
        while True:
            try:
                return path if _is_being_shared(mode_of(path)) else ""
            except OSError:
                path = os.path.dirname(path)

    def _check(self, found: os.stat_result) -> int:
        if os.environ.get("NFSRWLOCK_UNFIT") != "1" and _is_on_smb(found.st_dev, found.st_ino):
            raise LockPathError(
                self.path,
                "lies on SMB, where two hosts may hold one lock: a rename and a removal of one name can both succeed",
                "keep the lock elsewhere with lock_dir= (or NFSRWLOCK_DIR), or take the risk with NFSRWLOCK_UNFIT=1",
                errno.EOPNOTSUPP,
            )
        for_group = bool(found.st_mode & 0o070)
        if self.share == "group":
            if found.st_mode & 0o2070 != 0o2070:
                raise LockPathError(
                    self.path,
                    "was made for one user (share='user')",
                    "use share='user', or move the directory away while nobody holds the lock",
                    errno.EPERM,
                )
            if found.st_mode & 0o002:
                raise LockPathError(
                    self.path, "can be written by everybody", "restore its mode 2770: chmod o-rwx", errno.EPERM
                )
            return found.st_dev
        if found.st_uid != os.geteuid() and not self._is_mapped_to(found.st_uid):
            raise LockPathError(
                self.path,
                f"belongs to user {user_name(found.st_uid)}, you are {user_name(os.geteuid())}",
                f"{MOVE_AWAY}. For a lock that several users take, use share='group' from the beginning; for one of "
                "your own, another lock_dir=",
                errno.EPERM,
            )
        if for_group or found.st_mode & 0o007:
            raise LockPathError(
                self.path,
                f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})",
                "use share='group' if it was made so, or restore its mode 0700",
                errno.EPERM,
            )
        return found.st_dev

    def _is_mapped_to(self, owner: int) -> bool:
        # A server may map every client user to one (all_squash): then what we make belongs to that user, too.
        probe = gone_name(os.urandom(16).hex())
        try:
            os.mkdir(probe, _USER_MODE, dir_fd=self._fd)
            return os.stat(probe, dir_fd=self._fd, follow_symlinks=False).st_uid == owner
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise  # it, or the directory, was removed meanwhile: that tells nothing
            return False
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(probe, dir_fd=self._fd)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Give a descriptor of the directory ``path``, opened afresh; ``NotADirectoryError`` for a symbolic link, too."""
    fd = os.open(path, _LIST_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def refusal(path: str) -> LockPathError:
    """Return what is wrong with the lock directory ``path``, which could not be opened as a directory."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        return LockPathError(path, f"cannot be looked at: {error.strerror}", "correct the path", error.errno)
    if stat.S_ISLNK(mode):
        return LockPathError(
            path, "is a symbolic link, and a lock directory must not be one", "remove the link", errno.ELOOP
        )
    if stat.S_ISDIR(mode):
        return LockPathError(path, "lies below something that is no directory", "correct the path", errno.ENOTDIR)
    return LockPathError(path, "is no directory, where the lock directory should be", "move it away", errno.ENOTDIR)


@lru_cache(maxsize=256)
def _is_on_smb(device: int, inode: int) -> bool:
    # There a rename and a removal of one name both succeeded, which breaks demand (c): PROTOCOL.md section 6.
    # What is kept is kept for a directory, since another mount may have the number of a device later on.
    if os.major(device):
        return False  # a disk of this machine; file systems without one share major number 0
    from .mounts import mount_of_device  # noqa: PLC0415 - what makes no lock needs no look at the mounts

    del inode
    mount = mount_of_device(device)
    return mount is not None and mount.type in ("cifs", "smb3")


def create_beat(name: str, record: bytes, *, dir_fd: int) -> None:
    """
    Make a first heartbeat: a symbolic link that leads nowhere and whose text is the record for people.

    One call makes it, text and all, where a file takes an OPEN and a CLOSE on NFSv4; and a server that is in its grace
    period after a restart makes a link, but opens no file (RFC 8881, 9.14.1). Where there are no symbolic links, an
    empty file does.

    :raises OSError: what the system said; ``FileExistsError`` if the name is taken
    """
    try:
        os.symlink(record or _NO_RECORD, name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _NO_ROOM:  # a full disk may yet have room for a text so short that it lies in the inode
            os.symlink(_NO_RECORD, name, dir_fd=dir_fd)
        elif error.errno in _NO_LINKS:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=dir_fd))
        else:
            raise


#: The descriptors that are open just now. A process that forks while another of its threads is in the middle of a call,
#: which a file server that hangs makes long, hands them on, and the child knows nothing of them.
_open_now: Final[set[int]] = set()


def _open(name: str, flags: int, dir_fd: int | None = None) -> int:
    fd = os.open(name, flags, dir_fd=dir_fd)
    _open_now.add(fd)
    return fd


def _close(fd: int) -> None:
    # Taken out first: its number may belong to somebody else as soon as it is closed. One that is not there any more
    # was closed in a forked child, which now unwinds what its parent was about.
    if fd in _open_now:
        _open_now.discard(fd)
        os.close(fd)


def _reset_after_fork() -> None:
    for fd in list(_open_now):
        _close(fd)


os.register_at_fork(after_in_child=_reset_after_fork)


def make_directories(path: str, share: Share) -> None:
    """
    Make a directory that locks live below, and what is missing above it: for a group, with its rights.

    :raises LockPathError: if ``share`` is ``"group"``, and the user is no member of the parent directory's group
    :raises OSError: what the system said
    """
    with contextlib.suppress(FileExistsError):
        _make(path, share, 0o777, [])


def _is_being_shared(mode: int) -> bool:
    return mode & 0o1777 == _BEING_SHARED


def _make(path: str, share: Share, mode: int, made: list[str]) -> None:
    # With its missing parents. It tells which it has made.
    parent = os.path.dirname(path)
    if share == "group":
        mode = _BEING_SHARED
    try:
        os.mkdir(path, mode)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # somebody else made it just now
            _make(parent, share, 0o777, made)
        os.mkdir(path, mode)
    made.append(path)
    if share == "group":
        _share(path, os.stat(parent).st_gid)


def _share(path: str, group: int) -> None:
    # Others may write the parent, and put something else under the new directory's name at any moment. So nothing is
    # changed by that name, nor by a descriptor of something else. What is there instead is left to the check.
    try:
        fd = _open(path, _LIST_FLAGS)  # O_PATH does not allow fchmod
    except PermissionError:
        return
    try:
        found = os.fstat(fd)
        if not _is_being_shared(found.st_mode):
            return
        if found.st_gid != group:
            os.fchown(fd, -1, group)
        os.fchmod(fd, _GROUP_MODE)
    except PermissionError:
        raise LockPathError(
            path,
            f"cannot be shared with group {group} of its parent directory: you are not a member",
            "become a member, or use share='user'",
            errno.EPERM,
        ) from None
    finally:
        _close(fd)
