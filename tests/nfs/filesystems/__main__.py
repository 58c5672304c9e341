"""
Every shared file system that can be had, each for itself: ``make test-filesystems LANES="smb 9p"``, as root.

Installs what is missing, brings the file system up with two clients, tries what locks need of it, takes it down, and
says in one line what came of it; what cannot be had is such a line, too. ``--write`` brings the table in
docs/concepts/file-systems.md up to date; rows of an earlier run stay unless they are tried again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from debian import install
from nfs.filesystems import table, trials
from nfs.filesystems.descriptions import DESCRIPTIONS, FileSystem
from nfs.lab import Lab, LabError, Unavailable, require, to_bind

#: So long may one file system take, seconds. Each trial gets its share of what the earlier ones have left.
_LIMIT_S: Final = 900.0
#: Larger than others' for the races: a round takes as long as seventy calls.
_SHARES: Final = dict.fromkeys(trials.TRIALS, 1) | {"demands": 3}
#: A trial ends by itself after this part of its share, and by force after all of it.
_ORDERLY: Final = 0.7


class OutOfTimeError(BaseException):
    """What is under way has used up its time."""


def programs_missing(kind: FileSystem) -> list[str]:
    """What of its programs this machine has not."""
    path = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    return [name for name in kind.programs.split() if not any(os.access(f"{at}/{name}", os.X_OK) for at in path)]


def run(name: str, kind: FileSystem, extent: trials.Extent, limit_s: float, only: list[str]) -> dict[str, Any]:
    """Try one file system."""
    directory = Path(tempfile.gettempdir()) / f"nfslab-filesystems-{name}"
    with open(f"{directory}.lock", "w") as turn:  # two runs of one file system would take each other's lab down
        fcntl.flock(turn, fcntl.LOCK_EX)
        return _try(name, kind, extent, limit_s, only, Lab(directory))


def _try(
    name: str, kind: FileSystem, extent: trials.Extent, limit_s: float, only: list[str], lab: Lab
) -> dict[str, Any]:
    row: dict[str, Any] = {"title": kind.title, "options": kind.options, "mind": kind.mind}
    began = time.monotonic()
    # The main thread has the alarm; what it interrupts are waits.
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        install("tests/nfs/filesystems", lambda: programs_missing(kind), kind.packages.split())
        trials.prepare(lab, kind, to_bind())
        row |= {"up after, s": round(time.monotonic() - began, 1), **trials.describe(lab, kind)}
        for number, trial in enumerate(only):
            since = time.monotonic()
            part = _SHARES[trial] / sum(_SHARES[later] for later in only[number:])
            share_s = max((began + limit_s - since) * part, 1.0)
            signal.setitimer(signal.ITIMER_REAL, share_s)
            try:
                row[trial] = trials.TRIALS[trial](lab, kind, replace(extent, share_s=_ORDERLY * share_s))
            except OutOfTimeError:  # the other trials still tell something
                row[trial] = {"error": f"{trial}: not done after {share_s:.0f} s"}
            except Exception as error:
                row[trial] = {"error": f"{error!r}"[-1500:]}
                traceback.print_exc()
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            row[trial]["seconds"] = round(time.monotonic() - since, 1)
            print(f"{name}: {trial}: {json.dumps(row[trial])[:1500]}", file=sys.stderr, flush=True)
    except OutOfTimeError:
        row["error"] = f"not done after {limit_s:g} s"
    except (LabError, OSError, subprocess.SubprocessError) as error:
        row["error"] = f"cannot be had: {error}"[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        row["date"] = time.strftime("%Y-%m-%d")
        lab.down()
    return row


def _ring(*_: object) -> None:
    if threading.current_thread() is threading.main_thread():
        raise OutOfTimeError


def arguments(about: str | None, limit_s: float) -> argparse.ArgumentParser:
    """Return what says how much is tried on each mount, and whether the page is written."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: only whether it works")
    parser.add_argument("--rounds", type=int, help=f"of each race (default: {trials.FULL.rounds})")
    parser.add_argument("--limit", type=float, default=limit_s, help="for each mount, seconds (default: %(default)g)")
    parser.add_argument("--write", action="store_true", help="bring docs/concepts/file-systems.md up to date")
    return parser


def extent_of(options: argparse.Namespace) -> trials.Extent:
    """Return how much is tried, as :func:`arguments` were given."""
    extent = trials.QUICK if options.quick else trials.FULL
    return replace(extent, rounds=options.rounds or extent.rounds)


def main() -> int:
    """Try those that were asked for; return 1 if locks failed on one on which they should not."""
    parser = arguments(__doc__, _LIMIT_S)
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"of {' '.join(DESCRIPTIONS)} (default: all)")
    parser.add_argument("--campaign", type=float, help=f"of faults, seconds (default: {trials.FULL.campaign_s:g})")
    parser.add_argument("--only", nargs="+", choices=trials.TRIALS, default=list(trials.TRIALS), help="trials")
    options = parser.parse_args()
    if unknown := set(options.lanes) - set(DESCRIPTIONS):
        parser.error(f"no such file system: {' '.join(sorted(unknown))}; there are {' '.join(DESCRIPTIONS)}")
    try:
        require()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return error.code
    extent = extent_of(options)
    extent = replace(extent, campaign_s=options.campaign or extent.campaign_s)
    rows: dict[str, dict[str, Any]] = {}
    for name in options.lanes or DESCRIPTIONS:
        rows[name] = run(name, DESCRIPTIONS[name], extent, options.limit, options.only)
        if options.write:
            table.write({name: rows[name]})
    print(table.as_markdown(rows))
    return 1 if any(table.is_bad(row) for row in rows.values()) else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for threads that read from a node
