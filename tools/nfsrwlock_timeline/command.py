"""``nfsrwlock timeline``: see the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nfsrwlock_timeline.report import timeline


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="nfsrwlock timeline",
        description="Show who held which lock when, and who waited for whom: without -o and --json, which locks were "
        "waited for, who kept whom waiting, the longest holds, and evictions.",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a directory that NFSRWLOCK_TRACE named, or a file from one")
    add("-o", "--output", dest="out", metavar="FILE", help="draw it: a picture (.svg), or a page (.html)")
    add("--lock", metavar="PATH", help="only the lock on PATH")
    add("--from", dest="begin", metavar="TIME", help="from then on: date and time, time of the day, or +SECONDS")
    add("--to", dest="end", metavar="TIME", help="until then")
    add("--json", dest="as_json", action="store_true", help="print all that is known as one JSON object")
    return timeline(**vars(parser.parse_args(arguments)))
