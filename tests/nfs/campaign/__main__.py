"""
A long random campaign: ``make campaign DURATION=3600 SEED=1``, as root.

Several processes on each of several clients take the same locks at random, over NFSv3, v4.0 and v4.2, with ``nocto``
and with ``noac``. They have threads or tasks, beat by a thread or a process, have short and long leases, and are root
or members of a group. Meanwhile machines, processes, heartbeat processes, the network and the server fail at random.
What every process says it held is judged on the host's one clock. The figures are printed as JSON; if anything was
wrong, exit code 1, and the whole history and a picture of each moment that was wrong are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nfs.campaign.history import Verdict
from nfs.campaign.nemesis import KINDS, OF_THE_SERVER
from nfs.campaign.picture import draw
from nfs.campaign.run import Campaign, document
from nfs.lab import Lab, LabError, Unavailable, require, to_bind
from nfs.lanes import NFS4_LEASE_S

#: How much of the history a picture shows on either side of a violation, seconds.
_AROUND_S = 15.0
_PICTURES = 5


def keep(campaign: Campaign, verdict: Verdict, directory: Path) -> None:
    """Write the history, and a picture of each violation."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "history.jsonl", "w") as file:
        file.writelines(json.dumps(asdict(entry)) + "\n" for entry in (*campaign.faults, *campaign.events))
    (directory / "words.txt").write_text("".join(f"{who}: {said}" for who, said in campaign.words.items()))
    for number, violation in enumerate(verdict.violations[:_PICTURES]):
        begin, end = violation.at - _AROUND_S, violation.at + _AROUND_S
        title = f"Campaign {campaign.seed}: {violation.what}"
        picture = draw(verdict.holds, campaign.faults, verdict.violations, begin=begin, end=end, title=title)
        (directory / f"violation-{number}.svg").write_text(picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of all choices (default: %(default)d)")
    parser.add_argument("--clients", type=int, default=3, help="machines (default: %(default)d)")
    parser.add_argument("--processes", type=int, default=8, help="on each client (default: %(default)d)")
    parser.add_argument("--locks", type=int, default=24, help="how many (default: %(default)d)")
    parser.add_argument("--lease", type=float, default=6.0, help="of most processes, seconds (default: %(default)g)")
    parser.add_argument("--permits", type=int, help="all take one of so many permits, no faults of the server")
    parser.add_argument("--keep", type=Path, help="keep the history here, even if all was well")
    parser.add_argument("--picture", type=Path, help="draw the first minute with a fault into this SVG file")
    options = parser.parse_args()
    try:
        require()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return error.code
    lab = Lab(Path(tempfile.gettempdir()) / f"nfslab-campaign-{options.seed}")
    lab.down()
    try:
        lab.up(
            clients=options.clients,
            lease_s=NFS4_LEASE_S,
            grace_s=NFS4_LEASE_S,
            bind=to_bind(),
        )
        campaign = Campaign(
            *(lab, f"campaign-{options.seed}"),
            seed=options.seed, processes=options.processes, locks=options.locks, lease_s=options.lease,
            permits=options.permits,
            faults={kind: n for kind, n in KINDS.items() if not (options.permits and kind in OF_THE_SERVER)},
        )  # fmt: skip
        began = time.monotonic()
        verdict = campaign.run(options.seconds, report=lambda line: print(line, file=sys.stderr, flush=True))
        seconds = time.monotonic() - began
        fresh_s = campaign.write_lock_anew()
        leftovers = campaign.leftovers()
    except LabError as error:
        print(f"the lab failed: {error}", file=sys.stderr)
        return 2
    finally:
        lab.down()
    figures = document(campaign, verdict, seconds)
    figures["a newcomer had all locks after, s"] = round(fresh_s, 2)
    figures["left over"] = leftovers
    json.dump(figures, sys.stdout, indent=2)
    print()
    if options.picture:
        begin = campaign.faults[0].began - 5 if campaign.faults else campaign.events[0].at
        title = f"A minute of campaign {options.seed}"
        faults = campaign.faults
        options.picture.write_text(
            draw(verdict.holds, faults, verdict.violations, begin=begin, end=begin + 60, title=title)
        )
    wrong = bool(verdict.violations or campaign.errors or leftovers)
    if wrong or options.keep:
        directory = options.keep or Path(f"campaign-{options.seed}")
        keep(campaign, verdict, directory)
        print(f"the history is in {directory}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
