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

import contextlib
import functools
import math
import os
import re
from typing import Final

#: How NFSv4 servers are set up unless somebody has changed it: Linux (nfsd(7), nfsv4gracetime) and Ganesha, seconds.
_GRACE_DEFAULT_S: Final = 90.0
#: How long a client pauses at most before it asks again what the grace period had refused (Linux: NFS4_POLL_RETRY_MAX).
_RETRY_S: Final = 15.0
#: By how much clocks may differ in rate, and how long such a request may take.
_DRIFT: Final = 0.05
_SLACK_S: Final = 2.0
_VARIABLE: Final = "NFSRWLOCK_GRACE_PERIOD"


def standstill() -> float:
    """
    Return for how many seconds others may stand still after a file server was restarted.

    :raises ValueError: if ``NFSRWLOCK_GRACE_PERIOD`` is set to something else than a number of seconds
    """
    text, grace = os.environ.get(_VARIABLE) or str(_GRACE_DEFAULT_S), math.nan
    with contextlib.suppress(ValueError):
        grace = float(text)
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
    from .mounts import statistics_of  # noqa: PLC0415 - only needed where a lock is waited for

    mountpoint = _nfs3_mountpoint(device)
    section = None if mountpoint is None else statistics_of(mountpoint)
    if section is None:
        return None
    # Protocol, port, how often it was bound and how often connected; one line for each with nconnect=.
    return " ".join(re.findall(r"^\s*xprt:\s+(\w+ \d+ \d+ \d+)", section, re.MULTILINE))


@functools.lru_cache(maxsize=64)
def _nfs3_mountpoint(device: int) -> str | None:
    from .mounts import mount_of_device  # noqa: PLC0415

    # A device's number is not used again for another file system while something on it is open, and a wrong one only
    # makes a waiter wait longer or as before.
    mount = mount_of_device(device)
    return mount.mountpoint if mount is not None and mount.type == "nfs" else None
