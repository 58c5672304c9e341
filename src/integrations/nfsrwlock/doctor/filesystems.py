"""
What a file system's type and mount options mean for locks, before anything is tried.

Each statement says where it comes from: this project's own NFS cluster, or the documentation, tried by nobody here.
Sources: nfs(5); Linux fs/nfs/dir.c (``nfs_lookup_verify_inode``); sshfs(1); mount.cifs(8); mount.lustre(8);
Documentation/filesystems/9p.rst; the README of s3fs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from nfsrwlock.doctor.report import Basis, Check, Level, Scope
from nfsrwlock_core.system.mounts import Mount

#: The engine's default lease.
_LEASE_SECONDS: Final = 90.0
_ELSEWHERE: Final = "Keep the lock elsewhere with --lock-dir (or NFSRWLOCK_DIR)."
_CRASH: Final = (
    "Whether changes survive a crash of the server (d) cannot be seen from here: 'exportfs -v' there must say sync."
)
_TRY: Final = "Find out with two hosts: nfsrwlock doctor --peer PATH."


@dataclass(frozen=True, slots=True)
class _Type:
    """What is known of a type of file system; :attr:`name` if people call it something else than the kernel does."""

    level: Level
    text: str
    remedy: str = ""
    basis: Basis = "documented"
    scope: Scope = "hosts"
    name: str = ""


def _cluster(name: str) -> _Type:
    return _Type(Level.OK, "keeps all demands by its documentation; this project has not tried it.", name=name)


def _guest(name: str) -> _Type:
    return _Type(
        Level.WARNING, f"{name}, between a host and its guests. Nothing is known about its caches.", _TRY, name=name
    )


_LOCAL: Final = _Type(
    Level.NOTE, "local to this host. Other hosts cannot see it, unless this host exports it to them.", scope="host"
)
_IN_MEMORY: Final = replace(_LOCAL, text=f"{_LOCAL.text} Its content is gone after a restart.")
_SMB: Final = _Type(Level.WARNING, "SMB. Whether a listing right after an own mkdir is fresh is not known.", _TRY)
_NFS4: Final = _Type(Level.OK, f"keeps demands (a) to (c). {_CRASH}", basis="lab")
_FUSE: Final = _Type(Level.WARNING, "a file system in user space; what it promises is up to its makers.", _TRY)
_UNKNOWN: Final = _Type(Level.WARNING, "nothing is known about it here.", _TRY)

#: By the kernel's name for it; NFS with its version.
_TYPES: Final[dict[str, _Type]] = {
    **dict.fromkeys(("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus"), _LOCAL),
    **dict.fromkeys(("jfs", "msdos", "ntfs", "ntfs3", "reiserfs", "rootfs", "ubifs", "vfat", "xfs", "zfs"), _LOCAL),
    **dict.fromkeys(("ramfs", "tmpfs"), _IN_MEMORY),
    "overlay": _Type(
        Level.NOTE,
        "an overlay is seen by this host alone, and by this container alone if it is a container's own; other "
        "containers see other files under the same path.",
        "Between containers, keep data and locks in a volume that they share.",
        scope="host",
    ),
    "nfs2": _Type(Level.WARNING, "NFSv2 was never tried.", "Mount with vers=4.2 or vers=3."),
    "nfs3": replace(
        _NFS4,
        text="keeps demands (a) to (c). A client may hold an old listing until it makes a change itself (NFSv3 goes by "
        f"time stamps); waiters do so now and then. {_CRASH}",
    ),
    "lustre": _cluster("Lustre"),
    "gpfs": _cluster("GPFS (Spectrum Scale)"),
    "beegfs": _cluster("BeeGFS"),
    **dict.fromkeys(("ceph", "fuse.ceph", "fuse.ceph-fuse"), _cluster("CephFS")),
    "gfs2": _cluster("GFS2"),
    "ocfs2": _cluster("OCFS2"),
    **dict.fromkeys(("cifs", "smb3"), _SMB),
    "fuse.sshfs": _Type(
        Level.WARNING,
        "sshfs caches attributes and listings for 20 s by default, and hosts do not hear of each other's changes.",
        f"Mount with -o dir_cache=no. {_TRY}",
    ),
    "fuse.s3fs": _Type(
        Level.UNFIT,
        "an object store: no atomic rename, no coordination between hosts, by its own documentation.",
        _ELSEWHERE,
    ),
    "9p": _guest("9p"),
    "drvfs": _guest("DrvFs"),
    "hostfs": _guest("hostfs"),
    "vboxsf": _guest("VirtualBox's shared folders"),
    "virtiofs": _guest("virtiofs"),
}


def _type(mount: Mount) -> _Type:
    if mount.is_nfs:
        version = mount.text("vers") or "?"
        return replace(_TYPES.get(f"nfs{version}", _NFS4), name=f"NFSv{version}")
    return _TYPES.get(mount.fstype, _FUSE if mount.fstype.startswith("fuse") else _UNKNOWN)


def scope_of(mount: Mount | None) -> Scope:
    """Return between which processes locks can work on this mount."""
    return "hosts" if mount is None else _type(mount).scope


def explain(mount: Mount | None) -> list[Check]:
    """Return what the type of the file system means, and those of its options that matter or are thought to."""
    if mount is None:
        text = "This system does not tell which file system this is, so nothing is known about it."
        return [Check("file-system", Level.NOTE, text, _TRY)]
    known = _type(mount)
    where = f"{known.name or mount.fstype} from {mount.source}, mounted at {mount.mountpoint}"
    return [
        Check("file-system", known.level, f"{where}: {known.text}", known.remedy, known.basis),
        *_options(mount),
    ]


def explain_other(mount: Mount | None, host: str, here: list[Check]) -> list[Check]:
    """
    Return what the mount of a second host means, as far as it is not what this host's means.

    :param host: that host's name
    :param here: what :func:`explain` said of this host's mount
    """
    known = {(check.name, _without_place(check.text)) for check in here}
    return [
        replace(check, text=f"On {host}: {check.text}")
        for check in explain(mount)
        if (check.name, _without_place(check.text)) not in known
    ]


def _without_place(text: str) -> str:
    """A file system may be mounted elsewhere on another host, and its server go by another name."""
    name, _, more = text.partition(" from ")
    return name + more.partition(": ")[2] if " mounted at " in more else text


def _options(mount: Mount) -> Iterator[Check]:
    if "ro" in mount.options:
        yield Check("option-ro", Level.UNFIT, "Mounted read-only: no lock can be made here.", _ELSEWHERE)
    if mount.is_nfs:
        yield from _nfs_options(mount)
    if mount.fstype == "lustre":
        for name in {"flock", "localflock", "noflock"} & mount.options.keys():
            text = f"{name}: about flock and fcntl, which are not used here."
            yield Check("option-flock", Level.OK, text, "", "documented")
    cache = mount.text("cache")
    if mount.fstype in ("cifs", "smb3") and cache == "loose":
        text = "cache=loose: this host does not ask the server whether its copy is fresh, by mount.cifs(8)."
        yield Check("option-cache", Level.WARNING, text, "Mount with cache=strict.", "documented")
    if mount.fstype == "9p" and cache in ("loose", "fscache"):
        text = f"cache={cache}: meant for mounts that nobody else changes, by the kernel's documentation."
        yield Check("option-cache", Level.WARNING, text, "Mount with cache=none.", "documented")


def _nfs_options(mount: Mount) -> Iterator[Check]:
    version3 = mount.text("vers") in ("2", "3")
    if "nocto" in mount.options:
        seconds = mount.number("acdirmax") or 60
        text = (
            "nocto: opening a directory or a file does not ask the server whether the cached copy is fresh. The "
            "listing that decides a grant still is, for it comes after a change of one's own. But who waits learns of "
            f"changes up to {seconds} s late, unless a change of its own comes first (28 s were seen for plain "
            "listings)."
        )
        if version3:
            text += " And on NFSv3 a file that another host had changed was read in its old version, every time."
        else:
            text += " On NFSv4 a file that was opened anew was still read in its new version, every time."
        level = Level.UNFIT if version3 else Level.WARNING
        yield Check("option-nocto", level, text, "Mount without nocto.", "lab")
    if "noac" in mount.options or mount.number("acdirmax") == 0:
        text = (
            "noac (or actimeo=0): attributes are not cached. Not needed by the locks, and expensive: 29 requests for a "
            "read lock instead of 4."
        )
        yield Check("option-noac", Level.NOTE, text, "", "lab")
    elif any(mount.number(name) != usual for name, usual in _CACHE_TIMES.items() if name in mount.options):
        times = ", ".join(f"{name}={mount.text(name)}" for name in _CACHE_TIMES if name in mount.options)
        text = (
            f"Attribute cache times {times}: locks do not depend on them, for every listing opens its directory anew."
        )
        yield Check("option-actimeo", Level.OK, text, "", "documented")
    if (lookup := mount.text("lookup_cache") or mount.text("lookupcache")) in ("none", "pos", "positive"):
        text = f"lookupcache={lookup}: not needed by the locks, which rest on no looked-up name; does no harm."
        yield Check("option-lookupcache", Level.NOTE, text, "", "documented")
    yield from _soft(mount)
    if mount.text("local_lock") not in (None, "none") or "nolock" in mount.options:
        text = (
            f"local_lock={mount.text('local_lock') or 'all (nolock)'}: about flock and fcntl, which are not used here."
        )
        yield Check("option-local_lock", Level.OK, text, "", "documented")


_CACHE_TIMES: Final = {"acregmin": 3, "acregmax": 60, "acdirmin": 30, "acdirmax": 60}


def _soft(mount: Mount) -> Iterator[Check]:
    kind = next((name for name in ("softerr", "soft") if name in mount.options), None)
    if kind is None:
        return
    timeo, retrans = mount.number("timeo") or 600, mount.number("retrans")
    seconds = timeo / 10 * (1 + (2 if retrans is None else retrans))
    compared = "longer" if seconds > _LEASE_SECONDS else "less"
    yield Check(
        "option-soft",
        Level.WARNING,
        f"{kind}: a call fails after about {seconds:g} s without an answer (timeo={timeo}, retrans={retrans}), which "
        f"is {compared} than the default lease of {_LEASE_SECONDS:g} s, and may still be carried out later. Locks "
        "allow for that. Data may not: a write that fails so is lost, and few programs check.",
        "Mount with hard, the default.",
        "documented",
        {"fails_after_s": seconds},
    )
