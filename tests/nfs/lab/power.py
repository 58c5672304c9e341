"""Starting a guest: User-Mode Linux as the first process of a process namespace, on the lab's networks."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path
from typing import Final

from .host import LabError, begin_process_namespace, enter_network_namespace, started_at

#: Where Debian's package has the kernel and its modules.
UML: Final = "usr/bin/linux.uml"
MODULES: Final = "usr/lib/uml/modules"


def network_arguments(index: int, directory: Path, seed: str) -> list[str]:
    """
    UML's arguments for its two network cards.

    Raw sockets on veth pairs and not taps: tun raises SIGIO before it marks its descriptor readable, so that a guest on
    another CPU now and then looks too early and sleeps on, until TCP retransmits 200 ms later. ``gro=1`` because the
    peers send packets larger than the MTU, which would be cut off otherwise.

    :param seed: four hex digits that make the hardware addresses the lab's own
    """
    arguments = []
    for port, kind in enumerate("dc"):
        mac = bytes((2, 0x6E, *bytes.fromhex(seed), port, index + 1))
        own = int.from_bytes(mac[2:], "big")
        # A raw socket hears what it sends; this filter drops it: ld [8]; jeq own, 0, 1; ret 0; ret all
        program = (0x20, 0, 0, 8), (0x15, 0, 1, own), (6, 0, 0, 0), (6, 0, 0, 0x40000)
        bpf = directory / f"bpf{port}"
        bpf.write_bytes(b"".join(struct.pack("=HBBI", *step) for step in program))
        card = f"transport=raw,ifname={kind}{index}g,depth=128,gro=1,mac={mac.hex(':')},bpffile={bpf}"
        arguments.append(f"vec{port}:{card}")
    return arguments


def boot(uml: Path, arguments: list[str], env: dict[str, str], *, namespace: str, index: int, console: Path) -> str:
    """
    Start a guest that outlives this process; return its id and start time, as :func:`running` wants them.

    :param uml: its kernel

    One guest, one CPU: UML traces its processes with ptrace, and a system call takes 14 µs with tracer and tracee on
    one CPU, 70 µs on two. A process namespace, because a killed UML leaves the processes behind that it traced; as the
    first of a namespace it takes them all along.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setsid()
            enter_network_namespace(namespace)
            cpus = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cpus[index % len(cpus)]})
            begin_process_namespace()
            null = os.open(os.devnull, os.O_RDONLY)
            log = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            pid = os.fork()
            if pid == 0:
                for target, fd in enumerate((null, log, log)):
                    os.dup2(fd, target)
                os.closerange(3, 1024)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
                    signal.signal(signum, signal.SIG_DFL)
                os.execve(uml, ["linux.uml", *arguments], env)
            os.write(writer, str(pid).encode())
        except BaseException as error:
            os.write(writer, f"failed: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    if not said.isdigit():
        raise LabError(f"a guest could not be started: {said or 'its first process was killed'}")
    return f"{said} {started_at(int(said))}"


def running(name: str) -> int | None:
    """The id of the process that :func:`boot` named so; ``None`` when it does not run any more."""
    pid, _, start = name.partition(" ")
    return int(pid) if pid.isdigit() and started_at(int(pid)) == start else None
