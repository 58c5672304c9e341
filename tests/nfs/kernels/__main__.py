"""
The kernels of other Debian releases: ``make test-kernels KERNELS="sid trixie"``, as root.

Fetches each, boots the server and two clients with it, and tries on NFSv4.2 and NFSv3 what locks need of a kernel: the
demands (a), (b) and (c), also in the churn, and exclusion. What cannot be had, or not be booted, is a line that says
so. ``--write`` brings the table in docs/concepts/file-systems.md up to date; rows of other versions stay.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from debian import install
from nfs.filesystems import trials
from nfs.filesystems.__main__ import arguments, extent_of, run
from nfs.filesystems.descriptions import DESCRIPTIONS
from nfs.kernels import table
from nfs.kernels.packages import KEYRING, PACKAGE, Release
from nfs.lab import LabError, Unavailable, require

#: Those whose mirror is deb.debian.org, newest first; oldest ones move to an archive one day.
_SUITES: Final = ("sid", "forky", "trixie", "bookworm", "bullseye")
_LANES: Final = ("linux-4.2", "linux-3")
_TRIALS: Final = ("churn", "names", "exclusion", "demands")


def test(suite: str, extent: trials.Extent, limit_s: float, known: dict[str, Any]) -> dict[str, Any]:
    """Try the kernel of one release, unless it is one of those that are known."""
    row: dict[str, Any] = {"suite": suite, "date": time.strftime("%Y-%m-%d")}
    release = Release(suite)
    try:
        row["package"] = f"{PACKAGE} {release.update()}"
        if row["package"] in known:
            print(f"{suite}: {row['package']}, as {known[row['package']]['suite']}", file=sys.stderr)
            return {}
        os.environ["NFSLAB_KERNEL"] = str(release.fetch(row["package"].split()[1]))
    except (LabError, OSError, subprocess.SubprocessError) as error:
        row["error"] = f"{error}"[-1500:]
        return {row.get("package", suite): row}
    row["lanes"] = {lane: run(lane, DESCRIPTIONS[lane], extent, limit_s, list(_TRIALS)) for lane in _LANES}
    return {row["package"]: row}


def main() -> int:
    """Try those that were asked for; return 1 if one of them breaks what locks need."""
    parser = arguments(__doc__, 900.0)
    parser.add_argument("suites", nargs="*", default=_SUITES, help=f"releases of Debian (default: {' '.join(_SUITES)})")
    options = parser.parse_args()
    try:
        require()
        install("tests/nfs/kernels", lambda: [] if os.path.exists(KEYRING) else [KEYRING], ["debian-archive-keyring"])
    except Unavailable as error:
        print(error, file=sys.stderr)
        return error.code
    rows: dict[str, Any] = {}
    for suite in options.suites:
        tested = test(suite, extent_of(options), options.limit, rows)
        rows |= tested
        if options.write:
            table.write(tested)
    print(table.as_markdown(rows))
    return 1 if any(table.is_bad(row) for row in rows.values()) else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for threads that read from a node
