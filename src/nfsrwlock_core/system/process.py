"""
Who this process is, and whether a peer on this very kernel is still alive.

A verdict "dead" is proof, not suspicion: it is given only for processes of the same boot and pid namespace, by the
kernel's own word (``/proc``), and never for a process that is merely stopped or stuck. Everywhere else the answer is
"not known", and only the lease can end such a hold.

Machines that were restored from one snapshot have the boot id in common, and often the host name. What tells them apart
is a random number that the first process on each of them draws, and their network cards. Nothing does if a process had
drawn the number before the snapshot and the cards' addresses are copies, too: ``NFSRWLOCK_PROVEN_DEAD=0`` is for these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from functools import lru_cache
from typing import Final, NamedTuple

from nfsrwlock_core.names import Identity

_UNKNOWN_KERNEL: Final = "0"
_VARIABLE: Final = "NFSRWLOCK_PROVEN_DEAD"
#: Where the random number is kept until the next boot: containers and users on one kernel mostly have it in common.
_SHARED_MEMORY: Final = "/dev/shm"
_NUMBER: Final = "nfsrwlock-boot"
_NUMBER_BYTES: Final = 16
_JOB_VARIABLES: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
#: Of what a process says about itself. The text of a symbolic link has 1,024 bytes on XFS, and more elsewhere.
_RECORD_MAX_BYTES: Final = 1000
_CARDS: Final = "/sys/class/net"
#: How long what identifies the machine is taken to be the same, seconds: this very process may be cloned, too.
_SAME_FOR_S: Final = 10
#: Process ids are C ints; Linux has at most 2**22 of them.
_PIDS: Final = 2**31


class Stat(NamedTuple):
    """What ``/proc/<pid>/stat`` says, see proc(5)."""

    state: str
    parent: int
    threads: int
    #: When it was started, in the kernel's ticks since boot.
    start: int


def current_identity() -> Identity:
    """
    Return the identity of the calling process.

    The host name can be set by ``NFSRWLOCK_HOST``, for machines on which several nodes report one name.

    :raises ValueError: if ``NFSRWLOCK_PROVEN_DEAD`` is neither ``0`` nor ``1``
    """
    return _identity_of(os.getpid(), int(time.monotonic() / _SAME_FOR_S))


@lru_cache(maxsize=1)
def _identity_of(pid: int, period: int) -> Identity:
    del period  # with another one, all is looked at anew
    start = 0  # where there is no /proc (macOS, BSD): the kernel is unknown, too, so nobody will compare
    with contextlib.suppress(FileNotFoundError):
        start = stat_of(pid).start
    return Identity(
        pid=pid,
        start=start,
        kernel=_kernel(),
        uid=os.geteuid(),
        host=os.environ.get("NFSRWLOCK_HOST") or os.uname().nodename,
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
    if who == current_identity() or not is_same_kernel(who):
        return False
    if not 0 < who.pid < _PIDS:
        return True  # no process has such a number: the name is not what a process made
    try:
        try:
            seen = stat_of(who.pid)
        except FileNotFoundError:
            # hidepid= hides other users' processes from /proc: ask the kernel in another way before calling it dead.
            os.kill(who.pid, 0)
            return False
    except ProcessLookupError:
        return True
    except (OSError, ValueError, IndexError):
        return False
    # The zombie of a group leader whose other threads go on (it left by pthread_exit) is a living process.
    return seen.start != who.start or (seen.state in "XxZ" and seen.threads <= 1)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where this host knows no name."""
    import pwd  # noqa: PLC0415 - only for people

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def ancestors() -> set[tuple[int, int]]:
    """Return the ids and start times of this process and those above it; as far as this machine tells (Linux)."""
    found: set[tuple[int, int]] = set()
    pid = os.getpid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 0 and (one := (pid, (seen := stat_of(pid)).start)) not in found:
            found.add(one)
            pid = seen.parent  # 0: outside of this namespace
    return found


def stat_of(pid: int) -> Stat:
    """
    Return what the kernel says of process ``pid``.

    :raises OSError: if there is no such process, or no ``/proc`` that shows it
    """
    # The command may hold spaces and parentheses, so the fields are counted from the last ")".
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return Stat(fields[0], parent=int(fields[1]), threads=int(fields[17]), start=int(fields[19]))


def boot_id() -> str:
    """
    Return what this boot of this machine is known by.

    :raises OSError: if there is no ``/proc`` that shows it
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _kernel() -> str:
    # Two processes with one fingerprint see each other's numbers and start times as they are: same boot, same pid
    # namespace, same time namespace (which shifts start times), and a /proc that shows that pid namespace. Not the
    # machine id: it is copied with a disk, and images of containers on one kernel have different ones.
    if (switch := os.environ.get(_VARIABLE) or "1") not in ("0", "1"):
        raise ValueError(f"{_VARIABLE} must be 0 or 1, got {switch!r}")
    if switch == "0":
        return _UNKNOWN_KERNEL
    try:
        parts = [boot_id(), os.readlink("/proc/self/ns/pid")]
        with contextlib.suppress(FileNotFoundError):  # Linux before 5.6 has no time namespaces
            parts.append(os.readlink("/proc/self/ns/time"))
        if not _proc_shows_our_namespace():
            return _UNKNOWN_KERNEL
        parts += [_random_number(), *_card_addresses()]
    except OSError:
        return _UNKNOWN_KERNEL
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _random_number() -> str:
    # Whoever comes first writes it, and everybody may read it. Another user could make up a number, or remove his own:
    # the worst that comes of it is that nobody is proven dead, or that clones are told apart by the rest only.
    directory = os.open(_SHARED_MEMORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(2):
            with contextlib.suppress(FileNotFoundError):
                file = os.open(_NUMBER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                try:
                    number = os.read(file, _NUMBER_BYTES)
                finally:
                    os.close(file)
                if len(number) == _NUMBER_BYTES:
                    return number.hex()
                raise OSError(f"{_SHARED_MEMORY}/{_NUMBER} is damaged")
            _draw_number(directory)
        raise FileNotFoundError(_NUMBER)
    finally:
        os.close(directory)


def _draw_number(directory: int) -> None:
    draft = f"{_NUMBER}.{os.urandom(8).hex()}"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=directory)
    try:
        os.fchmod(file, 0o444)  # whatever the umask is
        os.write(file, os.urandom(_NUMBER_BYTES))
        with contextlib.suppress(FileExistsError):  # nobody ever sees half a number, and the first one stands
            os.link(draft, _NUMBER, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(file)
        os.unlink(draft, dir_fd=directory)


def _card_addresses() -> list[str]:
    # Of real cards and those of virtual machines, which stay; not of bridges and containers, which come and go.
    addresses = []
    for card in sorted(os.listdir(_CARDS)) if os.path.isdir(_CARDS) else ():
        if os.path.exists(f"{_CARDS}/{card}/device"):
            with open(f"{_CARDS}/{card}/address", encoding="ascii") as file:
                addresses.append(file.read().strip())
    return addresses


def _proc_shows_our_namespace() -> bool:
    # proc(5): NSpid has the number of a process in the namespace that /proc shows, then in each one nested in that,
    # down to its own. A single one says that they are the same. To compare numbers is not enough: by chance, a process
    # has the same number in both, and its peers would then be looked up among strangers.
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return line.split()[1:] == [str(os.getpid())]
    return os.readlink("/proc/self") == str(os.getpid())  # Linux before 4.1


@lru_cache(maxsize=1)
def own_record(pid: int) -> bytes:
    """Return what this process, ``pid``, says about itself, for people: a short piece of JSON in ASCII."""
    job = next((value for key in _JOB_VARIABLES if (value := os.environ.get(key))), "")
    who = {"user": user_name(os.geteuid()), "pid": pid}
    argv = [str(argument) for argument in getattr(sys, "argv", None) or [""]]  # programs put anything there
    for command, most in ((" ".join(argv), 300), (os.path.basename(argv[0]), 20)):
        text = json.dumps({**who, "command": command[:most], "job": job[: min(most, 80)] or None}).encode()
        if len(text) <= _RECORD_MAX_BYTES:
            return text
    return b"{}"


def _forget() -> None:
    _identity_of.cache_clear()  # a child may be in another namespace than its parent (unshare, then fork)


os.register_at_fork(after_in_child=_forget)
