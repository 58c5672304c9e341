"""
What a file system's type and mount options mean for locks. Nothing is tried here.

Each row says where it comes from: this project's own NFS cluster, or the documentation, tried by nobody here.
Sources: nfs(5); Linux fs/nfs/dir.c (``nfs_lookup_verify_inode``), filesystems/9p.rst; sshfs(1); the README of s3fs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from nfsrwlock.doctor.report import ELSEWHERE, Check, Level, Scope
from nfsrwlock_core.system.mounts import Mount

_CRASH: Final = (
    "Whether changes survive a crash of the server (d) cannot be seen from here: 'exportfs -v' there must say sync, "
    "and what it exports must not be btrfs."
)
_TRY: Final = "Find out with two hosts: nfsrwlock doctor --peer PATH."
_known: Final = partial(Check, basis="documented")
_type: Final = partial(_known, "file-system")
_LOCAL: Final = _type(Level.NOTE, "local to this host. Other hosts cannot see it, unless this host exports it to them.")
_IN_MEMORY: Final = replace(_LOCAL, text=f"{_LOCAL.text} Its content is gone after a restart.")
_OVERLAY: Final = _type(
    Level.NOTE,
    "seen by this host alone, or by this container alone; other containers see other files under the same path.",
    "Between containers, keep data and locks in a volume that they share.",
)
_NFS3_CACHE: Final = "A client may hold an old listing until it makes a change itself; waiters do so now and then."
_NFS4: Final = _type(Level.OK, f"keeps demands (a) to (c). {_CRASH}", basis="lab")
_CLUSTER: Final = _type(Level.OK, f"keeps the demands by its documentation, which is no test. {_TRY}")
_SMB: Final = _type(
    Level.UNFIT,
    "SMB breaks demand (c): a rename and a removal of one name were seen to succeed both, so two may hold a lock.",
    f"{ELSEWHERE} Or take the risk with NFSRWLOCK_UNFIT=1, on a mount with dir_mode=0700.",
    basis="lab",
)
_SHARED_DISK: Final = _type(
    Level.WARNING,
    "locks hold; but a power cut of a machine takes its latest changes along, so a grant's number may come again.",
    "Do not let storage go by the numbers of grants here.",
    basis="lab",
)
_PROGRAM: Final = _type(
    Level.WARNING,
    "keeps demands (a) to (c); but a power cut of its server takes the latest changes along (d), and locks with them.",
    "End all jobs after such a power cut.",
    basis="lab",
)
_UNKNOWN: Final = _type(Level.WARNING, "little is known about its caches, or nothing.", _TRY)

#: By the kernel's name for it; NFS with its version.
_TYPES: Final[dict[str, Check]] = {
    **dict.fromkeys(("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus"), _LOCAL),
    **dict.fromkeys(("jfs", "msdos", "ntfs", "ntfs3", "reiserfs", "rootfs", "ubifs", "vfat", "xfs", "zfs"), _LOCAL),
    **dict.fromkeys(("ramfs", "tmpfs"), _IN_MEMORY),
    "overlay": _OVERLAY,
    "nfs2": _type(Level.WARNING, "NFSv2 was never tried.", "Mount with vers=4.2 or vers=3."),
    "nfs3": replace(_NFS4, text=f"keeps demands (a) to (c). {_NFS3_CACHE} {_CRASH}"),
    **dict.fromkeys(("beegfs", "fuse.ceph", "fuse.ceph-fuse", "gpfs", "lustre"), _CLUSTER),
    **dict.fromkeys(("cifs", "smb3"), _SMB),
    **dict.fromkeys(("gfs2", "ocfs2"), _SHARED_DISK),
    **dict.fromkeys(("9p", "fuse.glusterfs", "mfs"), _PROGRAM),
    "ceph": _type(Level.OK, "kept demands (a) to (c) when it was tried. A power cut (d) was not tried.", basis="lab"),
    "fuse.sshfs": _type(
        Level.WARNING,
        "caches for 20 s by default: locks hold, but 28 of 177 files read under them were old, and updates were lost.",
        f"Mount with -o dir_cache=no,attr_timeout=0,entry_timeout=0. {_TRY}",
        basis="lab",
    ),
    "fuse.s3fs": _type(Level.UNFIT, "an object store: no atomic rename, no coordination between hosts.", ELSEWHERE),
}


def _type_of(mount: Mount) -> tuple[str, Check]:
    if mount.is_nfs:
        version = mount.text("vers") or "?"
        return f"NFSv{version}", _TYPES.get(f"nfs{version}", _NFS4)
    kind = "mfs" if mount.source.startswith("mfs#") else mount.type  # MooseFS calls itself fuse
    return kind, _TYPES.get(kind, _UNKNOWN)


def scope_of(mount: Mount | None) -> Scope:
    """Return between which processes locks can work on this mount."""
    return "host" if mount is not None and _type_of(mount)[1] in (_LOCAL, _IN_MEMORY, _OVERLAY) else "hosts"


def explain(mount: Mount | None) -> list[Check]:
    """Return what the type of the file system means, and those of its options that matter."""
    if mount is None:
        return [Check("file-system", Level.NOTE, "This system does not report which file system this is.", _TRY)]
    name, known = _type_of(mount)
    where = f"{name} from {mount.source}, mounted at {mount.mountpoint}"
    return [replace(known, text=f"{where}: {known.text}"), *_options(mount)]


def explain_other(mount: Mount | None, host: str, here: Mount | None) -> list[Check]:
    """Return what the mount of a second host, named ``host``, means as far as that is not what ``here`` means."""
    # It may be mounted elsewhere there, and its server go by another name: that alone is no difference.
    moved = replace(mount, source=here.source, mountpoint=here.mountpoint) if mount and here else mount
    known, compared = explain(here), zip(explain(mount), explain(moved), strict=True)
    return [replace(check, text=f"On {host}: {check.text}") for check, alike in compared if alike not in known]


def _options(mount: Mount) -> Iterator[Check]:
    given = mount.options.keys()
    if "ro" in given:
        yield Check("option-ro", Level.UNFIT, "Mounted read-only: no lock can be made here.", ELSEWHERE)
    if mount.type == "9p" and (cache := mount.text("cache")) in ("loose", "fscache"):
        text = f"cache={cache}: meant for mounts that nobody else changes, by the kernel's documentation."
        yield _known("option-cache", Level.WARNING, text, "Mount with cache=none.")
    if mount.type == "fuse.glusterfs":  # which does not show its options
        text = "With default options 92 of 275 files read under locks were old, and updates were lost."
        remedy = "Mount with --fopen-keep-cache=off --attribute-timeout=0 --entry-timeout=0; on the volume, set "
        remedy += f"performance.open-behind, .quick-read, .io-cache and .stat-prefetch off. {_TRY}"
        yield _known("data", Level.UNFIT, text, remedy, basis="lab")
    if not mount.is_nfs:
        return
    if "nocto" in given:
        old = mount.text("vers") in ("2", "3")
        seen = "on NFSv3 every file that another host had changed" if old else "on NFSv4 no file that was opened anew"
        text = (
            "nocto: opening a directory or a file does not ask the server whether the cached copy is fresh. Locks "
            "hold, for a change of one's own precedes the listing that decides. But waiters learn of changes up to "
            f"{mount.number('acdirmax') or 60} s late (28 s were seen), and {seen} was read in its old version."
        )
        yield _known("option-nocto", Level.UNFIT if old else Level.WARNING, text, "Mount without nocto.", basis="lab")
    if "nordirplus" in given and mount.text("vers") == "3":
        text = (
            "nordirplus: what was looked for in vain may stay missing, although it is listed (7 of 10 new names did). "
            "Locks hold. But programs, fetch and the adapters may not find what another host has made."
        )
        yield _known("option-nordirplus", Level.WARNING, text, "Mount without nordirplus.", basis="lab")
    if "noac" in given or mount.number("acdirmax") == 0:
        text = "noac (or actimeo=0): not needed by the locks, and expensive: 29 requests for a read lock instead of 4."
        yield _known("option-noac", Level.NOTE, text, basis="lab")
    if kind := next((name for name in ("softerr", "soft") if name in given), ""):
        timeo, retrans = mount.number("timeo") or 600, mount.number("retrans")
        seconds = timeo / 10 * (1 + (2 if retrans is None else retrans))
        text = (
            f"{kind}: a call fails after about {seconds:g} s without an answer, and may still be carried out later. "
            "Locks allow for that. Data may not: a write that fails so is lost, and few programs check."
        )
        remedy = "Mount with hard, the default."
        yield _known("option-soft", Level.WARNING, text, remedy, facts={"fails_after_s": seconds})
