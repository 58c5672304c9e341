"""Small file systems of their own, for tests with a full or a read-only disk. Need root and the right to mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, options: str = "size=256k,nr_inodes=64") -> Iterator[Path]:
    """Mount a new tmpfs at ``place`` for a while; skip the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def remount_read_only(place: Path) -> None:
    """Let nothing be written there any more."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def fill(place: Path) -> None:
    """Use up every inode that is left, and then every block."""
    number = 0
    try:
        while True:
            (place / f"filler-{number}").mkdir()
            number += 1
    except OSError:
        return


def free_one(place: Path) -> None:
    """Give back one of the inodes."""
    next(place.glob("filler-*")).rmdir()


def fill_blocks(place: Path) -> None:
    """Use up every block, but not the inodes."""
    big = os.open(place / "big", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(big, b"x" * 4096)
    except OSError:
        return
    finally:
        os.close(big)
