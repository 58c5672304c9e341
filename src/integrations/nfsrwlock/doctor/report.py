"""
What ``doctor`` finds: one :class:`Check` per question, the verdict that follows from them, and how people see it.

A verdict promises no more than was tested: what one host cannot tell, it does not claim.
"""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal

from nfsrwlock import __version__
from nfsrwlock.text import PROGRAM, console, one_line, printable

#: Where a finding comes from: seen now, on this mount; seen by this project on its NFS cluster (``tests/nfs``); or
#: taken from the documentation of the file system, and seen by nobody here.
Basis = Literal["measured", "lab", "documented"]
#: Between which processes locks can work at all: those of this host, or those of several.
Scope = Literal["host", "hosts"]

#: The questions that are not about the locks, but about the data that they guard.
_ABOUT_DATA: Final = frozenset({"data", "option-nocto"})
#: A remedy that several checks share.
ELSEWHERE: Final = "Keep locks on another file system with --lock-dir (or NFSRWLOCK_DIR)."

_WIDTH_WITHOUT_TERMINAL: Final = 110

#: The mount options that :meth:`Report.shareable` keeps: their values are numbers, or words of the kernel's.
_SHAREABLE_OPTIONS: Final = {
    *("acdirmax", "acdirmin", "acregmax", "acregmin", "actimeo", "async", "cache", "dir_mode", "file_mode", "flock"),
    *("hard", "local_lock", "localflock", "lookupcache", "msize", "nconnect", "noac", "nocto", "noflock", "nolock"),
    *("nordirplus", "proto", "retrans", "ro", "rw", "sec", "soft", "softerr", "softreval", "sync", "timeo", "vers"),
}
#: The checks whose facts it keeps: figures, names of errors and of requests.
_SHAREABLE_FACTS: Final = frozenset({"mkdir", "listing", "removal", "freshness", "data", "cost", "option-soft"})


class Level(StrEnum):
    """How much a finding matters, least first."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: the answer to the question ``name``, as sentences; ``facts`` are its numbers, for programs."""

    name: str
    level: Level
    text: str
    remedy: str = ""
    basis: Basis = "measured"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """
    What was found out about one path, as ``--json`` prints it.

    :param home: the directory in which the lock directories lie; empty if the file system did not even answer that
    :param lock_path: where the lock on ``path`` would live; ``None`` for a directory, which stands for what is in it
    :param file_system: the :class:`nfsrwlock_core.system.mounts.Mount`, as plain values
    :param host: name of this host; ``peer``: of the other one that took part
    """

    path: str
    home: str
    lock_path: str | None = None
    scope: Scope = "hosts"
    two_hosts: bool = False
    file_system: dict[str, Any] = field(default_factory=dict)
    host: str = ""
    peer: str | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """The worst finding's."""
        return max((check.level for check in self.checks), key=list(Level).index, default=Level.OK)

    @property
    def fit(self) -> bool:
        """Whether locks can be trusted here, as far as it was tested."""
        return self.level is not Level.UNFIT

    @property
    def remedies(self) -> list[str]:
        """What to do, the most urgent first."""
        ordered = (check for level in reversed(Level) for check in self.checks if check.level is level)
        return list(dict.fromkeys(check.remedy for check in ordered if check.remedy))

    @property
    def verdict(self) -> str:
        """All of it in a sentence or two."""
        if bad := dict.fromkeys(check.name for check in self.checks if check.level is Level.UNFIT):
            data = "locks hold here, but data read under them may be old"
            what = data if _ABOUT_DATA.issuperset(bad) else "do not rely on locks here"
            return f"UNFIT: {what} ({', '.join(bad)})."
        tested = " as far as one host can tell: its processes share one cache, so what another host sees was not tested"
        if self.two_hosts:
            tested = ": two hosts kept all demands of the protocol"
        if self.scope == "host":
            tested = " for the processes of this host, and for no others: other hosts cannot see these locks"
        return f"FIT{tested}.{' There are warnings.' if self.level is Level.WARNING else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        judged = {"fit": self.fit, "level": self.level, "verdict": self.verdict, "remedies": self.remedies}
        versions = {"nfsrwlock": __version__, "python": platform.python_version(), "kernel": platform.release()}
        return {"path": self.path, **judged, **asdict(self), "versions": versions}

    def shareable(self) -> Report:
        """Return a copy in which all that may name a host, a user, an address or a path is empty."""
        mount = {"type": self.file_system.get("type"), "options": self.file_system.get("options", {})}
        mount["options"] = {name: value for name, value in mount["options"].items() if name in _SHAREABLE_OPTIONS}
        checks = [
            replace(check, text="", remedy="", facts=check.facts if check.name in _SHAREABLE_FACTS else {})
            for check in self.checks
        ]
        return Report("", "", scope=self.scope, two_hosts=self.two_hosts, file_system=mount, checks=checks)


_STYLES: Final = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.UNFIT: "bold red"}
_BASES: Final = {"measured": "", "lab": " [seen on this project's NFS cluster]", "documented": " [by documentation]"}


def show(report: Report) -> None:
    """Print one report, for people."""
    from rich.table import Column, Table  # noqa: PLC0415 - costs more to import than most commands need
    from rich.text import Text  # noqa: PLC0415

    to = console(_WIDTH_WITHOUT_TERMINAL)
    where = f": locks live in {report.home}" if report.home else ""
    if report.lock_path is not None:
        where = f": its lock would be {report.lock_path}"
    seen = f"; seen from {report.host} and {report.peer}" if report.peer is not None else ""
    to.print(Text(printable(report.path), style="bold").append(printable(where + seen), style="not bold"))
    table = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(ratio=1), padding=(0, 2, 0, 0))
    for check in report.checks:
        text = one_line(check.text) + _BASES[check.basis] + (f"\n→ {one_line(check.remedy)}" if check.remedy else "")
        table.add_row(Text(str(check.level), style=_STYLES[check.level]), check.name, Text(text))
    to.print(table)
    to.print(Text(one_line(report.verdict), style=_STYLES[report.level]))
    if report.fit and report.scope == "hosts" and not report.two_hosts:
        command = f"{PROGRAM} doctor --peer {shlex.quote(printable(report.path))}"
        to.print(Text(f"To test it between two hosts, run here: {command}"))
