"""What the lab needs of the machine it runs on, and whether that is there."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import debian
from debian import LabError, NotRootError, Unavailable

__all__ = ["LabError", "NotRootError", "Unavailable"]

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWPID: Final = 0x20000000

_NAME: Final = "tests/nfs/lab"
_PACKAGES: Final = (
    "user-mode-linux nfs-common nfs-kernel-server rpcbind kmod iproute2 e2fsprogs util-linux procps python3"
)
_FILES: Final = (
    "/usr/bin/linux.uml",
    "/usr/bin/python3",
    "/usr/bin/unshare",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/rpc.nfsd",
    "/usr/sbin/rpcbind",
    "/sbin/ip",
    "/sbin/modprobe",
    "/sbin/mount.nfs",
)
_libc = ctypes.CDLL(None, use_errno=True)


def require() -> None:
    """
    Do nothing where a lab can be started.

    :raises Unavailable: with the remedy, where none can
    """
    debian.require(_NAME, _missing)


def install() -> None:
    """
    Install what is missing, with apt-get. No service is started.

    :raises Unavailable: it cannot be installed
    """
    debian.install(_NAME, _missing, _PACKAGES.split() + (["gcc", "libc6-dev"] if cpu_has_amx() else []))


def _missing() -> list[str]:
    missing = [file for file in _FILES if not os.path.exists(file)]
    if cpu_has_amx() and shutil.which("cc") is None:
        missing.append("cc")
    return missing


def cpu_has_amx() -> bool:
    """Whether this CPU's register state is larger than User-Mode Linux can take (see xstate.c)."""
    return " amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")


def build_register_shim(target: Path) -> None:
    """Compile what lets User-Mode Linux run on a CPU with AMX."""
    sh("cc", "-O2", "-shared", "-fPIC", "-o", str(target), str(Path(__file__).with_name("xstate.c")), "-ldl")


def sh(*argv: str, stdin: str | None = None) -> str:
    """Run a command; its output is only shown when it fails."""
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{' '.join(argv)}: code {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


def enter_network_namespace(path: str) -> None:
    """Move the calling thread into a network namespace."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(fd)


def begin_process_namespace() -> None:
    """Let the next child of this process be the first of a new process namespace."""
    if _libc.unshare(CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")


def started_at(pid: int) -> str | None:
    """When a process was started, which with its id names it for good; ``None`` if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
