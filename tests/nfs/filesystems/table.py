"""The table of docs/concepts/file-systems.md, and the figures behind it."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path
from typing import Any, Final, TextIO

from nfs.filesystems.descriptions import DESCRIPTIONS

_DOCS: Final = Path(__file__).resolve().parents[3] / "docs"
_FIGURES: Final = _DOCS / "evidence/file-systems.json"
PAGE: Final = _DOCS / "concepts/file-systems.md"

_HEAD: Final = (
    *("file system, `LANE`", "options", "versions, date", "rounds", "(a)", "(b)", "(c)", "(d)"),
    *("storm", "faults", "full disk", "data", "joblib, Snakemake", "read / write, ms", "to mind"),
)
#: The facts of ``doctor``'s checks that count what must not happen.
_COUNTS: Final = {
    "both": "mkdir/mkdir",
    "missed": "missed each other",
    "own_missed": "missed its own",
    "moved_and_removed": "rename/unlink",
    "filled_and_removed": "create/rmdir",
    "renamed_and_removed": "rename/rmdir",
    "renamed_twice": "rename/rename",
    "nonempty_removed": "rmdir of what is not empty",
}
#: Those of its facts that add up over several runs.
COUNTED: Final = {*_COUNTS, "rounds", "overlapping", "neither", "read", "old"}


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each file system."""
    lines = [_HEAD, ["--"] * len(_HEAD), *(_line(name, row) for name, row in rows.items())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    """What is said of one file system, by the head of the column."""
    return dict(zip(_HEAD, _line(name, row), strict=True))


def _line(name: str, row: dict[str, Any]) -> list[str]:
    checks = row.get("demands", {}).get("checks", {})
    raced = [checks[name] for name in ("mkdir", "listing", "removal") if "rounds" in checks.get(name, {})]
    apart = " / ".join(f"{race['median_apart_ms']:.0f}" for race in raced)
    rounds = f"{raced[0]['rounds']}; {apart} ms" if raced else ""
    versions = ", ".join(filter(None, [row.get("package"), row.get("kernel") and f"Linux {row['kernel']}"]))
    trials = (row, *(found for found in row.values() if isinstance(found, dict)))
    mind = [row["mind"], *(f"**{_one_line(trial['error'])}**" for trial in trials if "error" in trial)]
    return [
        *(f"{row['title']}, `{name}`", f"`{row['options']}`" if row["options"] else "", f"{versions}, {row['date']}"),
        *(rounds, _demand(checks.get("mkdir")), _demand(checks.get("listing")) + _churn(row.get("churn", {}))),
        *(_demand(checks.get("removal")), _crashes(row.get("crashes", {}))),
        *(_storm(row.get("exclusion", {})), _faults(row.get("faults", {})), _full(row.get("full", {})), _data(row)),
        *(_adapters(row.get("adapters", {})), _cost(checks.get("cost", {}))),
        " ".join(filter(None, mind)),
    ]


def _one_line(text: str) -> str:
    lines = re.sub(r"(\\n)?['\"]\)$", "", text).replace("\\n", "\n").replace("\\'", "'").splitlines()
    # What a process on a client raised ends with what it was; behind all else a guest's console may follow.
    said = lines[-1].rpartition("nfsrwlock_core.compat.")[2] if "  File " in text else lines[0]
    return " ".join(said.replace("|", "/").replace("`", "'").split())[:200]


def _demand(check: dict[str, Any] | None) -> str:
    if check is None or "rounds" not in check:
        return "not tested"
    broken = {name: check[fact] for fact, name in _COUNTS.items() if check.get(fact)}
    return ", ".join(f"**{name} {count}**" for name, count in broken.items()) or "0"


def _churn(found: dict[str, Any]) -> str:
    return f"; {_bold(found['missed'])} of {found['rounds']} in the churn" if "rounds" in found else ""


def _crashes(found: dict[str, Any]) -> str:
    if "undone" not in found:
        return "not tested"
    return f"{_bold(found['undone'])} of {found['changes']} in {found['crashes']}"


def _storm(found: dict[str, Any]) -> str:
    if "holds" not in found:
        return "not tested"
    return f"{_bold(found['overlaps'] + found['disorder'])} in {found['holds']} ({found['writes']} writes)"


def _faults(found: dict[str, Any]) -> str:
    if "holds" not in found:
        return "not tested"
    minutes = f", {found['for, s'] / 60:.0f} min" if found.get("for, s", 0) >= 300 else ""
    return f"{_bold(found['overlaps'])} in {found['holds']}, {sum(found['faults'].values())} faults{minutes}"


def _full(found: dict[str, Any]) -> str:
    if "refused" not in found:
        return "not tested"
    kept, released = (
        ("kept" if found["kept"] else "**lost**"),
        ("released" if found["released"] else "**not released**"),
    )
    told = found["refused"].startswith("LockPathError") and "space" in found["refused"]
    refused = "refused" if told else "**refused without the reason**" if found["refused"] else "to be had"
    return f"{kept}, {released}, {refused}"


def _adapters(found: dict[str, Any]) -> str:
    if "values" not in found:
        return "not tested"
    twice, builds = found["computed"] - found["values"], found["builds"] - found["versions"]
    said = f"{_bold(twice)} of {found['values']} values computed twice; {_bold(builds)} of {found['versions']} indexes"
    return f"{said} built twice, {_bold(found['wrong'])} of {found['uses']} read old"


def _data(row: dict[str, Any]) -> str:
    said = []
    storm = row.get("exclusion", {})
    if "holds" in storm:
        said.append(f"{_bold(storm['old reads'])} of {storm['holds']} old")
        if storm["lost updates"]:
            said.append(f"**{storm['lost updates']} updates lost**")
    data = row.get("demands", {}).get("checks", {}).get("data", {})
    if "old" in data:
        said.append(f"doctor: {_bold(data['old'])} of {data['read']} old")
    if "names" in (found := row.get("names", {})):
        said.append(f"new names: {_bold(found['unseen'] + found['unlocked'])} of {found['names']} missing")
    return "; ".join(said) or "not tested"


def _cost(found: dict[str, Any]) -> str:
    if "read" not in found:
        return "not tested"
    return f"{found['read']['median_ms']:.1f} / {found['write']['median_ms']:.1f}"


def _bold(count: int) -> str:
    return f"**{count}**" if count else "0"


def is_bad(row: dict[str, Any]) -> bool:
    """Whether two held together what one may hold alone."""
    return any(row.get(trial, {}).get("overlaps") for trial in ("exclusion", "faults"))


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Put rows into the figures and the page; two runs side by side take turns."""
    with open(PAGE, "r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        known = json.loads(_FIGURES.read_text()) if _FIGURES.exists() else {}
        for name, row in rows.items():  # trials that were not made this time stay as they were
            earlier = {key: value for key, value in known.get(name, {}).items() if key != "error"}
            known[name] = {**earlier, **row}
        known = {name: known[name] for name in DESCRIPTIONS if name in known}
        _FIGURES.write_text(as_figures(known))
        put(page, "test-filesystems", as_markdown(known))


def as_figures(rows: dict[str, dict[str, Any]]) -> str:
    """The figures behind a table. Of the files in a traceback only the names: where they lay concerns nobody."""
    return re.sub(r"/[\w./-]*/(?=[\w-]+\.py\b)", "", json.dumps(rows, indent=1)) + "\n"


def put(page: TextIO, target: str, text: str) -> None:
    """Put a table on the page, between the marks that name the target of the Makefile that writes it."""
    begin, end = (f"<!-- {mark}: written by make {target} -->\n" for mark in ("begin", "end"))
    before, _, rest = page.read().partition(begin)
    _, _, after = rest.partition(end)
    page.seek(0)
    page.truncate()
    page.write(f"{before}{begin}\n{text}\n{end}{after}")
