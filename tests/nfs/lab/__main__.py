"""``python3 tests/nfs/lab``: the lab from a shell."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a directory, by any Python: it needs nothing but the standard library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from nfs.lab.cluster import Lab, default_directory
from nfs.lab.host import LabError, install
from nfs.lab.node import MOUNTPOINT


def main(argv: list[str]) -> int:
    """Carry out one command; return the exit code."""
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = _parser().parse_args(argv[:end])
    try:
        if arguments.action == "install":
            install()
            return 0
        return _act(Lab(arguments.dir), arguments, argv[end + 1 :])
    except (LabError, OSError) as error:
        sys.stderr.write(f"nfslab: {error}\n")
        return getattr(error, "code", 1)


def _act(lab: Lab, arguments: argparse.Namespace, command: list[str]) -> int:
    match arguments.action:
        case "up":
            lab.up(
                clients=arguments.clients,
                version=arguments.vers,
                options=arguments.opts,
                lease_s=arguments.lease,
                grace_s=arguments.grace,
                bind=arguments.bind,
            )
        case "down":
            lab.down()
        case "status":
            return _status(lab)
        case "restart-nfsd":
            lab.restart_nfsd(arguments.down)
        case "exec":
            return _execute(lab, arguments.node, command)
        case "skew":
            lab.node(arguments.node).skew(arguments.seconds)
        case "delay":
            lab.node(arguments.node).delay(arguments.ms)
        case "mount":
            lab.node(arguments.node).mount(arguments.vers, arguments.opts, arguments.at)
        case "umount":
            lab.node(arguments.node).umount(arguments.at)
        case "console":
            sys.stdout.write(lab.node(arguments.node).console())
        case action:  # pause resume kill start cut heal
            getattr(lab.node(arguments.node), action)()
    return 0


def _execute(lab: Lab, name: str, command: list[str]) -> int:
    if not command:
        raise LabError("exec NODE -- COMMAND ...")

    def show(kind: bytes, data: bytes) -> None:
        stream = sys.stdout if kind == b"O" else sys.stderr
        stream.buffer.write(data)
        stream.buffer.flush()

    job = lab.node(name).popen(command, on_output=show)
    try:
        code = job.wait().returncode
    except KeyboardInterrupt:
        job.kill()
        return 130
    return code if code >= 0 else 128 - code


def _status(lab: Lab) -> int:
    if not lab.exists:
        print("no lab in", lab.directory)
        return 1
    for name in lab.names:
        node = lab.node(name)
        pid = node.pid()
        if pid is None:
            state = "off"
        elif node.is_paused():
            state = "paused"
        else:
            try:
                state = f"clock {node.clock()[0]:+.4f} s"
            except (OSError, LabError) as error:
                state = str(error)
        print(f"{name:4} pid {pid or '-':<8} {state}", *node.mounts.values(), sep="  ")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nfslab", description="a real NFS cluster on one machine")
    parser.add_argument("--dir", default=default_directory(), help="state directory [$NFSLAB_DIR, else %(default)s]")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("install", help="apt-get install what the lab needs and this machine has not")
    up = actions.add_parser("up", help="boot srv and the clients, mount the export")
    up.add_argument("--clients", type=int, default=2)
    up.add_argument("--vers", default="4.2", help="NFS version of /mnt/nfs: 3, 4.0, 4.1, 4.2 [%(default)s]")
    up.add_argument("--opts", default="", help="more mount options")
    up.add_argument("--lease", type=int, default=90, help="of NFSv4's own state, s [%(default)s]")
    up.add_argument("--grace", type=int, default=90, help="of NFSv4, s [%(default)s]")
    up.add_argument("--bind", action="append", default=[], help="a directory in /tmp, say, that guests may use too")
    actions.add_parser("down", help="end everything, remove the state directory")
    actions.add_parser("status", help="what each node does")
    restart = actions.add_parser(
        "restart-nfsd", help="stop and start the server's threads (a crash: kill srv, start srv)"
    )
    restart.add_argument("--down", type=float, default=0, metavar="S", help="seconds in between")
    for action, text in (
        ("exec", "run a command: exec NODE -- COMMAND ..."),
        ("pause", "let the whole machine stand still"),
        ("resume", "let it go on"),
        ("kill", "power cut"),
        ("start", "power on again, mounts included"),
        ("cut", "cut its NFS network; exec still works"),
        ("heal", "undo cut"),
        ("console", "what its kernel wrote"),
    ):
        actions.add_parser(action, help=text).add_argument("node")
    skew = actions.add_parser("skew", help="step a node's clock to the host's plus SECONDS")
    skew.add_argument("node")
    skew.add_argument("seconds", type=float)
    delay = actions.add_parser("delay", help="add MS to each packet a node sends")
    delay.add_argument("node")
    delay.add_argument("ms", type=float)
    for action, text in (("mount", "mount the export on a node once more"), ("umount", "unmount it")):
        mount = actions.add_parser(action, help=text)
        mount.add_argument("node")
        mount.add_argument("--at", default=MOUNTPOINT)
        if action == "mount":
            mount.add_argument("--vers", default="4.2")
            mount.add_argument("--opts", default="")
    return parser


if __name__ == "__main__":
    returncode = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(returncode)  # without waiting for threads that read from a node
