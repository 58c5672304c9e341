"""The lab as a whole: one server and its clients, up and down."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from .host import LabError, build_register_shim, cpu_has_amx, require, sh
from .network import Network, data_address
from .node import Node
from .power import MODULES

#: What the server runs unless it is told otherwise.
KERNEL_SERVER: Final = 'sh "$NFSLAB_DIR/guest/nfsd" start'
_MKFS: Final = {"ext4": ("-F", "-E", "lazy_itable_init=1,lazy_journal_init=1")}
_EXPORT: Final = "rw,sync,no_root_squash,no_subtree_check,fsid=0"
#: Where each guest has a file system of its own; the host's files there must be asked for.
HIDDEN: Final = ("/tmp", "/var/tmp", "/run", "/mnt", "/dev", "/proc", "/sys")
_RAM: Final = Path("/dev/shm")
_CHECKOUT: Final = Path(__file__).resolve().parents[3]


class Lab:
    """
    The lab whose state is in a directory. Labs with different directories live side by side.

    :param directory: where it keeps its state; made by :meth:`up`, removed by :meth:`down`
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).resolve()
        self.id = hashlib.sha1(os.fsencode(self.directory)).hexdigest()[:8]
        self.network = Network(f"nfslab-{self.id}")
        self.register_shim = self.directory / "xstate.so"
        self.settings: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            self.settings = json.loads((self.directory / "lab.json").read_text())

    @property
    def exists(self) -> bool:
        """Whether it was brought up, and not down since."""
        return bool(self.settings)

    @property
    def names(self) -> list[str]:
        """The names of its nodes, the server's first."""
        return ["srv", *(f"n{number + 1}" for number in range(self.settings.get("clients", 0)))]

    def node(self, name: str) -> Node:
        """The node called ``name``."""
        if not self.exists:
            raise LabError(f"there is no lab in {self.directory}: `up` first (or give --dir)")
        if name not in self.names:
            raise LabError(f"no node {name!r}; there are {' '.join(self.names)}")
        return Node(self, name)

    @property
    def server(self) -> Node:
        """The file server."""
        return self.node("srv")

    @property
    def clients(self) -> list[Node]:
        """The NFS clients."""
        return [self.node(name) for name in self.names[1:]]

    def up(
        self,
        *,
        clients: int = 2,
        version: str = "4.2",
        options: str = "",
        serve: str = KERNEL_SERVER,
        mount: str = "",
        disk: str = "ext4",
        lease_s: int = 90,
        grace_s: int = 90,
        disk_mib: int = 1024,
        shared_mib: int = 0,
        mem_mib: int = 256,
        bind: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        """
        Boot the server and the clients, and mount what is served on each at ``/mnt/nfs``.

        :param serve: a shell script that the server runs when it boots, to serve ``/mnt/disk/export``
        :param mount: a shell script that a client runs to mount it at ``$1``; without, NFS is mounted
        :param disk: the server's own file system, which ``mkfs`` knows by this name
        :param version: of NFS: "3", "4.0", "4.1" or "4.2"
        :param options: more mount options; without, caching is as it is by default and the mount is hard
        :param lease_s: of NFSv4's own state; 90 is Linux's default
        :param grace_s: for how long the server, once restarted, only lets clients reclaim such state
        :param disk_mib: size of the export
        :param shared_mib: size of a disk that every guest has at ``/dev/ubdb``; 0: there is none
        :param mem_mib: memory of each guest
        :param bind: directories that the guests may see, and write, although they lie where guests have their own
        """
        require()
        if self.exists:
            raise LabError(f"there is a lab in {self.directory} already: `down` first")
        if self.directory.exists() and any(self.directory.iterdir()):
            raise LabError(f"{self.directory} is not empty, and no lab")
        if self.directory.is_relative_to("/dev") or self.directory.is_relative_to("/run"):
            raise LabError(f"{self.directory}: guests have a /dev and a /run of their own; choose another directory")
        kernel = os.path.realpath(os.environ.get("NFSLAB_KERNEL", "/"))
        visible = [os.path.realpath(path) for path in (*bind, *([kernel] if kernel != "/" else []))]
        for path in (str(self.directory), *visible):
            if "," in path or any(character.isspace() for character in path):
                raise LabError(f"UML takes no blanks or commas in a path: {path!r}")
        image = self._disk("disk", disk_mib)
        self.settings = {"clients": clients, "mem_mib": mem_mib, "disk": str(image), "kernel": kernel}
        if shared_mib:
            self.settings["shared"] = str(self._disk("shared", shared_mib))
        try:
            self._prepare(visible, lease_s, grace_s)
            self._write("serve", serve)
            for name, size_mib in (("disk", disk_mib), ("shared", shared_mib)):
                if name in self.settings:
                    with open(self.settings[name], "wb") as file:
                        file.truncate(size_mib << 20)
            sh(f"/usr/sbin/mkfs.{disk}", "-q", *_MKFS.get(disk, ()), str(image))
            self.network.up(len(self.names))
            for name in self.names:
                self.node(name).boot()
            for name in self.names:
                self.node(name).wait_until_ready()
            each(self.clients, lambda client: client.mount(version, options, script=mount))
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End everything and remove the state directory. What is not there is not missed."""
        if not self.exists:
            return
        for name in self.names:
            node = self.node(name)
            if node.pid() is not None:
                node.kill()
        self.network.down()
        for name in ("disk", "shared"):
            if name in self.settings:
                Path(self.settings[name]).unlink(missing_ok=True)
        shutil.rmtree(self.directory)
        self.settings = {}

    def restart_nfsd(self, down_s: float = 0) -> None:
        """Let the server's threads end and come back; its kernel stays up. For a crash, kill and start the server."""
        script = str(self.directory / "guest/nfsd")
        self.server.check(["sh", script, "stop"])
        time.sleep(down_s)
        self.server.check(["sh", script, "start"])

    def _disk(self, name: str, size_mib: int) -> Path:
        """
        Where a disk lies: in memory where there is room.

        What a commit costs is then the protocol's cost and not this host's fsync. It outlives a kill of the guests.
        """
        roomy = _RAM.is_dir() and shutil.disk_usage(_RAM).free > 2 * size_mib << 20
        return (_RAM if roomy else self.directory) / f"nfslab-{self.id}-{name}.img"

    def _prepare(self, visible: list[str], lease_s: int, grace_s: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write("lab.json", json.dumps(self.settings))  # first, so that a lab cut short here can be taken down
        (self.directory / "uml").mkdir()
        (self.directory / "modroot/lib").mkdir(parents=True)
        (self.directory / "modroot/lib/modules").symlink_to(Path(self.settings["kernel"], MODULES))
        shutil.copytree(Path(__file__).with_name("guest"), self.directory / "guest")
        (self.directory / "guest/init").chmod(0o755)
        if cpu_has_amx():
            build_register_shim(self.register_shim)
        self._write("binds", "".join(f"{path}\n" for path in visible))
        self._write("nfs.conf", "[general]\npipefs-directory=/run/rpc_pipefs\n[mountd]\nmanage-gids=n\n")
        self._write("srv.conf", f"LEASE={lease_s}\nGRACE={grace_s}\nEXPORT_OPTS='{_EXPORT}'\n")
        addresses = "".join(f"{data_address(index)} {name}\n" for index, name in enumerate(self.names))
        self._write("hosts", f"127.0.0.1 localhost\n{addresses}")

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)


def to_bind() -> list[Path]:
    """What guests need of this checkout and its Python, and would not see: for the ``bind`` of :meth:`Lab.up`."""
    needed = {_CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}
    return [path for path in needed if any(path.is_relative_to(hidden) for hidden in HIDDEN)]


def each(nodes: Iterable[Node], do: Callable[[Node], object]) -> None:
    """Do something to several nodes at once; the first failure is raised."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(do, nodes))


def default_directory() -> str:
    """Where a lab lives when nobody says otherwise."""
    return os.environ.get("NFSLAB_DIR", os.path.join(tempfile.gettempdir(), "nfslab"))
