"""What is made of the facts: a picture, a page, tables on the terminal, JSON."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Final

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.text import console, duration, one_line, printable, say
from nfsrwlock_timeline.drawing import Bar, Mark, draw
from nfsrwlock_timeline.facts import Eviction, Facts, Span, read

#: Lines of a table, on a page and on a terminal.
_LINES_MOST, _LINES_ON_TERMINAL = 200, 10
_DOING: Final = {"read": "shared", "write": "exclusive"}
#: Shifts of a clock that are too small to be worth a word, seconds.
_AGREE_S: Final = 0.05


def timeline(
    paths: Sequence[str], out: str | None, *, lock: str | None, begin: str | None, end: str | None, as_json: bool
) -> int:
    """Read the record in ``paths`` and write what is asked for; return the exit code."""
    everything = read(paths)
    if everything is None:
        raise CliError(
            f"{', '.join(paths)}: nothing is recorded there. Set NFSRWLOCK_TRACE to the absolute path of a directory "
            "for the processes that use the locks, run them, and name that directory here"
        )
    for reason, count in everything.skipped.items():
        say(f"{count} {reason}: left out")
    lock = lock and os.path.abspath(lock)
    facts = everything.only(lock, _moment(begin, everything), _moment(end, everything))
    if not facts.processes:
        there = sorted({_path(span) for span in everything.holds + everything.waits})
        more = f" of {lock}; the record knows {', '.join(there[:5])}" if lock else ""
        raise CliError(f"nothing was held or awaited{more} in that time")
    if out is not None:
        picture = page(facts) if out.endswith((".html", ".htm")) else svg(facts)
        Path(out).write_text(picture, encoding="utf-8", errors="replace")
    if as_json:
        kept = [{"by": by, "waiting": wait, "seconds": seconds} for wait, by, seconds in facts.blockers()]
        shown = {"v": 1, **_plain(facts), "processes": _plain(facts.processes), "kept_waiting": _plain(kept)}
        print(json.dumps(shown, indent=2))
    elif out is None:
        _print(facts)
    return Exit.OK


def _moment(text: str | None, facts: Facts) -> float | None:
    if text is None:
        return None
    try:
        if text.startswith("+"):
            return facts.begin + float(text)
        day = "" if "-" in text else f"{datetime.fromtimestamp(facts.begin).astimezone().date()} "
        return datetime.fromisoformat(day + text).astimezone().timestamp()
    except (ValueError, OverflowError):
        example = "2026-05-01 14:30:00, 14:30:00, or +90 (seconds after the beginning)"
        raise CliError(f"{text!r} is no time; write it as {example}") from None


def svg(facts: Facts) -> str:
    """Return the picture, as the text of an SVG file."""
    place = {process: number for number, process in enumerate(facts.processes)}
    rows = []
    for process in place:
        name = f"job {process.job}" if process.job else os.path.basename(process.command.partition(" ")[0])
        rows.append((process.host, f"{name[:14]} {process.pid}".strip()))
    bars = [
        Bar(place[one.process], one.begin, one.end, "wait", _title(one, "waits for"), _path(one)) for one in facts.waits
    ]
    marks, row_of = [], {hold.token: place[hold.process] for hold in facts.holds}
    for hold in facts.holds:
        row, style = place[hold.process], _DOING.get(hold.mode, "shared")
        bars.append(Bar(row, hold.begin, hold.end, style, _title(hold, "holds"), _path(hold)))
        bars += [Bar(row, first, last, "doubt", "its lease had run out", _path(hold)) for first, last in hold.doubts]
        marks += [Mark(row, hold.end, "kill")] if hold.ending in ("lost", "evicted", "never released") else []
    for one in facts.evictions:
        marks += [Mark(row_of[one.token], one.at, "free", f"evicted by {one.by}")] if one.token in row_of else []
    began = datetime.fromtimestamp(facts.begin).astimezone().isoformat(" ", "seconds")
    note = f"From {began}. {len(facts.holds)} holds, {duration(sum(one.seconds for one in facts.waits))} of waiting."
    note = f"{note} {_clocks(facts)}"
    return draw(rows, bars, marks, title=_heading(facts), note=note, begin=facts.begin, end=facts.end)


def _path(it: Span | Eviction) -> str:
    """Return what the lock is for, relative to the current directory where it lies below it."""
    return it.lock.removesuffix(".rwlock").removeprefix(os.path.join(os.getcwd(), ""))


def _heading(facts: Facts) -> str:
    paths = {_path(span) for span in (*facts.holds, *facts.waits)}
    hosts, processes = len({process.host for process in facts.processes}), len(facts.processes)
    what = paths.pop() if len(paths) == 1 else f"{len(paths)} locks"
    return f"{what}: {processes} process{'es'[: 2 * (processes > 1)]} on {hosts} host{'s'[: hosts > 1]}"


def _title(span: Span, does: str) -> str:
    number = "" if span.generation is None else f", generation {span.generation}"
    limit = f", one of {span.at_most}" if span.at_most else ""
    task = f", {span.task}" if span.task else ""
    mode = _DOING.get(span.mode, span.mode)
    return f"{span.process} {does} {_path(span)} ({mode}{limit}){number}{task}, {span.ending}"


def _clocks(facts: Facts) -> str:
    moved = [
        f"that of {one.host} by {one.seconds:+.2f} s (anything from {one.at_least:+.2f} to {one.at_most:+.2f} fits)"
        for one in facts.shifts
        if abs(one.seconds) > _AGREE_S
    ]
    return f"Clocks set by the order of grants: {'; '.join(moved)}." if moved else ""


def tables(facts: Facts) -> dict[str, list[tuple[str, ...]]]:
    """Return what there is to say in words, by headings: names of columns, then the rows."""
    waits: defaultdict[str, list[float]] = defaultdict(list)
    for wait in facts.waits:
        waits[_path(wait)].append(wait.seconds)
    grants = Counter((_path(hold), hold.mode) for hold in facts.holds)
    paths = sorted({*waits, *(path for path, _ in grants)}, key=lambda path: -sum(waits[path]))
    pairs: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for wait, whom, seconds in facts.blockers():
        pairs[whom, str(wait.process), _path(wait)] += seconds
    longest = sorted(facts.holds, key=lambda hold: -hold.seconds)
    return {
        "Locks by total wait": [
            ("lock", "waited in all", "longest", "waits", "shared", "exclusive"),
            *(
                (
                    *(path, duration(sum(waits[path])), duration(max(waits[path], default=0.0)), f"{len(waits[path])}"),
                    *(f"{grants[path, mode]}" for mode in ("read", "write")),
                )
                for path in paths
            ),
        ],
        "Who kept whom waiting longest": [
            ("who held", "who waited", "lock", "for"),
            *((*names, duration(seconds)) for names, seconds in sorted(pairs.items(), key=lambda pair: -pair[1])),
        ],
        "Longest holds": [
            ("who", "lock", "mode", "task", "held", "ended"),
            *(
                (str(one.process), _path(one), _DOING.get(one.mode, "?"), one.task, duration(one.seconds), one.ending)
                for one in longest
            ),
        ],
        "Evictions": [
            ("after", "who was evicted", "lock", "by"),
            *((duration(one.at - facts.begin), one.whom, _path(one), str(one.by)) for one in facts.evictions),
        ],
    }


def _print(facts: Facts) -> None:
    from rich.table import Table  # noqa: PLC0415 - a picture needs none
    from rich.text import Text  # noqa: PLC0415

    to = console(160)
    to.print(Text(printable(f"{_heading(facts)}, {duration(facts.end - facts.begin)}. {_clocks(facts)}".strip())))
    for heading, (names, *rows) in tables(facts).items():
        table = Table(*names, box=None, padding=(0, 2, 0, 0), header_style="dim", title=heading, title_justify="left")
        for row in rows[:_LINES_ON_TERMINAL]:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        if rows:
            to.print(table)


def _plain(value: Any) -> Any:
    # For JSON, which has no infinite numbers.
    if isinstance(value, Facts | Span):
        value = asdict(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(facts: Facts) -> str:
    """Return the picture and the tables as one HTML file, which needs no network."""

    def row(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{_safe(cell)}</{kind}>' for cell in cells)}</tr>"

    parts = []
    for heading, (names, *rows) in tables(facts).items():
        body = "".join(row(cells, "td") for cells in rows[:_LINES_MOST])
        parts.append(f"<h2>{heading}</h2><table><thead>{row(names, 'th')}</thead><tbody>{body}</tbody></table>")
    locks = sorted({_path(span) for span in (*facts.holds, *facts.waits)})
    hosts = sorted({process.host for process in facts.processes})
    words = {
        "TITLE": _safe(_heading(facts)),
        "LOCKS": "".join(f"<option>{_safe(lock)}</option>" for lock in locks),
        "HOSTS": "".join(f"<option>{_safe(host)}</option>" for host in hosts),
        "PICTURE": svg(facts),
        "TABLES": "".join(parts),
    }
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"<!--{name}-->", value, 1)
    return text


def _safe(text: str) -> str:
    return escape(printable(text))
