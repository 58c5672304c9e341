"""
The processes that belong to a command or a job: who they are; stop, continue and kill all of them.

A command's process group is not enough: an interactive shell, ``setsid`` and many pipeline tools give their children
groups of their own, and those would write on while the group stands still. So the tree is read from the kernel's
process table, again and again until nobody new turns up, because a process may fork while the table is being read.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

#: The names in the process table of those who hold locks for a command or a shell. They are never stopped or killed
#: with the tree they are found in: in ``nfsrwlock run … nfsrwlock run …`` the inner keeper must go on beating while
#: the outer one's command stands still, and must see the inner command's end to release its lock.
KEEPER_NAME: Final = "nfsrwlock-keep"
GUARD_NAME: Final = "nfsrwlock-guard"
#: For :func:`prctl`: become the parent of descendants whose own parent ends, so that a daemon below the command is
#: still found. Without it such processes are found only while they stay in the command's process group.
ADOPT_ORPHANS: Final = (36, 1)
#: For :func:`prctl`: go on, if stopped, when the parent ends.
WAKE_ALONE: Final = (1, signal.SIGCONT)
#: A bound for "until nobody new turns up", against a command that forks faster than the table can be read.
_ROUNDS: Final = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    name: str
    state: str

    @property
    def stopped(self) -> bool:
        """Whether it stands still already."""
        return self.state in "Tt"

    @property
    def dead(self) -> bool:
        """Whether it has ended, and only its parent has not looked yet."""
        return self.state in "ZXx"


def process_table() -> dict[int, Entry]:
    """All processes this one can see (proc(5)). A process that ends while the table is read may be missing."""
    table: dict[int, Entry] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if (fields := _stat(pid)) is not None:
            comm, rest = fields
            table[pid] = Entry(pid, parent=int(rest[1]), group=int(rest[2]), name=comm, state=rest[0])
    return table


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """Name and fields after it (state first) of ``/proc/<pid>/stat``; the name may hold ``)``, spaces, newlines."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().decode("utf-8", "replace").rpartition(")")
    except OSError:
        return None
    return head.partition("(")[2], tail.split()


def family(roots: Iterable[int], group: int | None = None, spare: Iterable[int] = ()) -> list[Entry]:
    """
    The live processes ``roots``, the members of ``group`` and all their descendants, parents before children.

    The process that asks may be a root, but is left out itself.

    :param spare: process numbers to leave out, with what is below them; keepers and guards are left out always
    """
    roots = [*roots]
    if not roots and group is None:
        return []  # the table of a busy node is long
    table = process_table()
    me = os.getpid()
    children: dict[int, list[int]] = {}
    for entry in table.values():
        children.setdefault(entry.parent, []).append(entry.pid)
    queue = [pid for root in roots for pid in (children.get(root, ()) if root == me else (root,))]
    queue += [entry.pid for entry in table.values() if group is not None and entry.group == group]
    found: dict[int, Entry] = {}
    visited = {me, *spare}
    for pid in queue:  # grows while it is walked: breadth first
        entry_or_none = table.get(pid)
        if pid in visited or entry_or_none is None or entry_or_none.name in (KEEPER_NAME, GUARD_NAME):
            continue
        visited.add(pid)
        found[pid] = entry_or_none
        queue.extend(children.get(pid, ()))
    # A group's member may be found before its parent; a parent that runs while its child stands still might take that
    # for job control.
    ordered = [pid for pid, entry in found.items() if entry.parent not in found]
    for pid in ordered:
        ordered += [child for child in children.get(pid, ()) if child in found]
    # A table that changes while it is read may even show a circle: its members come last.
    return [found[pid] for pid in dict.fromkeys([*ordered, *found]) if not found[pid].dead]


Find = Callable[[], list[Entry]]


def freeze(find: Find, stopped: dict[int, None]) -> list[Entry]:
    """
    Stop what ``find`` lists, parents first, until nobody runs; add the numbers of those stopped here to ``stopped``.

    Processes that stand still already (a job that its user has suspended) are not added: they are not ours to continue.

    :returns: what it listed last
    """
    members: list[Entry] = []
    for _ in range(_ROUNDS):
        members, new = find(), False
        for entry in members:
            if not entry.stopped and send(entry.pid, signal.SIGSTOP) and entry.pid not in stopped:
                stopped[entry.pid] = None
                new = True
        if not new:
            break
    return members


def thaw(stopped: dict[int, None]) -> None:
    """
    Continue what :func:`freeze` stopped, children first.

    So no parent sees a stopped child and takes it for job control.
    """
    for pid in reversed(stopped):
        send(pid, signal.SIGCONT)
    stopped.clear()


def kill(find: Find) -> None:
    """Kill what ``find`` lists. All are stopped first, so that none can fork its way out."""
    doomed: dict[int, None] = {}
    for _ in range(_ROUNDS):
        members = freeze(find, doomed)
        for entry in members:
            send(entry.pid, signal.SIGKILL)
        if not members:
            return


def send(pid: int, signum: int) -> bool:
    """Send a signal to a process, or to the process group ``-pid``; False if it is gone or not ours to signal."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def prctl(option: int, value: int) -> None:
    """Ask the kernel for one of these. Where it refuses (a hardened kernel), nothing happens."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - for this alone

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def leave_the_caller(name: str, keep: Iterable[int | None], standard: Iterable[int] = (0, 1, 2)) -> None:
    """
    In a forked child: be a process in the background that nobody waits for, called ``name``, in a session of its own.

    :param keep: descriptors to keep open, besides stdin, stdout and stderr
    :param standard: of stdin, stdout and stderr those to connect to nothing
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in standard:
        os.dup2(null, descriptor)
    # What the caller has open (a pipe, a locked file) must not stay open in the background. Where there is no /proc, a
    # lock is refused.
    listed = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else ()
    for number in {*map(int, listed)} - {0, 1, 2, *keep}:
        with suppress(OSError):  # the listing's own
            os.close(number)


def readable(*descriptors: int | None, seconds: float) -> bool:
    """Wait until one of the descriptors has something to read, for at most so long; return whether one has."""
    poller = select.poll()  # select() cannot take the descriptors of a program that was started with many open files
    for descriptor in descriptors:
        if descriptor is not None:
            poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


class Process:
    """
    One particular process. Its number may be given to another one later; this handle is not fooled by that.

    :raises ProcessLookupError: there is no such process
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except AttributeError:
            pass  # a Python that was built for an old kernel
        except (OverflowError, OSError) as error:
            # EINVAL: the number of a thread, or no number of a process at all
            if isinstance(error, OverflowError) or error.errno == errno.EINVAL:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # an old kernel, a sandbox
                raise
        fields = _stat(pid)
        self._started = None if fields is None else fields[1][19]
        if self._descriptor is None and fields is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def fileno(self) -> int | None:
        """The descriptor by which the kernel knows the process, if there is one."""
        return self._descriptor

    @property
    def ended(self) -> bool:
        """Whether the process has ended; one that its parent has not yet waited for has ended too."""
        if self._descriptor is not None:
            return readable(self._descriptor, seconds=0)
        fields = _stat(self.pid)
        return fields is None or fields[1][0] in "ZX" or fields[1][19] != self._started
