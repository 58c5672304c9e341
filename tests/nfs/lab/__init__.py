"""
A real NFS cluster on one machine, out of User-Mode Linux guests.

One guest, ``srv``, runs the kernel's own nfsd; the others, ``n1``, ``n2``, ..., are kernel NFS clients that mount its
export at ``/mnt/nfs``. Each has a kernel, clock, host name, process table, page, attribute and name cache of its own,
sees the host's files read-only as its ``/``, and is reached through a small agent. All of them live in one network
namespace without a way out. README.md tells what can be done to them; ``python3 tests/nfs/lab`` does it from a shell.

What it does not show: more than one Linux version at a time, network hardware, and a server whose disk is lost.
"""

from .cluster import Lab, to_bind
from .host import LabError, Unavailable, install, require
from .job import Job
from .node import Node

__all__ = ["Job", "Lab", "LabError", "Node", "Unavailable", "install", "require", "to_bind"]
