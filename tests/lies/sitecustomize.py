"""
A file system that lies, for real processes: put this directory first on PYTHONPATH, and name the lie in ``LIE``.

Each lie replaces one call of the operating system, and only for the names that ``nfsrwlock doctor`` makes.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from typing import Any

_mkdir, _rmdir, _unlink, _rename, _listdir, _open = os.mkdir, os.rmdir, os.unlink, os.rename, os.listdir, os.open
_own: set[str] = set()


def mkdir_succeeds_twice(path: Any, *args: Any, **kwargs: Any) -> None:
    try:
        _mkdir(path, *args, **kwargs)
    except FileExistsError:
        if not str(path).startswith("same."):
            raise


def mkdir_notes_own_names(path: Any, *args: Any, **kwargs: Any) -> None:
    _mkdir(path, *args, **kwargs)
    _own.add(str(path))


def listing_shows_own_names_only(path: Any = ".") -> list[str]:
    names = _listdir(path)
    if re.search(r"/list-\d+$", _path_of(path)):
        return [name for name in names if name in _own]
    return names


def listing_is_without_own_names(path: Any = ".") -> list[str]:
    names = _listdir(path)
    if re.search(r"/list-\d+$", _path_of(path)):
        return [name for name in names if name not in _own]
    return names


def unlink_succeeds_always(path: Any, *args: Any, **kwargs: Any) -> None:
    try:
        _unlink(path, *args, **kwargs)
    except FileNotFoundError:
        if path != "beat.3":
            raise


def rmdir_removes_what_is_inside(path: Any, *, dir_fd: int | None = None) -> None:
    try:
        _rmdir(path, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY or dir_fd is None:
            raise
        shutil.rmtree(path, dir_fd=dir_fd)


def rmdir_succeeds_always(path: Any, *, dir_fd: int | None = None) -> None:
    try:
        _rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        if not str(path).isdecimal():
            raise


def open_makes_the_directory(path: Any, flags: int, *args: Any, dir_fd: int | None = None) -> int:
    if str(path).isdecimal() and flags & os.O_PATH:  # an announcement in which a beat is to be made
        with suppress(FileExistsError):
            _mkdir(path, dir_fd=dir_fd)
    return _open(path, flags, *args, dir_fd=dir_fd)


def rename_fails(path: Any, *args: Any, **kwargs: Any) -> None:
    if path == "beat.3":
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    _rename(path, *args, **kwargs)


def rename_succeeds_always(path: Any, to: Any, **kwargs: Any) -> None:
    try:
        _rename(path, to, **kwargs)
    except FileNotFoundError:
        if not re.fullmatch(r"gone\.\d+\.\d+", str(to)):
            raise


def mkdir_hangs(path: Any, *args: Any, **kwargs: Any) -> None:
    if str(path).startswith("same."):
        parent = os.getppid()
        while os.getppid() == parent:  # no longer than somebody waits for it
            time.sleep(0.1)
    _mkdir(path, *args, **kwargs)


def rmdir_hangs(path: Any, *args: Any, **kwargs: Any) -> None:
    while os.path.exists(os.path.join(os.environ["NFSRWLOCK_TEST"], "hangs")):
        time.sleep(0.05)
    _rmdir(path, *args, **kwargs)


_open_file = builtins.open


def files_look_empty(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if str(path).endswith(".json") and mode == "r":
        path = os.devnull
    return _open_file(path, mode, *args, **kwargs)


def boot_id_of_another_host(path: Any, *args: Any, **kwargs: Any) -> Any:
    if str(path).endswith("/boot_id"):
        return io.StringIO("another host's")
    return _open_file(path, *args, **kwargs)


def mounts_are_of_glusterfs(path: Any, *args: Any, **kwargs: Any) -> Any:
    file = _open_file(path, *args, **kwargs)
    if not str(path).endswith("/mountinfo"):
        return file
    with file:
        return io.StringIO(re.sub(r" - \S+ ", " - fuse.glusterfs ", file.read()))


def files_stay_old(path: Any, *args: Any, **kwargs: Any) -> Any:
    if "/data/0." in str(path):  # of the first host, as the second one sees it
        return io.StringIO('{"version": "older"}')
    return boot_id_of_another_host(path, *args, **kwargs)


def listings_stay_old(path: Any = ".") -> list[str]:
    return [] if _path_of(path).endswith("/news-1") else _listdir(path)


def _path_of(directory: Any) -> str:
    return os.readlink(f"/proc/self/fd/{directory}") if isinstance(directory, int) else str(directory)


def _let_listings_lie(listdir: Any) -> None:
    from nfsrwlock_core.system import listing

    listing._getdents = None
    os.listdir = listdir


def _tell(lie: str) -> None:
    if lie == "mkdir succeeds twice":
        os.mkdir = mkdir_succeeds_twice
    elif lie == "listings show own names only":
        os.mkdir = mkdir_notes_own_names
        _let_listings_lie(listing_shows_own_names_only)
    elif lie == "listings are without own names":
        os.mkdir = mkdir_notes_own_names
        _let_listings_lie(listing_is_without_own_names)
    elif lie == "unlink succeeds always":
        os.unlink = unlink_succeeds_always
    elif lie == "rmdir removes what is inside":
        os.rmdir = rmdir_removes_what_is_inside
    elif lie == "rmdir succeeds always":
        os.rmdir = rmdir_succeeds_always
    elif lie == "create makes the directory":
        os.open = open_makes_the_directory
    elif lie == "rename succeeds always":
        os.rename = rename_succeeds_always
    elif lie == "rename fails":
        os.rename = rename_fails
    elif lie == "files look empty":
        builtins.open = files_look_empty
    elif lie == "mkdir hangs":
        os.mkdir = mkdir_hangs
    elif lie == "rmdir hangs":
        os.rmdir = rmdir_hangs
    elif lie == "it is another host":
        builtins.open = boot_id_of_another_host
    elif lie == "it is another host, where files stay old":
        builtins.open = files_stay_old
    elif lie == "it is another host, where listings stay old":
        builtins.open = boot_id_of_another_host
        _let_listings_lie(listings_stay_old)
    elif lie == "it is GlusterFS":
        builtins.open = mounts_are_of_glusterfs
    elif lie == "the second process dies":
        if sys.orig_argv[-1] == "1":
            os._exit(3)
    elif lie:
        raise ValueError(lie)


_tell(os.environ.get("LIE", ""))
