"""
Who this process is, and whether a peer on this very kernel is still alive.

A verdict "dead" is proof, not suspicion: it is given only for processes of the same boot and pid namespace, by the
kernel's own word (``/proc``), and never for a process that is merely stopped or stuck. Everywhere else the answer is
"not known", and only the lease can end such a hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from functools import lru_cache
from typing import Final

from .names import Identity

_UNKNOWN_KERNEL: Final = "0"
#: Process ids are C ints; Linux has at most 2**22 of them.
_PIDS: Final = 2**31


def current_identity() -> Identity:
    """
    Return the identity of the calling process.

    The host name can be set by ``NFSRWLOCK_HOST``, for machines on which several nodes report one name.
    """
    return _identity_of(os.getpid())


@lru_cache(maxsize=1)
def _identity_of(pid: int) -> Identity:
    return Identity(
        pid=pid,
        start=_stat_of(pid)[1],
        kernel=_kernel(),
        uid=os.geteuid(),
        host=os.environ.get("NFSRWLOCK_HOST") or socket.gethostname(),
    )


def is_same_kernel(who: Identity) -> bool:
    """Whether ``who`` announced itself on this boot of this machine and in this pid namespace."""
    me = current_identity()
    return who.kernel == me.kernel != _UNKNOWN_KERNEL and who.host == me.host


def is_dead(who: Identity) -> bool:
    """
    Whether this kernel says that the process behind ``who`` has ended.

    A zombie counts as dead: its files are closed, it cannot write any more. A stopped process does not.
    """
    if not is_same_kernel(who):
        return False
    if not 0 < who.pid < _PIDS:
        return True  # no process has such a number: the name is not what a process made
    state, start, threads = _stat_of_or_gone(who.pid)
    if state == "unknown":
        return False
    if state == "gone" or start != who.start:
        return True
    # The zombie of a group leader whose other threads go on (it left by pthread_exit) is a living process.
    return state in "XxZ" and threads <= 1


def _stat_of_or_gone(pid: int) -> tuple[str, int, int]:
    try:
        return _stat_of(pid)
    except FileNotFoundError:
        # hidepid= hides other users' processes from /proc: ask the kernel in another way before calling it dead.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "gone", 0, 0
        except OSError:
            pass
        return "unknown", 0, 0
    except ProcessLookupError:
        return "gone", 0, 0
    except (OSError, ValueError, IndexError):
        return "unknown", 0, 0


def _stat_of(pid: int) -> tuple[str, int, int]:
    # proc(5): the command may hold spaces and parentheses, so the fields are counted from the last ")".
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        if pid == os.getpid():
            return "R", 0, 1  # no /proc (macOS, BSD): the kernel is unknown, too, so nobody will compare
        raise
    return fields[0], int(fields[19]), int(fields[17])


@lru_cache(maxsize=1)
def _kernel() -> str:
    # Two processes with one fingerprint see each other's numbers and start times as they are: same boot, same pid
    # namespace, same time namespace (which shifts start times), and a /proc that shows that pid namespace.
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts = [file.read().strip(), os.readlink("/proc/self/ns/pid")]
        with contextlib.suppress(FileNotFoundError):  # Linux before 5.6 has no time namespaces
            parts.append(os.readlink("/proc/self/ns/time"))
        if not _proc_shows_our_namespace():
            return _UNKNOWN_KERNEL
    except OSError:
        return _UNKNOWN_KERNEL
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _proc_shows_our_namespace() -> bool:
    # proc(5): NSpid has the number of a process in the namespace that /proc shows, then in each one nested in that,
    # down to its own. A single one says that they are the same. To compare numbers is not enough: by chance, a process
    # has the same number in both, and its peers would then be looked up among strangers.
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return line.split()[1:] == [str(os.getpid())]
    return os.readlink("/proc/self") == str(os.getpid())  # Linux before 4.1


def _forget() -> None:
    _kernel.cache_clear()  # a child may be in another namespace than its parent (unshare, then fork)
    _identity_of.cache_clear()


os.register_at_fork(after_in_child=_forget)
