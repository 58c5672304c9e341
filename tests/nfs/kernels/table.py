"""The table "Other kernels" of docs/concepts/file-systems.md, and the figures behind it."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from nfs.filesystems import table
from nfs.filesystems.descriptions import DESCRIPTIONS

_FIGURES: Final = table.PAGE.parents[1] / "evidence/kernels.json"
_SEEN: Final = ("rounds", "(a)", "(b)", "(c)", "storm", "data", "to mind")
_HEAD: Final = ("kernel", "package, release of Debian, date", "NFS", *_SEEN)


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each mount on each kernel."""
    lines: list[Sequence[str]] = [_HEAD, ["--"] * len(_HEAD)]
    for row in rows.values():
        source = f"{row.get('package', 'none')}, {row['suite']}, {row['date']}"
        if "error" in row:
            lines.append(["none", source, *["not tested"] * 7, f"**{row['error']}**"])
        lines += [_line(source, name, lane) for name, lane in row.get("lanes", {}).items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _line(source: str, name: str, lane: dict[str, Any]) -> list[str]:
    nfs = DESCRIPTIONS[name].title.rpartition(" ")[2]
    return [lane.get("kernel", "did not come up"), source, nfs, *_seen(name, lane).values()]


def _seen(name: str, lane: dict[str, Any]) -> dict[str, str]:
    cells = table.cells(name, lane)
    if "error" in lane.get("exclusion", {}):
        cells["storm"] = "**failed**"
    return {column: cells[column] for column in _SEEN}


def is_bad(row: dict[str, Any]) -> bool:
    """Whether something went wrong on it: the table has that in bold."""
    return any("**" in cell for name, lane in row.get("lanes", {}).items() for cell in _seen(name, lane).values())


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Put rows into the figures and the page, the newest package first."""
    with open(table.PAGE, "r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        known = json.loads(_FIGURES.read_text()) if _FIGURES.exists() else {}
        for row in rows.values():
            known.pop(row["suite"], None)  # an earlier run had no package of that release
        known = dict(sorted({**known, **rows}.items(), key=lambda one: _newness(one[0]), reverse=True))
        _FIGURES.write_text(table.as_figures(known))
        table.put(page, "test-kernels", as_markdown(known))


def _newness(package: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", package)]
