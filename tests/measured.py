"""
Measures the helper processes, too: `make coverage` has each Python process import this when it starts.

A heartbeat process and a watchdog start without the files of site-packages, by which coverage finds its way into a
process, and without the environment that tells it what to do. Here they start with both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_start = subprocess.Popen.__init__


def _start_measured(self: Any, args: Any, *others: Any, **settings: Any) -> None:
    if isinstance(args, list) and args[0] == sys.executable and "-S" in args[:3]:
        args = [args[0], "-P", *(word for word in args[1:3] if word not in ("-S", "-E", "-I")), *args[3:]]
    _start(self, args, *others, **settings)


if os.environ.get("COVERAGE_PROCESS_CONFIG"):
    subprocess.Popen.__init__ = _start_measured  # type: ignore[method-assign]
