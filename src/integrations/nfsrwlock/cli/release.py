"""``nfsrwlock release``: give back what ``hold`` keeps for a process, before that process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from nfsrwlock.cli.keeper import GIVE_BACK
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.processes import Process, readable
from nfsrwlock.text import say
from nfsrwlock_core import holds_for, inspect

#: Longer than the guard waits for a file server.
_PATIENCE_SECONDS: Final = 25.0


def release(paths: Sequence[str], pid: int, lock_dir: str | None) -> int:
    """
    Have the holds on ``paths`` given back that ``hold`` keeps for process ``pid``; return when they have ended.

    :raises CliError: on one of the paths there is none; then all stay
    """
    keepers: set[int] = set()
    for path in paths:
        peers = inspect(path, lock_dir=lock_dir).holders
        found = {peer.pid for peer in peers if peer.pid and peer.same_kernel and holds_for(peer.pid, pid)}
        if not found:
            raise CliError(f"{path}: no 'nfsrwlock hold' keeps it for process {pid}; see: nfsrwlock status PATH")
        keepers |= found
    processes = [Process(keeper) for keeper in keepers]
    for process in processes:
        os.kill(process.pid, GIVE_BACK)
    limit = time.monotonic() + _PATIENCE_SECONDS
    for process in processes:
        while not process.ended:
            if time.monotonic() > limit:
                say("the file server does not answer; the lock will be released when it does")
                return Exit.OK
            readable(process.fileno(), seconds=0.1)
    return Exit.OK
