"""``python tools/nfsrwlock_timeline``: see the package."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.text import say
from nfsrwlock_timeline.report import timeline


def main() -> int:
    """Read the arguments, and do what they say; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python tools/nfsrwlock_timeline",
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
    try:
        return timeline(**vars(parser.parse_args()))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is written at the exit
        return Exit.FAILED
    except (CliError, OSError) as error:
        say(str(error))
        return Exit.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
