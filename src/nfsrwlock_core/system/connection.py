"""
Whether this machine had to connect to a file server anew, and for how long others may then stand still.

A server that has been restarted gives NFSv4 clients a grace period to reclaim what they had. As long as it lasts,
Linux's server lets them make directories and links, but neither remove nor rename anything (RFC 8881, 8.4.2.1, lets it
refuse what might conflict with what is reclaimed), so a holder's heartbeats wait. A client of the same export by NFSv3
is not held up and would take the wait for silence. What it can see is that its own connection is a new one: so from
then on it lets a grace period pass before silence counts. A waiter on NFSv4 needs no such rule: its calls wait, too.

The kernel's account is ``/proc/self/mountstats``; where there is none, every connection looks like the first.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from typing import Final

#: How NFSv4 servers are set up unless somebody has changed it: Linux (nfsd(7), nfsv4gracetime) and Ganesha, seconds.
_GRACE_DEFAULT_S: Final = 90.0
#: How long a client pauses at most before it asks again what the grace period had refused (Linux: NFS4_POLL_RETRY_MAX).
_RETRY_S: Final = 15.0
#: By how much clocks may differ in rate, and how long such a request may take.
_DRIFT: Final = 0.05
_SLACK_S: Final = 2.0
_VARIABLE: Final = "NFSRWLOCK_GRACE_PERIOD"
_MOUNTINFO: Final = "/proc/self/mountinfo"
_MOUNTSTATS: Final = "/proc/self/mountstats"


def standstill() -> float:
    """
    Return for how many seconds others may stand still after a file server was restarted.

    :raises ValueError: if ``NFSRWLOCK_GRACE_PERIOD`` is set to something else than a number of seconds
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        grace = _GRACE_DEFAULT_S
    else:
        try:
            grace = float(text)
        except ValueError:
            grace = math.nan
        if not 0 <= grace < math.inf:
            raise ValueError(f"{_VARIABLE} must be the NFSv4 server's grace period in seconds, got {text!r}")
    # The pauses between two tries double, so the last one is no longer than all before it together.
    return (grace + min(grace, _RETRY_S)) * (1 + _DRIFT) + _SLACK_S if grace else 0.0


def connection(device: int) -> str | None:
    """
    Return what stands for this machine's connection to the server of an NFSv3 mount: a new one gives another text.

    :param device: ``st_dev`` of something on that mount
    :returns: ``None`` for what is no such mount, or where the system does not tell
    """
    mountpoint = _nfs3_mountpoint(device)
    if mountpoint is None:
        return None
    try:
        with open(_MOUNTSTATS, errors="surrogateescape") as file:
            sections = file.read().split("\ndevice ")
    except OSError:
        return None
    found = None
    for section in sections:
        if f" mounted on {mountpoint} with fstype nfs " in section.partition("\n")[0]:
            # Protocol, port, how often it was bound and how often connected; one line for each with nconnect=.
            found = " ".join(re.findall(r"^\s*xprt:\s+(\w+ \d+ \d+ \d+)", section, re.MULTILINE))
    return found


def mountpoint(path: str) -> str:
    """Return where the file system is mounted that ``path``, absolute, lies on, without a call to its server."""
    found = "/"
    for fields, _ in _mounts():
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]).rstrip("/")
        if len(point) >= len(found) and path.startswith(f"{point}/"):
            found = point
    return found


@functools.lru_cache(maxsize=64)
def _nfs3_mountpoint(device: int) -> str | None:
    # As it is written there, with its escapes: mountstats has the same ones. A device's number is not used again for
    # another file system while something on it is open, and a wrong one only makes a waiter wait longer or as before.
    number = f"{os.major(device)}:{os.minor(device)}"
    for fields, after in _mounts():
        if fields[2] == number and after.startswith("nfs "):
            return fields[4]
    return None


def _mounts() -> Iterator[tuple[list[str], str]]:
    # The fields of each line before the hyphen, and what stands after it: proc_pid_mountinfo(5).
    try:
        with open(_MOUNTINFO, errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4:
            yield fields, after
