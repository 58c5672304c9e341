"""
One description for each way to share a file system: what serves ``/mnt/disk/export``, and what mounts it.

All scripts run on machines of the lab, as root: ``serve`` on ``srv`` whenever it boots, ``mount`` on each client, with
the place in ``$1``. What a server must not forget belongs below ``/mnt/disk``, which outlives a power cut.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Final

from nfs.lab.cluster import KERNEL_SERVER


@dataclass(frozen=True)
class FileSystem:
    """
    One row of the table.

    :param title: what it is, for people
    :param options: what is not as it is by default, for people and for ``mount`` as ``$OPTIONS``
    :param packages: of Debian, the first of which tells the version
    :param programs: what must be there; otherwise the packages are installed
    :param serve: a shell script
    :param mount: a shell script
    :param mind: what a user has to know, beside what the run finds
    :param disk: the file system under the server
    :param shared_mib: size of a disk that all machines have, at ``/dev/ubdb``; 0: the server serves its own
    :param in_memory: whether the server keeps the files in its memory, not on its disk
    :param mem_mib: memory of each machine
    :param lets_all_users_in: whether other users than root can use the mount
    """

    title: str
    packages: str
    programs: str
    mount: str
    serve: str = KERNEL_SERVER
    options: str = ""
    mind: str = ""
    disk: str = "ext4"
    shared_mib: int = 0
    in_memory: bool = False
    mem_mib: int = 512
    lets_all_users_in: bool = True

    @property
    def mounting(self) -> str:
        """The script that mounts it, with its options filled in."""
        return f"OPTIONS={shlex.quote(self.options)}\n{self.mount}"


_SERVED: Final = "mkdir -p /mnt/disk/export\n"

_LINUX: Final = FileSystem(
    "Linux NFS server, NFSv4.2",
    packages="nfs-kernel-server",
    programs="rpc.nfsd mount.nfs",
    mount='mount -t nfs -o vers=4.2${OPTIONS:+,$OPTIONS} srv:/ "$1"',
)
_LINUX_3: Final = dataclasses.replace(
    _LINUX,
    title="Linux NFS server, NFSv3",
    mount='mount -t nfs -o vers=3${OPTIONS:+,$OPTIONS} srv:/mnt/disk/export "$1"',
)


def _linux(options: str, mind: str = "") -> FileSystem:
    return dataclasses.replace(_LINUX, options=options, mind=mind)


def _linux_over(disk: str, package: str, mind: str = "") -> FileSystem:
    return dataclasses.replace(
        _LINUX,
        title=f"Linux NFS server over {disk}",
        mind=mind,
        disk=disk,
        packages=f"{_LINUX.packages} {package}",
        programs=f"{_LINUX.programs} mkfs.{disk}",
    )


_GANESHA: Final = FileSystem(
    "NFS-Ganesha, NFSv4.1",
    packages="nfs-ganesha nfs-ganesha-vfs",
    programs="ganesha.nfsd mount.nfs",
    serve=_SERVED
    + """
mkdir -p /run/ganesha /mnt/disk/ganesha
cat >/run/ganesha.conf <<'END'
NFS_CORE_PARAM { Protocols = 3,4; Enable_NLM = false; Enable_RQUOTA = false; MNT_Port = 20048; }
NFSv4 { Grace_Period = 10; Lease_Lifetime = 10; RecoveryRoot = /mnt/disk/ganesha; Minor_Versions = 0,1,2; }
EXPORT { Export_Id = 1; Path = /mnt/disk/export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
         SecType = sys; Protocols = 3,4; Transports = TCP; FSAL { Name = VFS; } }
LOG { Default_Log_Level = WARN; }
END
ganesha.nfsd -L /run/ganesha.log -f /run/ganesha.conf -p /run/ganesha.pid
""",
    mount="""
for try in 1 2 3 4 5 6 7 8; do
    mount -t nfs -o vers=4.1${OPTIONS:+,$OPTIONS} srv:/export "$1" && exit
    sleep 1
done
exit 1
""",
    mind="Listings are broken off while names come and go: see below.",
    mem_mib=512,
)

DESCRIPTIONS: Final = {
    "linux-4.2": _LINUX,
    "linux-3": _LINUX_3,
    "linux-4.1": dataclasses.replace(
        _LINUX, title="Linux NFS server, NFSv4.1", mount='mount -t nfs -o vers=4.1 srv:/ "$1"'
    ),
    "nconnect": _linux("nconnect=4"),
    "actimeo": _linux("actimeo=600", "Attributes may be ten minutes old; locks do not rest on them."),
    "lookupcache": _linux("lookupcache=none"),
    "noac": _linux("noac", "Costs many requests; locks do not need it."),
    "softerr": _linux("softerr,timeo=50,retrans=2", "Calls fail while the server is away: data may be lost."),
    "nordirplus": dataclasses.replace(
        _LINUX_3,
        options="nordirplus",
        mind="What was looked for in vain stays missing, though it is listed, if it was made within the tick of the "
        "server's clock (10 ms here) in which the directory was changed before.",
    ),
    "xfs": _linux_over("xfs", "xfsprogs", "A full disk has no inode for a first heartbeat: a younger hold is lost."),
    "btrfs": _linux_over("btrfs", "btrfs-progs", "The server acknowledges what is not on its disk, so it breaks (d)."),
    "tmpfs": dataclasses.replace(
        _LINUX,
        title="Linux NFS server over tmpfs",
        serve=f"{_SERVED}mount -t tmpfs tmpfs /mnt/disk/export\n{KERNEL_SERVER}",
        mind="A crash of the server loses everything, so it breaks (d).",
        in_memory=True,
    ),
    "async": dataclasses.replace(
        _LINUX,
        title="Linux NFS server, export with `async`",
        serve=f"sed -i s/sync,/async,/ /run/nfslab.conf\n{KERNEL_SERVER}",
        mind="The server acknowledges what is not on its disk, so it breaks (d).",
    ),
    "reexport": dataclasses.replace(
        _LINUX_3,
        title="Linux NFS server, NFSv3, of what it has mounted by NFSv4.2 itself",
        serve=f"""{KERNEL_SERVER}
/run/modprobe -a nfsv4 nfsv3
mkdir -p /mnt/again
mount -t nfs -o vers=4.2 srv:/ /mnt/again
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=7 '*:/mnt/again'
""",
        mount=_LINUX_3.mount.replace("/mnt/disk/export", "/mnt/again"),
        mind="Both clients mount the second export, and one kernel serves both; other arrangements were not tried.",
    ),
    "ganesha-4.1": _GANESHA,
    "ganesha-3": dataclasses.replace(
        _GANESHA,
        title="NFS-Ganesha, NFSv3",
        mount=_GANESHA.mount.replace("vers=4.1", "vers=3").replace("srv:/export", "srv:/mnt/disk/export"),
        options="nolock,mountport=20048,proto=tcp",
    ),
    "9p": FileSystem(
        "9P2000.L (diod)",
        packages="diod",
        programs="diod",
        serve=f"{_SERVED}diod -f -n -l 10.123.0.1:5640 -e /mnt/disk/export >/run/diod.log 2>&1 &",
        mount="""
/run/modprobe -a 9pnet 9pnet_fd 9p
mount -i -t 9p -o trans=tcp,port=5640,version=9p2000.L,aname=/mnt/disk/export,uname=root,access=user,msize=65536 \\
    10.123.0.1 "$1"
""",
        mind="The client does not connect again after the server was away: mount anew.",
        lets_all_users_in=False,
    ),
    "sshfs": FileSystem(
        "sshfs",
        packages="sshfs openssh-server",
        programs="sshfs sshd",
        serve=_SERVED
        + """
mkdir -p /run/sshd /mnt/disk/ssh
cd /mnt/disk/ssh
test -e host || ssh-keygen -q -t ed25519 -N '' -f host
test -e client || ssh-keygen -q -t ed25519 -N '' -f client
cp client "$NFSLAB_DIR/ssh-client"
sync
cat >/run/sshd.conf <<'END'
Port 2222
HostKey /mnt/disk/ssh/host
AuthorizedKeysFile /mnt/disk/ssh/client.pub
StrictModes no
PermitRootLogin yes
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
PidFile none
END
/usr/sbin/sshd -E /run/sshd.log -f /run/sshd.conf
""",
        mount="""
/run/modprobe fuse
install -m 600 "$NFSLAB_DIR/ssh-client" /run/ssh-client
sshfs root@srv:/mnt/disk/export "$1" -p 2222 ${OPTIONS:+-o $OPTIONS} \\
    -o IdentityFile=/run/ssh-client,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,reconnect
""",
        mind="Listings without a change of one's own are up to 20 s old by default: `-o dir_cache=no`.",
        lets_all_users_in=False,
    ),
    "smb": FileSystem(
        "SMB 3.1.1 (Samba)",
        packages="samba cifs-utils",
        programs="smbd mount.cifs",
        serve=_SERVED
        + """
state=/mnt/disk/samba
mkdir -p $state/state $state/cache $state/lock $state/private $state/run /run/samba
cat >/run/smb.conf <<END
[global]
 server role = standalone server
 smb ports = 445
 disable netbios = yes
 map to guest = never
 passdb backend = tdbsam:$state/private/passdb.tdb
 private dir = $state/private
 state directory = $state/state
 cache directory = $state/cache
 lock directory = $state/lock
 pid directory = $state/run
 ncalrpc dir = $state/run/ncalrpc
 log file = /run/smbd.log
 load printers = no
 printing = bsd
 disable spoolss = yes
 server min protocol = SMB2
[fs]
 path = /mnt/disk/export
 read only = no
 create mask = 0666
 directory mask = 0777
END
printf 'pw\\npw\\n' | smbpasswd -c /run/smb.conf -s -a root
rm -f $state/run/*.pid
smbd -D -s /run/smb.conf
""",
        mount="""
/run/modprobe cifs
for try in 1 2 3 4 5; do
    mount -t cifs //srv/fs "$1" -o username=root,password=pw,vers=3.1.1${OPTIONS:+,$OPTIONS} && exit
    sleep 1
done
exit 1
""",
        options="dir_mode=0700",
        mem_mib=512,
        lets_all_users_in=False,
    ),
    "moosefs": FileSystem(
        "MooseFS",
        packages="moosefs-master moosefs-chunkserver moosefs-client",
        programs="mfsmaster mfschunkserver mfsmount",
        serve="""
state=/mnt/disk/moosefs
mkdir -p $state/master $state/chunk $state/hdd
printf '*\\t/\\trw,alldirs,admin,maproot=0:0\\n' >/run/exports.cfg
ls $state/master/metadata.mfs* >/dev/null 2>&1 || cp /var/lib/mfs/metadata.mfs.empty $state/master/metadata.mfs
sync  # a master whose first metadata are not on the disk does not start after a power cut
common="WORKING_USER = root\\nWORKING_GROUP = root\\nDISABLE_OOM_KILLER = 0"
printf "$common\\nDATA_PATH = $state/master\\nEXPORTS_FILENAME = /run/exports.cfg\\nLOCK_MEMORY = 0\\n" >/run/master.cfg
echo "CHANGELOG_SAVE_MODE = ${CHANGELOG_SAVE_MODE:-0}" >>/run/master.cfg
echo $state/hdd >/run/hdd.cfg
printf "$common\\nDATA_PATH = $state/chunk\\nHDD_CONF_FILENAME = /run/hdd.cfg\\nMASTER_HOST = srv\\n" >/run/chunk.cfg
echo 'HDD_LEAVE_SPACE_DEFAULT = 64MiB' >>/run/chunk.cfg
mfsmaster -c /run/master.cfg -a start
mfschunkserver -c /run/chunk.cfg start
""",
        mount="""
/run/modprobe fuse
for try in 1 2 3 4 5 6 7 8; do
    timeout 40 mfsmount "$1" -H srv && exit
    sleep 1
done
exit 1
""",
        mem_mib=1536,  # with 512, the first write made the kernel run out of it
        mind="The server acknowledges what is not on its disk, so it breaks (d).",
    ),
    "glusterfs": FileSystem(
        "GlusterFS",
        packages="glusterfs-server glusterfs-client",
        programs="glusterd glusterfs",
        serve="""
mkdir -p /mnt/disk/gluster/state /mnt/disk/gluster/brick /run/gluster /run/gluster-log
mount --bind /mnt/disk/gluster/state /var/lib/glusterd
mount --bind /run/gluster-log /var/log/glusterfs
glusterd --log-file=/run/glusterd.log
wait_for() { for try in $(seq 60); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; }
wait_for gluster --mode=script volume list
if ! gluster --mode=script volume info v; then
    gluster --mode=script volume create v transport tcp srv:/mnt/disk/gluster/brick force
    for option in $VOLUME_OPTIONS; do
        gluster --mode=script volume set v $(echo $option | tr = ' ')
    done
    gluster --mode=script volume start v
fi
sync
""",
        mount="""
/run/modprobe fuse
for try in 1 2 3 4 5 6 7 8; do
    timeout 40 glusterfs --volfile-server=srv --volfile-id=v --log-file=/run/gluster.log $OPTIONS "$1"
    sleep 1
    mountpoint -q "$1" && exit
    umount -l "$1" || true
done
exit 1
""",
        mem_mib=768,
    ),
    "cephfs": FileSystem(
        "CephFS, the kernel's client",
        packages="ceph-mds ceph-mon ceph-osd ceph-mgr ceph-common ceph-fuse",
        programs="ceph-mon ceph-osd ceph-mds ceph-mgr ceph",
        serve="""
state=/mnt/disk/ceph
mkdir -p $state/mon $state/mgr $state/osd $state/mds /run/ceph
export CEPH_CONF=$state/ceph.conf
wait_for() { for try in $(seq 120); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; }
new=
if ! [ -e $CEPH_CONF ]; then
    new=yes
    fsid=$(cat /proc/sys/kernel/random/uuid)
    cat >$CEPH_CONF <<END
[global]
fsid = $fsid
mon_host = v1:10.123.0.1:6789
mon_initial_members = a
public_network = 10.123.0.0/24
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_warn_on_pool_no_redundancy = false
mon_allow_pool_size_one = true
osd_objectstore = memstore
memstore_device_bytes = 536870912
osd_memory_target = 536870912
run_dir = /run/ceph
admin_socket = /run/ceph/\\$name.asok
log_file = /run/ceph/\\$name.log
pid_file = /run/ceph/\\$name.pid
mon_data = $state/mon
mgr_data = $state/mgr
osd_data = $state/osd
mds_data = $state/mds
crash_dir = /run/ceph
keyring = $state/keyring
mon_osd_full_ratio = .99
mon_data_avail_crit = 1
mgr_modules =
END
    ceph-authtool --create-keyring $state/keyring --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool $state/keyring --gen-key -n client.admin \\
        --cap mon 'allow *' --cap osd 'allow *' --cap mds 'allow *' --cap mgr 'allow *'
    monmaptool --create --addv a '[v1:10.123.0.1:6789]' --fsid $fsid $state/monmap
    ceph-mon --mkfs -i a --monmap $state/monmap --keyring $state/keyring
fi
ceph-mon -i a -f >/run/mon.out 2>&1 &
wait_for timeout 20 ceph status
ceph-mgr -i x -f >/run/mgr.out 2>&1 &
if [ $new ]; then
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph osd new $uuid
    ceph-osd -i 0 --mkfs --osd-uuid $uuid
fi
ceph-osd -i 0 -f >/run/osd.out 2>&1 &
if [ $new ]; then
    timeout 60 ceph osd pool create m 8
    timeout 60 ceph osd pool create d 8
    timeout 60 ceph fs new fs m d
fi
ceph-mds -i a -f >/run/mds.out 2>&1 &
wait_for sh -c 'timeout 20 ceph mds stat | grep -q up:active'
""",
        mount="""
/run/modprobe ceph
for try in 1 2 3 4 5; do
    mount -i -t ceph 10.123.0.1:6789:/ "$1" -o name=admin && exit
    sleep 2
done
exit 1
""",
        in_memory=True,
        mem_mib=1536,
    ),
}
_NO_SERVER: Final = (
    "A power cut of a machine takes its latest changes along, so a grant's number may come again: see below."
)
DESCRIPTIONS["ocfs2"] = FileSystem(
    "OCFS2, on a disk that both clients have",
    packages="ocfs2-tools",
    programs="mkfs.ocfs2 mount.ocfs2 o2cb",
    serve="""
[ -e /mnt/disk/made ] || mkfs.ocfs2 -q -F -N 4 -b 4096 -C 4096 --cluster-stack=o2cb --cluster-name=lab /dev/ubdb
touch /mnt/disk/made
sync
""",
    # A machine that has written nothing to the disk for 12 s counts as dead.
    mount=r"""
if ! mountpoint -q /etc/ocfs2; then
    mkdir -p /run/ocfs2
    mount --bind /run/ocfs2 /etc/ocfs2
    printf 'cluster:\n\tnode_count = 2\n\tname = lab\n' >/etc/ocfs2/cluster.conf
    for node in n1 n2; do
        printf '\nnode:\n\tip_port = 7778\n\tip_address = %s\n\tnumber = %s\n\tname = %s\n\tcluster = lab\n' \
            $(getent hosts $node | cut -d' ' -f1) ${node#n} $node >>/etc/ocfs2/cluster.conf
    done
    /run/modprobe -a ocfs2_stack_o2cb ocfs2
    mount -t configfs none /sys/kernel/config
    o2cb register-cluster lab
    echo 7 >/sys/kernel/config/cluster/lab/heartbeat/dead_threshold
fi
mount -t ocfs2 /dev/ubdb "$1"
""",
    mind=_NO_SERVER,
    shared_mib=512,
)
DESCRIPTIONS["gfs2"] = FileSystem(
    "GFS2, on a disk that both clients have",
    packages="gfs2-utils dlm-controld corosync",
    programs="mkfs.gfs2 dlm_controld corosync",
    serve="""
[ -e /mnt/disk/made ] || mkfs.gfs2 -q -O -p lock_dlm -t lab:disk -j 2 -J 8 /dev/ubdb
touch /mnt/disk/made
sync
""",
    # Nothing here can switch another machine off. So one that is silent counts as dead only after 12 s, which is longer
    # than a campaign's pauses and cuts.
    mount="""
if [ ! -e /run/corosync.conf ]; then
    cat >/run/corosync.conf <<'END'
totem {
    version: 2
    cluster_name: lab
    transport: udpu
    token: 12000
    consensus: 1000
}
system {
    state_dir: /run
}
quorum {
    provider: corosync_votequorum
    two_node: 1
}
nodelist {
    node {
        nodeid: 1
        ring0_addr: n1
    }
    node {
        nodeid: 2
        ring0_addr: n2
    }
}
END
    /run/modprobe -a dlm gfs2
    mount -t configfs none /sys/kernel/config
    ln -s . /dev/misc
    corosync -c /run/corosync.conf
    until corosync-quorumtool; do  # fails until both have found each other
        sleep 0.2
    done
    dlm_controld --enable_fencing 0
fi
until mount -t gfs2 /dev/ubdb "$1"; do  # the kernel learns the addresses from the daemon
    sleep 0.2
done
""",
    mind=_NO_SERVER,
    shared_mib=512,
)
DESCRIPTIONS["smb-default"] = dataclasses.replace(
    DESCRIPTIONS["smb"], options="", mind="No lock can be had without `dir_mode=0700`: see below."
)
for _name in ("ganesha-4.1", "9p"):
    DESCRIPTIONS[f"{_name}-sync"] = dataclasses.replace(
        DESCRIPTIONS[_name],
        title=f"{DESCRIPTIONS[_name].title} over ext4 mounted with `sync`",
        serve=f"mount -o remount,sync /mnt/disk\n{DESCRIPTIONS[_name].serve}",
    )
DESCRIPTIONS["moosefs-sync"] = dataclasses.replace(
    DESCRIPTIONS["moosefs"],
    title="MooseFS, its master with `CHANGELOG_SAVE_MODE = 2`",
    serve=f"CHANGELOG_SAVE_MODE=2\n{DESCRIPTIONS['moosefs'].serve}",
    mind="",
)
DESCRIPTIONS["sshfs-nocache"] = dataclasses.replace(
    DESCRIPTIONS["sshfs"], options="dir_cache=no,attr_timeout=0,entry_timeout=0", mind=""
)
_KEPT_BY_GLUSTER: Final = " ".join(
    f"performance.{kept}=off" for kept in ("open-behind", "quick-read", "io-cache", "stat-prefetch")
)
DESCRIPTIONS["glusterfs-nocache"] = dataclasses.replace(
    DESCRIPTIONS["glusterfs"],
    options="--fopen-keep-cache=off --attribute-timeout=0 --entry-timeout=0",
    serve=f"VOLUME_OPTIONS='{_KEPT_BY_GLUSTER}'\n{DESCRIPTIONS['glusterfs'].serve}",
    mind=f"On the volume: `{_KEPT_BY_GLUSTER}`.",
)
DESCRIPTIONS["cephfs-fuse"] = dataclasses.replace(
    DESCRIPTIONS["cephfs"],
    title="CephFS, ceph-fuse",
    mount="""
/run/modprobe fuse
for try in 1 2 3; do
    CEPH_CONF=/run/none timeout 60 ceph-fuse -m v1:10.123.0.1:6789 -n client.admin --auth_client_required=none \\
        --admin-socket= --log-file=/run/ceph-fuse.log --pid-file= "$1" && exit
done
exit 1
""",
)
