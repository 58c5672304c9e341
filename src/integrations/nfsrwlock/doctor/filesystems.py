"""
What a file system's type and mount options mean for locks: two tables, and nothing is tried here.

Each row says where it comes from: this project's own NFS cluster, or the documentation, tried by nobody here.
Sources: nfs(5); Linux fs/nfs/dir.c (``nfs_lookup_verify_inode``); sshfs(1); mount.cifs(8); mount.lustre(8);
Documentation/filesystems/9p.rst; the README of s3fs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nfsrwlock.doctor.report import ELSEWHERE, Basis, Check, Level, Scope
from nfsrwlock_core.system.mounts import Mount

#: The engine's default lease.
_LEASE_SECONDS: Final = 90.0
_CRASH: Final = (
    "Whether changes survive a crash of the server (d) cannot be seen from here: 'exportfs -v' there must say sync."
)
_TRY: Final = "Find out with two hosts: nfsrwlock doctor --peer PATH."


def _type(level: Level, text: str, remedy: str = "", basis: Basis = "documented") -> Check:
    return Check("file-system", level, "{where}: " + text, remedy, basis)


_LOCAL: Final = _type(Level.NOTE, "local to this host. Other hosts cannot see it, unless this host exports it to them.")
_IN_MEMORY: Final = replace(_LOCAL, text=f"{_LOCAL.text} Its content is gone after a restart.")
_OVERLAY: Final = _type(
    Level.NOTE,
    "an overlay is seen by this host alone, and by this container alone if it is a container's own; other containers "
    "see other files under the same path.",
    "Between containers, keep data and locks in a volume that they share.",
)
_NFS3: Final = _type(
    Level.OK,
    "keeps demands (a) to (c). A client may hold an old listing until it makes a change itself (NFSv3 goes by time "
    f"stamps); waiters do so now and then. {_CRASH}",
    basis="lab",
)
_NFS4: Final = _type(Level.OK, f"keeps demands (a) to (c). {_CRASH}", basis="lab")
_CLUSTER: Final = _type(Level.OK, "keeps all demands by its documentation; this project has not tried it.")
_GUEST: Final = _type(
    Level.WARNING, "shared between a host and its guests. Nothing is known about the caches on either side.", _TRY
)
_SMB: Final = _type(Level.WARNING, "SMB. Whether a listing right after an own mkdir is fresh is not known.", _TRY)
_FUSE: Final = _type(Level.WARNING, "a file system in user space; what it promises is up to its makers.", _TRY)
_UNKNOWN: Final = _type(Level.WARNING, "nothing is known about it here.", _TRY)

#: By the kernel's name for it; NFS with its version.
_TYPES: Final[dict[str, Check]] = {
    **dict.fromkeys(("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus"), _LOCAL),
    **dict.fromkeys(("jfs", "msdos", "ntfs", "ntfs3", "reiserfs", "rootfs", "ubifs", "vfat", "xfs", "zfs"), _LOCAL),
    **dict.fromkeys(("ramfs", "tmpfs"), _IN_MEMORY),
    "overlay": _OVERLAY,
    "nfs2": _type(Level.WARNING, "NFSv2 was never tried.", "Mount with vers=4.2 or vers=3."),
    "nfs3": _NFS3,
    **dict.fromkeys(("beegfs", "ceph", "fuse.ceph", "fuse.ceph-fuse", "gfs2", "gpfs", "lustre", "ocfs2"), _CLUSTER),
    **dict.fromkeys(("9p", "drvfs", "hostfs", "vboxsf", "virtiofs"), _GUEST),
    **dict.fromkeys(("cifs", "smb3"), _SMB),
    "fuse.sshfs": _type(
        Level.WARNING,
        "sshfs caches attributes and listings for 20 s by default, and hosts do not hear of each other's changes.",
        f"Mount with -o dir_cache=no. {_TRY}",
    ),
    "fuse.s3fs": _type(
        Level.UNFIT,
        "an object store: no atomic rename, no coordination between hosts, by its own documentation.",
        ELSEWHERE,
    ),
}


def _option(name: str, level: Level, text: str, remedy: str = "", basis: Basis = "documented") -> Check:
    return Check(f"option-{name}", level, text, remedy, basis)


_NOCTO: Final = (
    "nocto: opening a directory or a file does not ask the server whether the cached copy is fresh. The listing that "
    "decides a grant still is, for it comes after a change of one's own. But who waits learns of changes up to {value} "
    "s late, unless a change of its own comes first (28 s were seen for plain listings). "
)
_NOCTO_3: Final = "And on NFSv3 a file that another host had changed was read in its old version, every time."
_NOCTO_4: Final = "On NFSv4 a file that was opened anew was still read in its new version, every time."
_REMOUNT: Final = "Mount without nocto."

#: What to say of the options that matter or are thought to.
_OPTIONS: Final[dict[str, Check]] = {
    "ro": _option("ro", Level.UNFIT, "Mounted read-only: no lock can be made here.", ELSEWHERE, "measured"),
    "nocto, NFSv3": _option("nocto", Level.UNFIT, f"{_NOCTO}{_NOCTO_3}", _REMOUNT, "lab"),
    "nocto, NFSv4": _option("nocto", Level.WARNING, f"{_NOCTO}{_NOCTO_4}", _REMOUNT, "lab"),
    "noac": _option(
        "noac",
        Level.NOTE,
        "noac (or actimeo=0): attributes are not cached. The locks do not need this, and it is expensive: 29 requests "
        "for a read lock instead of 4.",
        basis="lab",
    ),
    "actimeo": _option(
        "actimeo",
        Level.OK,
        "Attribute cache times {value}: locks do not depend on them, for every listing opens its directory anew.",
    ),
    "lookupcache": _option(
        "lookupcache",
        Level.NOTE,
        "lookupcache={value}: not needed by the locks, which rest on no looked-up name; does no harm.",
    ),
    "soft": _option(
        "soft",
        Level.WARNING,
        "{value}: a call fails after about {fails_after_s:g} s without an answer (timeo={timeo}, retrans={retrans}), "
        "which is {compared} than the default lease of {lease:g} s, and may still be carried out later. Locks allow "
        "for that. Data may not: a write that fails so is lost, and few programs check.",
        "Mount with hard, the default.",
    ),
    "local_lock": _option(
        "local_lock", Level.OK, "local_lock={value}: about flock and fcntl, which are not used here."
    ),
    "flock": _option("flock", Level.OK, "{value}: about flock and fcntl, which are not used here."),
    "cache, SMB": _option(
        "cache",
        Level.WARNING,
        "cache=loose: this host does not ask the server whether its copy is fresh, by mount.cifs(8).",
        "Mount with cache=strict.",
    ),
    "cache, 9p": _option(
        "cache",
        Level.WARNING,
        "cache={value}: meant for mounts that nobody else changes, by the kernel's documentation.",
        "Mount with cache=none.",
    ),
}
_CACHE_TIMES: Final = {"acregmin": 3, "acregmax": 60, "acdirmin": 30, "acdirmax": 60}


def _values(mount: Mount) -> dict[str, object]:
    """What the mount sets, by row of the table; false where there is nothing to say."""
    given, text = mount.options.keys(), mount.text
    found: dict[str, object] = {"ro": "ro" in given}
    if mount.is_nfs:
        late = "nocto" in given and (mount.number("acdirmax") or 60)
        times = {name: mount.number(name) for name in _CACHE_TIMES if name in given}
        lookups = text("lookup_cache") or text("lookupcache")
        local = (text("local_lock") or "none").replace("none", "all (nolock)" if "nolock" in given else "")
        found["nocto, NFSv3" if text("vers") in ("2", "3") else "nocto, NFSv4"] = late
        found["noac"] = "noac" in given or times.get("acdirmax") == 0
        if not found["noac"] and any(_CACHE_TIMES[name] != seconds for name, seconds in times.items()):
            found["actimeo"] = ", ".join(f"{name}={text(name)}" for name in times)
        found["lookupcache"] = lookups in ("none", "pos", "positive") and lookups
        found["soft"] = next((name for name in ("softerr", "soft") if name in given), "")
        found["local_lock"] = local
    elif mount.fstype == "lustre":
        found["flock"] = ", ".join(sorted({"flock", "localflock", "noflock"} & given))
    elif mount.fstype in ("cifs", "smb3"):
        found["cache, SMB"] = text("cache") == "loose"
    elif mount.fstype == "9p":
        found["cache, 9p"] = text("cache") in ("loose", "fscache") and text("cache")
    return found


def _explain_option(row: str, value: object, mount: Mount) -> Check:
    if row != "soft":
        return _OPTIONS[row].of(value=value)
    timeo, retrans = mount.number("timeo") or 600, mount.number("retrans")
    retrans = 2 if retrans is None else retrans
    seconds = timeo / 10 * (1 + retrans)
    compared = "longer" if seconds > _LEASE_SECONDS else "less"
    return _OPTIONS[row].of(
        {"fails_after_s": seconds}, value=value, timeo=timeo, retrans=retrans, compared=compared, lease=_LEASE_SECONDS
    )


def _type_of(mount: Mount) -> tuple[str, Check]:
    if mount.is_nfs:
        version = mount.text("vers") or "?"
        return f"NFSv{version}", _TYPES.get(f"nfs{version}", _NFS4)
    return mount.fstype, _TYPES.get(mount.fstype, _FUSE if mount.fstype.startswith("fuse") else _UNKNOWN)


def scope_of(mount: Mount | None) -> Scope:
    """Return between which processes locks can work on this mount."""
    return "host" if mount is not None and _type_of(mount)[1] in (_LOCAL, _IN_MEMORY, _OVERLAY) else "hosts"


def explain(mount: Mount | None) -> list[Check]:
    """Return what the type of the file system means, and those of its options that matter or are thought to."""
    if mount is None:
        text = "This system does not report which file system this is, so nothing is known about it."
        return [Check("file-system", Level.NOTE, text, _TRY)]
    name, known = _type_of(mount)
    checks = [known.of(where=f"{name} from {mount.source}, mounted at {mount.mountpoint}")]
    return checks + [_explain_option(row, value, mount) for row, value in _values(mount).items() if value]


def explain_other(mount: Mount | None, host: str, here: Mount | None) -> list[Check]:
    """Return what the mount of a second host, named ``host``, means as far as that is not what ``here`` means."""
    checks = explain(mount)
    # It may be mounted elsewhere there, and its server go by another name: that alone is no difference.
    moved = replace(mount, source=here.source, mountpoint=here.mountpoint) if mount and here else mount
    known = explain(here)
    compared = zip(checks, explain(moved), strict=True)
    return [replace(check, text=f"On {host}: {check.text}") for check, alike in compared if alike not in known]
