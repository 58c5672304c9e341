"""The table "Other kernels" of docs/concepts/file-systems.md, and the figures behind it."""

from __future__ import annotations

import fcntl
import json
import re
from typing import Any, Final

from nfs.filesystems import table
from nfs.filesystems.descriptions import DESCRIPTIONS

_FIGURES: Final = table.PAGE.parents[1] / "evidence/kernels.json"
_SEEN: Final = ("rounds", "(a)", "(b)", "(c)", "storm", "to mind")
_HEAD: Final = ("kernel", "package, release of Debian, date", "NFS", *_SEEN)


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each mount on each kernel."""
    lines = [_HEAD, ["--"] * len(_HEAD)]
    for row in rows.values():
        source = f"{row.get('package', 'none')}, {row['suite']}, {row['date']}"
        if "error" in row:
            lines.append(["none", source, *["not tested"] * 6, f"**{row['error']}**"])
        for name, lane in row.get("lanes", {}).items():
            seen = table.cells(name, lane)
            nfs = DESCRIPTIONS[name].title.rpartition(" ")[2]
            lines.append([lane.get("kernel", "did not come up"), source, nfs, *(seen[column] for column in _SEEN)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def is_bad(row: dict[str, Any]) -> bool:
    """Whether a demand was broken on it, or two held together what one may hold alone."""
    return any(
        table.is_bad(lane)
        or lane.get("exclusion", {}).get("disorder")
        or lane.get("churn", {}).get("missed")
        or any(
            check.get(count) for check in lane.get("demands", {}).get("checks", {}).values() for count in table.COUNTS
        )
        for lane in row.get("lanes", {}).values()
    )


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Put rows into the figures and the page, the newest package first."""
    with open(table.PAGE, "r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        known = json.loads(_FIGURES.read_text()) if _FIGURES.exists() else {}
        for row in rows.values():
            known.pop(row["suite"], None)  # an earlier run had no package of that release
        known = dict(sorted({**known, **rows}.items(), key=lambda one: _newness(one[0]), reverse=True))
        _FIGURES.write_text(json.dumps(known, indent=1) + "\n")
        table.put(page, "test-kernels", as_markdown(known))


def _newness(package: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", package)]
