"""How a report is shown to people."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

from nfsrwlock.doctor.report import Basis, Level, Report
from nfsrwlock.text import PROGRAM, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL: Final = 110
_STYLES: Final = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.UNFIT: "bold red"}
_BASES: Final[dict[Basis, str]] = {
    "measured": "",
    "lab": " [seen on this project's NFS cluster]",
    "documented": " [by documentation]",
}


def console() -> Console:
    """Return where reports are printed."""
    from rich.console import Console  # noqa: PLC0415 - costs more to import than most commands need

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(highlight=False, width=width)


def show(report: Report, to: Console) -> None:
    """Print one report."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for check in report.checks:
        text = Text(one_line(check.text) + _BASES[check.basis])
        if check.remedy:
            text.append(f"\n→ {one_line(check.remedy)}")
        table.add_row(Text(str(check.level), style=_STYLES[check.level]), check.name, text)
    headline = Text(printable(report.path), style="bold")
    if report.lock_path is not None:
        headline.append(f": its lock would be {printable(report.lock_path)}", style="not bold")
    elif report.home:
        headline.append(f": locks live in {printable(report.home)}", style="not bold")
    if report.peer is not None:
        headline.append(f"; seen from {printable(report.host)} and {printable(report.peer)}", style="not bold")
    to.print(headline)
    to.print(table)
    to.print(Text(one_line(report.verdict), style=_STYLES[report.level]))
    if report.fit and report.scope == "hosts" and not report.two_hosts:
        command = f"{PROGRAM} doctor --peer {shlex.quote(printable(report.path))}"
        to.print(Text(f"To test it between two hosts, run here: {command}"))
