"""
The kernels that Debian's releases have for User-Mode Linux, fetched and unpacked for the lab's ``NFSLAB_KERNEL``.

apt-get has directories of its own for each release and checks signatures as it always does; this machine's sources and
packages stay as they are.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import subprocess
from pathlib import Path
from typing import Final

from nfs.lab import LabError
from nfs.lab.host import sh
from nfs.lab.power import UML

PACKAGE: Final = "user-mode-linux"
#: Of the package debian-archive-keyring.
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR: Final = "http://deb.debian.org/debian"
_CACHE: Final = Path(__file__).resolve().parents[3] / "build/kernels"
_PT_INTERP: Final = 3


class Release:
    """
    One release of Debian.

    :param suite: its name, such as "trixie" or "sid"
    """

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self._directory = _CACHE / suite

    def update(self) -> str:
        """
        Ask the mirror what the release has; return the version of its kernel's package.

        :raises LabError: the mirror has no such release, the release has no such package, or a signature is wrong
        """
        for name in ("apt.conf.d", "preferences.d", "lists/partial", "archives/partial"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_MIRROR} {self.suite} main\n")
        self._apt("apt-get", "update", "--error-on=any")
        found = re.search(r"Candidate: ([^\s(]+)", self._apt("apt-cache", "policy", PACKAGE))
        if found is None:
            raise LabError(f"{self.suite} has no {PACKAGE}")
        return found[1]

    def fetch(self, version: str) -> Path:
        """
        Unpack that version of the package; return the directory.

        Where the kernel needs a newer C library than this machine's, it gets its release's, and nothing else does.

        :raises LabError: it cannot be fetched, or not be started
        """
        root = self._directory / version
        if not _starts(root):  # or it lay elsewhere once, or was cut short
            new = self._directory / "new"
            sh("rm", "-rf", str(new), str(root))
            self._unpack(PACKAGE, new)
            new.rename(root)
        if not _starts(root):
            self._unpack("libc6", root / "libc")
            _use_own_libc(root)
        sh(str(root / UML), "--version")
        return root

    def _unpack(self, package: str, root: Path) -> None:
        archives = self._directory / "archives"
        for old in archives.glob(f"{package}_*.deb"):
            old.unlink()
        self._apt("apt-get", "download", package, cwd=archives)
        (archive,) = archives.glob(f"{package}_*.deb")
        sh("dpkg-deb", "--extract", str(archive), str(root))

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        program, *arguments = command
        own = {
            "Dir::Etc": self._directory,
            "Dir::State": self._directory,
            "Dir::Cache": self._directory,
            "Dir::State::status": os.devnull,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        options = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
        result = subprocess.run([program, "-q", *options, *arguments], cwd=cwd, capture_output=True, text=True)
        if result.returncode:
            said = [line for line in result.stderr.splitlines() if line.startswith("E:")]
            raise LabError(f"{' '.join(command)} for {self.suite}: {' '.join(said) or result.stderr}")
        return result.stdout


def _starts(root: Path) -> bool:
    kernel = root / UML
    return kernel.exists() and subprocess.run([kernel, "--version"], capture_output=True).returncode == 0


def _use_own_libc(root: Path) -> None:
    """
    Let the kernel run on the C library beside it.

    The file itself names another dynamic linker. To call that one with the file as its argument would not do: the heap
    would lie elsewhere, and User-Mode Linux takes what is between its end and the heap for memory of the guest.
    """
    (linker,) = (root / "libc").glob("**/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    kernel = root / UML
    elf = bytearray(kernel.read_bytes())
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, number = struct.unpack_from("<HH", elf, 54)
    for header in range(headers, headers + size * number, size):
        if struct.unpack_from("<I", elf, header)[0] == _PT_INTERP:
            name = os.fsencode(linker) + b"\0"
            struct.pack_into("<Q", elf, header + 8, len(elf))
            struct.pack_into("<Q", elf, header + 32, len(name))
            elf += name
    patched = kernel.with_name("linux.uml.patched")
    patched.write_bytes(elf)
    patched.chmod(0o755)
    script = f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(str(linker.parent))} exec {shlex.quote(str(patched))} "$@"\n'
    kernel.write_text(script)
