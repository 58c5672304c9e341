"""What the command ``nfsrwlock timeline`` makes of the facts: a picture, a page, tables on the terminal, JSON."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Final

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.text import console, duration, one_line, printable, say
from nfsrwlock.timeline.drawing import Bar, Mark, Row, draw
from nfsrwlock.timeline.facts import Facts, Process, Span, read

#: Lines of a table, on a page and on a terminal.
_LINES_MOST, _LINES_ON_TERMINAL = 200, 10
_DOING: Final = {"read": "shared", "write": "exclusive"}
#: Shifts of a clock that are too small to be worth a word, seconds.
_AGREE_S: Final = 0.05

#: A heading, the names of the columns, and the rows.
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def timeline(
    paths: Sequence[str], out: str | None, *, lock: str | None, begin: str | None, end: str | None, as_json: bool
) -> int:
    """Read the record in ``paths`` and write what is asked for; return the exit code."""
    everything = read(paths)
    for reason, count in everything.skipped.items():
        say(f"{count} {reason}: left out")
    if not everything.processes:
        raise CliError(
            f"{', '.join(paths)}: nothing is recorded there. Set NFSRWLOCK_TRACE to the absolute path of a directory "
            "for the processes that use the locks, run them, and name that directory here"
        )
    lock = lock and os.path.abspath(lock)
    facts = everything.only(lock, _moment(begin, everything), _moment(end, everything))
    if not facts.processes:
        there = sorted({span.lock.removesuffix(".rwlock") for span in everything.holds + everything.waits})
        more = f" of {lock}; the record knows {', '.join(there[:5])}" if lock else ""
        raise CliError(f"nothing was held or awaited{more} in that time")
    if out is not None:
        picture = page(facts) if out.endswith((".html", ".htm")) else svg(facts)
        Path(out).write_text(picture, encoding="utf-8", errors="replace")
    if as_json:
        print(json.dumps(_plain(facts), indent=2))
    elif out is None:
        _print(facts)
    return Exit.OK


def _moment(text: str | None, facts: Facts) -> float | None:
    if text is None:
        return None
    try:
        if text.startswith("+"):
            return facts.begin + float(text)
        if ":" in text and "-" not in text:  # of the day on which it begins
            text = f"{datetime.fromtimestamp(facts.begin).astimezone().date()} {text}"
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        example = "2026-05-01 14:30:00, 14:30:00, or +90 (seconds after the beginning)"
        raise CliError(f"{text!r} is no time; write it as {example}") from None


def svg(facts: Facts, title: str = "") -> str:
    """Return the picture, as the text of an SVG file."""
    order = sorted(facts.processes, key=lambda process: (process.host, process.job, process.pid))
    place = {process: number for number, process in enumerate(order)}
    rows = [Row(_label(process), process.host) for process in order]
    bars = [
        Bar(place[one.process], one.begin, one.end, "wait", _title(one, "waits for"), one.lock) for one in facts.waits
    ]
    marks = []
    by_token = {hold.token: hold for hold in facts.holds}
    for hold in facts.holds:
        row = place[hold.process]
        bars.append(Bar(row, hold.begin, hold.end, _DOING.get(hold.mode, "shared"), _title(hold, "holds"), hold.lock))
        bars += [Bar(row, first, last, "doubt", "its lease had run out", hold.lock) for first, last in hold.doubts]
        if hold.ending in ("lost", "evicted"):
            marks.append(Mark(row, hold.end, "kill"))
    marks += [
        Mark(place[by_token[one.token].process], one.at, "free", f"evicted by {one.by}")
        for one in facts.evictions
        if one.token in by_token
    ]
    waited = sum(wait.seconds for wait in facts.waits)
    began = datetime.fromtimestamp(facts.begin).astimezone().isoformat(" ", "seconds")
    note = f"From {began}. {len(facts.holds)} holds, {duration(waited)} of waiting. {_clocks(facts)}"
    return draw(rows, bars, marks, title=title or _heading(facts), note=note, begin=facts.begin, end=facts.end)


def _heading(facts: Facts) -> str:
    locks = {span.lock for span in (*facts.holds, *facts.waits)}
    hosts = len({process.host for process in facts.processes})
    what = locks.pop().removesuffix(".rwlock") if len(locks) == 1 else f"{len(locks)} locks"
    return f"{what}: {_many(len(facts.processes), 'process', 'processes')} on {_many(hosts, 'host', 'hosts')}"


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _label(process: Process) -> str:
    name = f"job {process.job}" if process.job else os.path.basename(process.command.partition(" ")[0])
    return f"{name[:14]} {process.pid}".strip()


def _title(span: Span, does: str) -> str:
    number = "" if span.generation is None else f", generation {span.generation}"
    limit = f", one of {span.at_most}" if span.at_most else ""
    task = f", {span.task}" if span.task else ""
    lock = span.lock.removesuffix(".rwlock")
    return f"{span.process} {does} {lock} ({_DOING.get(span.mode, span.mode)}{limit}){number}{task}, {span.ending}"


def _clocks(facts: Facts) -> str:
    moved = [
        f"that of {one.host} by {one.seconds:+.2f} s (anything from {one.at_least:+.2f} to {one.at_most:+.2f} fits)"
        for one in facts.shifts
        if abs(one.seconds) > _AGREE_S
    ]
    return f"Clocks set by the order of grants: {'; '.join(moved)}." if moved else ""


def tables(facts: Facts) -> list[Table]:
    """Return what there is to say in words: locks by total wait, who kept whom waiting, longest holds, evictions."""
    locks: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0, 0, 0])
    for wait in facts.waits:
        its = locks[wait.lock]
        its[:3] = its[0] + wait.seconds, max(its[1], wait.seconds), its[2] + 1
    for hold in facts.holds:
        locks[hold.lock][3 if hold.mode == "read" else 4] += 1
    pairs: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for wait, whom, seconds in facts.blockers():
        pairs[whom, str(wait.process), wait.lock] += seconds
    busiest = sorted(locks.items(), key=lambda pair: -pair[1][0])
    longest = sorted(facts.holds, key=lambda hold: -hold.seconds)

    def path(lock: str) -> str:
        return lock.removesuffix(".rwlock")

    return [
        (
            "Locks by total wait",
            ("lock", "waited in all", "longest", "waits", "shared", "exclusive"),
            [(path(lock), duration(its[0]), duration(its[1]), *(f"{n:g}" for n in its[2:])) for lock, its in busiest],
        ),
        (
            "Who kept whom waiting longest",
            ("who held", "who waited", "lock", "for"),
            [
                (*names[:2], path(names[2]), duration(seconds))
                for names, seconds in sorted(pairs.items(), key=lambda pair: -pair[1])
            ],
        ),
        (
            "Longest holds",
            ("who", "lock", "mode", "task", "held", "ended"),
            [
                (
                    str(one.process),
                    path(one.lock),
                    _DOING.get(one.mode, "?"),
                    one.task,
                    duration(one.seconds),
                    one.ending,
                )
                for one in longest
            ],
        ),
        (
            "Evictions",
            ("after", "who was evicted", "lock", "by"),
            [(duration(one.at - facts.begin), one.whom, path(one.lock), str(one.by)) for one in facts.evictions],
        ),
    ]


def _print(facts: Facts) -> None:
    from rich.table import Table as Columns  # noqa: PLC0415 - a picture needs none
    from rich.text import Text  # noqa: PLC0415

    to = console(160)
    to.print(Text(printable(f"{_heading(facts)}, {duration(facts.end - facts.begin)}. {_clocks(facts)}".strip())))
    for heading, names, rows in tables(facts):
        if rows:
            table = Columns(box=None, padding=(0, 2, 0, 0), header_style="dim", title=heading, title_justify="left")
            for name in names:
                table.add_column(name, overflow="fold")
            for row in rows[:_LINES_ON_TERMINAL]:
                table.add_row(*(Text(one_line(cell)) for cell in row))
            to.print(table)


def _plain(facts: Facts) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [one(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    kept = [{"by": by, "waiting": asdict(wait), "seconds": seconds} for wait, by, seconds in facts.blockers()]
    return {"v": 1, **one(asdict(facts)), "kept_waiting": one(kept)}


def page(facts: Facts) -> str:
    """Return the picture and the tables as one HTML file, which needs no network."""
    locks = sorted({span.lock for span in (*facts.holds, *facts.waits)})
    hosts = sorted({process.host for process in facts.processes})
    parts = []
    for heading, names, rows in tables(facts):
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows[:_LINES_MOST])
        parts.append(f"<h2>{heading}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    words = {
        "TITLE": _safe(_heading(facts)),
        "LOCKS": "".join(
            f'<option value="{_safe(lock)}">{_safe(lock.removesuffix(".rwlock"))}</option>' for lock in locks
        ),
        "HOSTS": "".join(f"<option>{_safe(host)}</option>" for host in hosts),
        "PICTURE": svg(facts),
        "TABLES": "".join(parts),
    }
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"<!--{name}-->", value)
    return text


def _safe(text: str) -> str:
    return escape(printable(text))
