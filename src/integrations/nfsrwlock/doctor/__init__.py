"""
``nfsrwlock doctor``: is this mount fit for locks?

What it does not promise: rounds that went well prove nothing about the ones to come, and what a server loses when it
crashes (an export that answers before it has written, ``async``) cannot be seen from a client.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import wait
from functools import partial
from typing import Final

from nfsrwlock.cli.outcome import CliError, Exit, Interrupted, as_cli_error
from nfsrwlock.cli.signals import TERMINATING, Signals
from nfsrwlock.doctor import rendezvous
from nfsrwlock.doctor.examination import Examination
from nfsrwlock.doctor.rendezvous import join
from nfsrwlock.doctor.report import Check, Level, Report, show
from nfsrwlock.text import flush, printable, say
from nfsrwlock_core.system.workers import submit

__all__ = ["doctor", "join"]

#: How long the file system may take to answer one call.
ANSWER_SECONDS: Final = 60.0
#: How long a second node may take to come.
PEER_SECONDS: Final = 300.0
#: There are thousands of names to remove, and each may take a round trip.
_CLEAN_UP_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1


def doctor(
    paths: Sequence[str],
    lock_dir: str | None,
    *,
    peer: bool,
    timeout: float | None,
    as_json: bool,
    rounds: int = 400,
    processes: int = 2,
) -> int:
    """
    Examine ``paths``, one after the other, and report; return the exit code.

    :param peer: do it together with a second node
    :param timeout: how long to wait for the second node, or for an answer of the file system, seconds
    :param rounds: of each race
    :param processes: that race, on each host
    """
    compare = partial(rendezvous.lead, wait_seconds=timeout or PEER_SECONDS) if peer else rendezvous.alone
    patience = ANSWER_SECONDS if timeout is None or peer else timeout
    reports: list[Report] = []
    codes: set[int] = set()
    hangs = False
    for path in dict.fromkeys(paths):
        examination = Examination(path, lock_dir, partial(compare, rounds=rounds, processes=processes))
        try:
            hangs |= _follow(examination, patience)
        except CliError as error:
            codes.add(error.code)
            say(str(error))
            continue
        reports.append(examination.report)
        codes.add(Exit.OK if examination.report.fit else Exit.FAILED)
        if not as_json:
            show(examination.report, separated=len(reports) > 1)
    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=2))
    code = next(code for code in (Exit.FAILED, Exit.BAD_INPUT, Exit.TIMED_OUT, Exit.OK) if code in codes)
    if hangs:  # what hangs would hang the end of this process, too
        flush()
        os._exit(code)
    return code


def _follow(examination: Examination, patience: float) -> bool:
    """Wait for its end; return whether it hangs instead."""
    with Signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
        end = submit(examination.run)
        while not end.done():
            for signum in TERMINATING.intersection(signals.wait(_LOOK_SECONDS)):
                examination.stopped.set()
                wait([end], _CLEAN_UP_SECONDS)
                if examination.scratch is not None:
                    say(f"could not clean up; remove the directory {printable(examination.scratch)}")
                raise Interrupted(signum)
            silent = time.monotonic() - examination.since
            if silent > patience:
                examination.stopped.set()
                left = f" {printable(examination.scratch)} is left behind." if examination.scratch is not None else ""
                text = f"No answer for {silent:.0f} s while {examination.doing}.{left}"
                remedy = "Find out whether the file server is up and can be reached; then try again."
                examination.report.checks.append(Check("answers", Level.UNFIT, text, remedy))
                return True
    try:
        end.result()
    except Exception as error:  # what did not come to its end must not end in a verdict
        raise as_cli_error(error) from None
    return False
