"""
A real Slurm with two nodes on one machine: Debian's programs, started as plain processes, none of them as a service.

Each node is a slurmd in namespaces of its own: it has its own host name, and its own process table, so that killing
the first process of it is a power cut. Files and network are the machine's. The key, the configuration, the state and
the logs are in a private directory, and ports are what was free. Everything ends with the process that started it,
also if that is killed.

What it does not show: Slurm's accounting, and control groups. ``python3 tests/slurm/cluster.py check`` says whether it
works on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # run as a program, by any Python: it needs nothing but the standard library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import debian
from debian import LabError, Unavailable

_NAME: Final = "tests/slurm/cluster.py"
_PACKAGES: Final = "slurmctld slurmd slurm-client munge util-linux mount"
_PROGRAMS: Final = [
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "scontrol",
    "sinfo",
    "munged",
    "unshare",
    "nsenter",
    "setpriv",
    "mount",
]
#: How long the daemons may take for what they do at once, seconds; generous, for slow machines.
_PATIENCE_S: Final = 60.0
#: A node that is silent for this long counts as dead, and its jobs are queued again.
NODE_TIMEOUT_S: Final = 10
#: For so long Slurm waits before it starts such a job again; by default two minutes.
RESTART_S: Final = 10
#: From SIGTERM to SIGKILL when a job is cancelled; Slurm's own default is 30.
KILL_WAIT_S: Final = 5

#: What the nodes find in /etc/slurm. The others are told by SLURM_CONF, which jobs may lose on their way.
_CONFIGURATION: Final = """\
ClusterName=tests
SlurmctldHost=head(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire={restart_s}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n.spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
MailProg=/bin/true

# No control groups: a container may have none.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core,CR_LLN
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout={node_timeout_s}
KillWait={kill_wait_s}
ReturnToService=2

{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE: Final = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=4000"
#: The first process of a node. The shell takes care of orphans, which slurmd would leave as zombies.
_BOOT: Final = 'hostname "$1"; mount --bind "$2" /etc/slurm; slurmd -D 2> "$3" & wait'


@dataclass(frozen=True, slots=True)
class Job:
    """A job as squeue shows it."""

    id: str
    state: str
    node: str
    comment: str


class Node:
    """A machine of the cluster. It is switched off when made."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_on(self) -> bool:
        """Whether it was switched on."""
        return self._process is not None

    def start(self) -> None:
        """Switch it on."""
        files = self._cluster.directory
        boot = ("sh", "-c", _BOOT, "sh", self.name, str(files / "etc"), str(files / f"{self.name}.err"))
        self._process = self._cluster.start_process(
            f"boot.{self.name}",
            *("unshare", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", *boot),
        )

    @property
    def entrance(self) -> tuple[str, ...]:
        """What to put before a command that is to run there, as for somebody who is logged in."""
        assert self._process is not None, "it is switched off"
        (first,) = _children(self._process.pid)
        return ("nsenter", f"--target={first}", "--uts", "--pid", "--mount")

    def kill(self) -> None:
        """Cut its power: all its processes are gone when this returns, as if they had never had a chance."""
        if self._process is None:
            return
        for pid in _children(self._process.pid):  # the first process there, whose end is everybody's
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None


class Cluster:
    """
    The cluster. Nothing runs before :meth:`start`.

    :param directory: where it keeps its files; must be empty, its path short enough for a socket (100 bytes)
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes = [Node(self, "node1"), Node(self, "node2")]
        #: What a program needs in its environment to find the cluster.
        self.environment = {"SLURM_CONF": str(directory / "etc/slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """
        Start everything.

        :raises LabError: if a part does not come up; with what it wrote
        """
        os.chmod(self.directory, 0o755)
        for name in ("etc", "state"):
            (self.directory / name).mkdir()
        control, *ports = _free_ports(1 + len(self.nodes))
        (self.directory / "etc/slurm.conf").write_text(
            _CONFIGURATION.format(
                directory=self.directory,
                port=control,
                node_timeout_s=NODE_TIMEOUT_S,
                kill_wait_s=KILL_WAIT_S,
                restart_s=RESTART_S,
                nodes="\n".join(
                    _NODE.format(name=node.name, port=port) for node, port in zip(self.nodes, ports, strict=True)
                ),
            )
        )
        self._start_munge()
        self.start_process("boot.slurmctld", "unshare", "--uts", "sh", "-c", "hostname head; exec slurmctld -D -c")
        for node in self.nodes:
            node.start()
        self._wait("its nodes are not ready", lambda: self.states() == dict.fromkeys(self.names, "idle"))

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.directory}/munge.{name}" for option, name in files.items()]
        self.start_process("boot.munged", "munged", "--foreground", *options)
        self._wait("munged does not answer", (self.directory / "munge.socket").exists)

    def start_process(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one; what it says is kept in the file ``name``."""
        with open(self.directory / name, "ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                cwd=self.directory,
                env=_with_sbin({**os.environ, **self.environment}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """End everything that was started. The files stay."""
        for node in self.nodes:
            node.kill()
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [node.name for node in self.nodes]

    def node(self, name: str) -> Node:
        """Return the node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def run(self, *argv: str) -> str:
        """
        Run a program that talks to the cluster; return what it writes.

        :raises LabError: if it fails; with what it wrote
        """
        environment = {**os.environ, **self.environment}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of each node, as `sinfo` has it."""
        return dict(line.split()[:2] for line in self.run("sinfo", "-hN", "-o", "%N %T").splitlines())

    def jobs(self) -> list[Job]:
        """Return the jobs that wait, run or are coming to their end."""
        lines = self.run("squeue", "-h", "-o", "%i|%T|%N|%k").splitlines()
        return [Job(*line.split("|", 3)) for line in lines]

    def cancel(self) -> None:
        """Cancel all jobs."""
        for job in self.jobs():
            with contextlib.suppress(LabError):  # it has come to its end by itself
                self.run("scancel", job.id)

    def restore(self) -> None:
        """Switch on the nodes that are off, and wait until all is as it was at the start."""
        for node in self.nodes:
            if not node.is_on:
                node.start()
        self._wait(
            "it does not come to rest",
            lambda: not self.jobs() and self.states() == dict.fromkeys(self.names, "idle"),
        )

    def _wait(self, trouble: str, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE_S
        while True:
            error = ""
            try:
                if condition():
                    return
            except LabError as failure:  # nobody answers yet
                error = str(failure)
            if time.monotonic() > until:
                raise Unavailable(f"Slurm cannot be used here: {trouble}. {error}\n{self._words()}")
            time.sleep(0.1)

    def _words(self) -> str:
        logs = [*self.directory.glob("boot.*"), *self.directory.glob("*.log"), *self.directory.glob("*.err")]
        return "".join(f"\n{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in sorted(logs))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _with_sbin(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PATH": f"{environment.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}


def _missing() -> list[str]:
    path = _with_sbin(os.environ)["PATH"]
    return [name for name in _PROGRAMS if shutil.which(name, path=path) is None]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """
    Have a cluster in this block.

    :raises Unavailable: if none can be started here
    """
    debian.require(_NAME, _missing)
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Carry out one command; return the exit code."""
    parser = argparse.ArgumentParser(prog=_NAME, description="a real Slurm with two nodes on one machine")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("install", help="apt-get install what it needs and this machine has not")
    actions.add_parser("check", help="start it, run a job on each node, end it")
    try:
        if parser.parse_args().action == "install":
            debian.install(_NAME, _missing, _PACKAGES.split())
            return 0
        with running_cluster() as cluster:
            hosts = sorted(cluster.run("srun", "-N2", "hostname").split())
        if hosts != sorted(cluster.names):
            raise Unavailable(f"Slurm cannot be used here: its nodes {cluster.names} call themselves {hosts}")
        print("Slurm works here, with the nodes", *hosts)
    except (LabError, OSError) as error:
        sys.stderr.write(f"{_NAME}: {error}\n")
        return getattr(error, "code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
