"""One machine of the lab: its power, network, clock, mounts and commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .host import LabError
from .job import Job, frames
from .network import control_address, data_address
from .power import UML, boot, network_arguments, running

if TYPE_CHECKING:
    from .cluster import Lab

MOUNTPOINT: Final = "/mnt/nfs"
_RAM: Final = "/dev/shm"


class Node:
    """A machine of ``lab``; any number of these objects may speak of the same one."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.index = lab.names.index(name)
        self.directory = lab.directory / "nodes" / name

    # Power

    def boot(self) -> None:
        """Switch it on; :meth:`wait_until_ready` waits for it."""
        if self.pid() is not None:
            raise LabError(f"{self.name} runs already")
        self.directory.mkdir(parents=True, exist_ok=True)
        lab = self.lab
        arguments = [
            *(f"mem={lab.settings['mem_mib']}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
            *(f"init={lab.directory}/guest/init", "con=null", "con0=null,fd:1", "noreboot", "panic=1"),
            *(f"umid={self.name}", f"uml_dir={lab.directory}/uml"),
            *network_arguments(self.index, self.directory, seed=lab.id[-4:]),
            *(f"NFSLAB_DIR={lab.directory}", f"NFSLAB_NODE={self.name}", f"NFSLAB_ID={self.index}"),
            *(f"NFSLAB_IP={data_address(self.index)}", f"NFSLAB_CTL={control_address(self.index)}"),
        ]
        if self.name == "srv":
            arguments.append(f"ubd0={lab.settings['disk']}")
        if shared := lab.settings.get("shared"):
            arguments.append(f"ubd1c={shared}")  # c: others have it, too
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        if shutil.disk_usage(_RAM).free > lab.settings["mem_mib"] << 20:
            env["TMPDIR"] = _RAM  # the guest's memory, an unlinked file there
        if lab.register_shim.exists():
            env["LD_PRELOAD"] = str(lab.register_shim)
        process = boot(
            *(Path(lab.settings["kernel"], UML), arguments, env),
            namespace=lab.network.path,
            index=self.index,
            console=self.directory / "console.log",
        )
        (self.directory / "pid").write_text(process)

    def pid(self) -> int | None:
        """The guest's main process on the host; ``None`` when it does not run."""
        try:
            return running((self.directory / "pid").read_text())
        except FileNotFoundError:
            return None

    def require_pid(self) -> int:
        """The same, as an error when it does not run."""
        pid = self.pid()
        if pid is None:
            raise LabError(f"{self.name} does not run")
        return pid

    def wait_until_ready(self, timeout: float = 180) -> None:
        """
        Wait until its agent answers, and set its clock right: a guest boots some milliseconds off.

        :param timeout: a server answers once it serves, which takes Ceph a minute
        """
        end = time.monotonic() + timeout
        while True:
            try:
                self.skew(0)
            except (OSError, LabError) as error:
                if self.pid() is None or time.monotonic() > end:
                    raise LabError(f"{self.name} did not come up ({error!r}):\n{self.console()[-2000:]}") from None
                time.sleep(0.05)
            else:
                return

    def start(self) -> None:
        """Switch a killed node on again; it mounts what it had mounted."""
        self.boot()
        self.wait_until_ready()
        self.remount()

    def kill(self) -> None:
        """As if the power went: SIGKILL for the whole guest."""
        pid = self.require_pid()
        os.kill(pid, signal.SIGKILL)
        while self.pid() is not None:
            time.sleep(0.01)

    def pause(self) -> None:
        """Let the whole machine stand still: its kernel is one process, its processes stop at their next trap."""
        os.kill(self.require_pid(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on. Its clocks jump to what they would show without the pause."""
        os.kill(self.require_pid(), signal.SIGCONT)

    def console(self) -> str:
        """What its kernel and start-up have written."""
        try:
            return (self.directory / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # Network

    def cut(self, direction: str = "both") -> None:
        """
        Cut its NFS network; commands still reach it.

        :param direction: "out": the server hears nothing from this client, and the client all from the server; "in":
            the server hears and obeys, and no answer arrives; "both"
        """
        if direction == "both":
            self.lab.network.forward(self.index, on=False)
        elif direction == "out":
            self.check(["/run/modprobe", "sch_netem"])
            self.check(["tc", "qdisc", "replace", "dev", "vec0", "root", "netem", "loss", "100%"])
        else:
            self.lab.server.check(["ip", "route", "replace", "blackhole", data_address(self.index)])

    def heal(self) -> None:
        """Undo :meth:`cut` and :meth:`delay`."""
        self.lab.network.forward(self.index, on=True)
        with contextlib.suppress(LabError, OSError):  # one that was switched off since has forgotten it
            self.run(["tc", "qdisc", "del", "dev", "vec0", "root"])
        with contextlib.suppress(LabError, OSError):
            self.lab.server.run(["ip", "route", "del", "blackhole", data_address(self.index)])

    def delay(self, ms: float) -> None:
        """Add ``ms`` to every packet that it sends; 0 for none."""
        self.run(["tc", "qdisc", "del", "dev", "vec0", "root"])
        if ms:
            self.check(["/run/modprobe", "sch_netem"])
            self.check(["tc", "qdisc", "add", "dev", "vec0", "root", "netem", "delay", f"{ms}ms"])

    def connect(self, timeout: float) -> socket.socket:
        """A connection to its agent."""
        return self.lab.network.connect(self.index, timeout)

    # Clock

    def clock(self) -> tuple[float, float]:
        """Its clock minus the host's in seconds, and by how much that may be wrong; the best of three answers."""
        best = (0.0, float("inf"))
        for _ in range(3):
            answer, asked, answered = self._ask_clock()
            error = (answered - asked) / 2
            best = min(best, (answer - asked - error, error), key=lambda offset: offset[1])
        return best

    def monotonic(self) -> tuple[float, float]:
        """
        Its monotonic clock minus the host's in seconds, and by how much that may be wrong.

        A guest reads the host's monotonic clock from when it boots, so the difference stays the same until it boots
        again, whatever is done to it.
        """
        best = (0.0, float("inf"))
        for _ in range(8):
            asked = time.monotonic()
            answer = self._ask("clock")["monotonic"]
            error = (time.monotonic() - asked) / 2
            best = min(best, (answer - asked - error, error), key=lambda offset: offset[1])
        return best

    def skew(self, seconds: float) -> None:
        """Step its clock to the host's plus ``seconds``; 0 sets it right."""
        offset, _ = self.clock()
        self._ask_clock(step=seconds - offset)

    def _ask_clock(self, **request: Any) -> tuple[float, float, float]:
        asked = time.time()
        return self._ask("clock", **request)["time"], asked, time.time()

    def _ask(self, op: str, **request: Any) -> dict[str, Any]:
        with self.connect(timeout=2) as sock:
            sock.settimeout(10)
            sock.sendall(json.dumps({"op": op, **request}).encode() + b"\n")
            for kind, data in frames(sock):
                if kind == b"X":
                    answer: dict[str, Any] = json.loads(data)
                    return answer
                raise LabError(f"{self.name}: {data.decode(errors='replace')}")
        raise LabError(f"{self.name}: its agent hung up")

    # Mounts

    def mount(self, version: str, options: str = "", at: str = MOUNTPOINT, *, script: str = "") -> None:
        """
        Mount the export, with default options if none are given.

        :param script: mounts what is no NFS at ``$1`` instead
        """
        if not script:
            # nfsd's version 4 root (fsid=0) is the export itself; version 3 knows it by its path.
            source = "srv:/mnt/disk/export" if version.startswith("3") else "srv:/"
            wanted = ",".join(filter(None, [f"vers={version}", options]))
            script = f'mount -t nfs -o {wanted} {source} "$1"'
        self._mount(at, script)
        self._note_mounts({**self.mounts, at: script})

    def _mount(self, at: str, script: str) -> None:
        environment = {"NFSLAB_DIR": str(self.lab.directory)}
        self.check(["sh", "-ec", f'mkdir -p "$1"\n{script}', "sh", at], env=environment)

    def remount(self) -> None:
        """Mount what it had mounted when it was switched off, and has not yet."""
        for at, script in self.mounts.items():
            if self.run(["mountpoint", "-q", at]).returncode:
                self._mount(at, script)

    def umount(self, at: str = MOUNTPOINT) -> None:
        """Unmount it, whoever still uses it."""
        self.check(["umount", "-l", at])
        self._note_mounts({where: script for where, script in self.mounts.items() if where != at})

    @property
    def mounts(self) -> dict[str, str]:
        """Where it has mounted what is served, and by which shell script."""
        try:
            noted: dict[str, str] = json.loads((self.directory / "mounts.json").read_text())
        except FileNotFoundError:
            return {}
        return noted

    def _note_mounts(self, mounts: dict[str, str]) -> None:
        (self.directory / "mounts.json").write_text(json.dumps(mounts))

    # Commands

    def popen(self, argv: list[str], **options: Any) -> Job:
        """Start a command; the options are those of :class:`Job`."""
        return Job(self, argv, **options)

    def run(
        self, argv: list[str], *, timeout: float | None = None, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        return self.popen(argv, **options).wait(timeout)

    def check(self, argv: list[str], *, timeout: float = 60, **options: Any) -> str:
        """Run a command that must succeed; return what it wrote."""
        result = self.run(argv, timeout=timeout, **options)
        if result.returncode:
            said = (result.stdout + result.stderr).decode(errors="replace")
            raise LabError(f"{self.name}: {' '.join(argv)}: code {result.returncode}: {said}")
        return result.stdout.decode(errors="replace")

    def is_paused(self) -> bool:
        """Whether :meth:`pause` is in force."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.pid()}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "T"
        return False
