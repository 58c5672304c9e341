"""
Which file system a directory is on, by the kernel's own account: ``/proc/self/mountinfo``, ``mountstats``.

Where there is no such ``/proc`` (anything but Linux) a mount is unknown, which is an answer and no error.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import Final

_PROC: Final = "/proc/self"
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", 0)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """
    One mount, see proc_pid_mountinfo(5).

    :param type: of the file system, such as ``nfs4`` or ``fuse.sshfs``
    :param source: what is mounted: ``server:/export``, a device, …
    :param mountpoint: where
    :param options: those of the mount and of its file system; ``True`` for one without a value
    """

    type: str
    source: str
    mountpoint: str
    options: dict[str, str | bool]

    @property
    def is_nfs(self) -> bool:
        """Whether the kernel's own NFS client serves it."""
        return self.type in ("nfs", "nfs4")

    def text(self, option: str) -> str | None:
        """The value of an option that has one."""
        value = self.options.get(option)
        return value if isinstance(value, str) else None

    def number(self, option: str) -> int | None:
        """The value of an option that is a number."""
        value = self.text(option)
        return int(value) if value is not None and value.isdecimal() else None


def mount_of(directory: str) -> Mount | None:
    """
    Return the mount that ``directory`` is on, or ``None`` where the system does not tell.

    Asked of a descriptor, so that neither a mount over another one nor a symbolic link can mislead.
    """
    fd = os.open(directory, _OPEN_FLAGS)
    try:
        about = _read(f"fdinfo/{fd}")
    except OSError:
        return None
    finally:
        os.close(fd)
    found = re.search(r"^mnt_id:\s*(\d+)$", about, re.MULTILINE)
    mount = None if found is None else _find(0, found[1])
    return None if mount is None else _with_defaults(mount)


def mount_of_device(device: int) -> Mount | None:
    """Return a mount of the file system with that ``st_dev``, or ``None`` where the system does not tell."""
    return _find(2, f"{os.major(device)}:{os.minor(device)}")


def mountpoint(path: str) -> str:
    """Return where the file system is mounted that ``path``, absolute, lies on, without a call to its server."""
    found = "/"
    with contextlib.suppress(OSError):
        for mount in filter(None, map(parse_mountinfo, _read("mountinfo").splitlines())):
            point = mount.mountpoint.rstrip("/")
            if len(point) >= len(found) and path.startswith(f"{point}/"):
                found = point
    return found


def _find(field: int, value: str) -> Mount | None:
    with contextlib.suppress(OSError):
        for line in _read("mountinfo").splitlines():
            if line.split(" ")[field : field + 1] == [value]:
                return parse_mountinfo(line)
    return None


def parse_mountinfo(line: str) -> Mount | None:
    """Return what one line of ``mountinfo`` says, or ``None`` if it is not one."""
    before, separator, after = line.partition(" - ")
    fields, more = before.split(" "), after.split(" ")
    if not separator or len(fields) < 6 or len(more) < 3:
        return None
    options = {**_options(more[2]), **_options(fields[5])}
    if "ro" in _options(more[2]):
        options = {**{name: value for name, value in options.items() if name != "rw"}, "ro": True}
    return Mount(more[0], source=_unescaped(more[1]), mountpoint=_unescaped(fields[4]), options=options)


def _options(text: str) -> dict[str, str | bool]:
    pairs = (option.partition("=") for option in text.split(",") if option)
    return {name: value if equals else True for name, equals, value in pairs}


def _with_defaults(mount: Mount) -> Mount:
    # mountstats also states the options that were not asked for, such as acdirmax=60.
    section = statistics_of(mount.mountpoint) if mount.is_nfs else None
    stated = re.search(r"^\topts:\t(\S+)", section or "", re.MULTILINE)
    return mount if stated is None else replace(mount, options={**_options(stated[1]), **mount.options})


def requests_of(mountpoint: str) -> dict[str, int] | None:
    """
    Return how many requests of each kind this kernel has sent for an NFS mount, by its own count.

    Those of all processes, and of all mounts of one export that share their caches. ``None`` for what is no NFS mount.
    """
    section = statistics_of(mountpoint)
    if section is None or "per-op statistics" not in section:
        return None
    counts = section.split("per-op statistics", 1)[1]
    return {kind: int(count) for kind, count in re.findall(r"^\s+([A-Z_0-9]+): (\d+)", counts, re.MULTILINE)}


def statistics_of(mountpoint: str) -> str | None:
    """Return what ``mountstats`` says of the NFS mount there, ``None`` if there is none."""
    try:
        text = _read("mountstats")
    except OSError:
        return None
    found = None
    for section in re.split(r"^device ", text, flags=re.MULTILINE):
        about = re.match(r"(?:\S+) mounted on (\S+) with fstype nfs4? ", section)
        if about is not None and _unescaped(about[1]) == mountpoint:
            found = section  # the last one is on top
    return found


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _read(name: str) -> str:
    with open(f"{_PROC}/{name}", errors="surrogateescape") as file:
        return file.read()
