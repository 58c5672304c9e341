"""Results for people: tables in Markdown, a table of ratios for the README, a summary for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import plot, targets
from benchmarks.contenders import KINDS
from benchmarks.measurements import Record
from benchmarks.results import Document, find, first

_BEGIN: Final = "<!-- benchmarks: written by make bench-nfs -->"
_END: Final = "<!-- end of benchmarks -->"
_README_PLACES: Final = ("nfs4.2", "nfs4.2-1ms", "nfs3")


def page(document: Document) -> str:
    """All tables."""
    parts = [_conditions(document), _targets(document)]
    parts += [
        section(document)
        for section in (
            *(_uncontended, _start, _cache, _contended, _storm, _writer),
            *(_handover, _waiters, _holders, _recovery, _growth),
        )
    ]
    return "\n".join(part for part in parts if part)


def draw(document: Document, directory: Path) -> None:
    """Write the plot."""
    (directory / "results.svg").write_text(plot.figure(document))


def summary(document: Document) -> str:
    """The shortest table, for the terminal."""
    lines = []
    for place, facts in document["places"].items():
        records = list(find(document, "uncontended", place))
        if records:
            lines.append(f"{facts['label']}: acquire + release, medians")
        for record in records:
            count = f"{record['requests']:8.1f} requests" if "requests" in record else ""
            lines.append(
                f"  {KINDS[record['contender']].label:34} {_ms(record['seconds'].get('median')):>9} ms {count}"
            )
    lines += [f"{'met   ' if t.is_met else 'MISSED'} {t.text}: {t.figure}" for t in targets.judge(document)]
    return "".join(f"{line}\n" for line in lines)


def update_readme(document: Document, path: Path) -> None:
    """
    Put the table of ratios between the two marks in a file.

    :raises ValueError: if the marks are not there
    """
    text = path.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table: {_BEGIN} ... {_END}")
    path.write_text(f"{before}{begin}\n{_ratios(document)}{end}{after}")


def _ratios(document: Document) -> str:
    places = [place for place in _README_PLACES if first(document, "uncontended", place, "nfsrwlock-read")]
    rows = []
    for mode, name, label in (
        ("read", "floor", "the bare floor: mkdir, list, rmdir"),
        ("read", "filelock-read", "filelock `SoftReadWriteLock`"),
        ("write", "filelock-write", "filelock `SoftReadWriteLock`"),
        ("write", "soft", "filelock `SoftFileLock`"),
        ("write", "flufl", "flufl.lock"),
        ("write", "lockf-write", "`lockf`"),
    ):
        cells = [_times(targets.ratio(document, name, f"nfsrwlock-{mode}", place)) for place in places]
        rows.append([f"{mode} and release: {label}", *cells])
    storms = [targets.storm_ratio(document, place) for place in places]
    cells = ["–" if storm is None else f"{'> ' * storm[1]}{_times(storm[0])}" for storm in storms]
    rows.append(["100 readers at one moment, the median's wait: filelock `SoftReadWriteLock`", *cells])
    header = ["times as long as nfsrwlock", *(document["places"][place]["label"] for place in places)]
    return f"Measured with {_versions(document)}.\n\n{_table(header, rows)}\n"


def _times(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


# -- sections ---------------------------------------------------------------------------------------------------------


def _conditions(document: Document) -> str:
    machine = document["machine"]
    pieces = document["pieces"]
    lines = [
        f"{_versions(document)}. {machine['processors']} processors ({machine['processor']}), {machine['system']}"
        + (f"; the NFS server and its four clients: {machine['guests']}." if "guests" in machine else "."),
        f"Measured {_days(pieces)}, {sum(piece.get('seconds', 0) for piece in pieces) / 60:.0f} minutes in all:",
        "",
        *(f"- `{command}`" for command in dict.fromkeys(piece["command"] for piece in pieces)),
        "",
    ]
    trips = [
        f"{facts['label']}: {facts['round trip ms']:g} ms"
        for facts in document["places"].values()
        if facts.get("round trip ms")
    ]
    if trips:
        lines += [f"One round trip to the server, at the least: {'; '.join(trips)}.", ""]
    return "\n".join(lines)


def _versions(document: Document) -> str:
    return ", ".join(f"{name} {version}" for name, version in document["versions"].items())


def _days(pieces: list[dict[str, Any]]) -> str:
    days = sorted({piece["began"][:10] for piece in pieces})
    return "on " + " and ".join(days)


def _targets(document: Document) -> str:
    rows = [
        [target.text, target.figure, "met" if target.is_met else "**missed**"] for target in targets.judge(document)
    ]
    return (
        _section("Targets (NFSv4.2, where none is named)", "", _table(["Target", "Measured", ""], rows)) if rows else ""
    )


def _uncontended(document: Document) -> str:
    places = _places(document, "uncontended")
    rows, requests = [], []
    for name, kind in KINDS.items():
        records = [first(document, "uncontended", place, name) for place in places]
        if any(records):
            rows.append([kind.label, *(_spread(record, "seconds", _ms) for record in records)])
            counted = [record for record in records if record is not None and "requests" in record]
            if counted:
                cells = [f"{record['requests']:.1f}" if _is_counted(record) else "\\*" for record in counted]
                kinds = _kinds(counted[0]["requests by kind"])
                requests.append([kind.label, *cells, kinds])
    if not rows:
        return ""
    text = _section(
        "Uncontended: acquire + release",
        "Milliseconds, median (10 % to 90 %).",
        _table(_header(document, places), rows),
    )
    if requests:
        nfs = [place for place in places if place != "local"]
        header = [*_header(document, nfs), f"by kind, {document['places'][nfs[0]]['label']}"]
        text += "\n" + _section(
            "Uncontended: requests to the server", "A cycle's, on average.", _table(header, requests)
        )
        text += "\n\\* NFSv3 locks by a protocol of its own, which the mount's counters leave out.\n"
    return text


def _is_counted(record: Record) -> bool:
    return bool(record["requests"]) or not record["contender"].startswith("lockf")


def _start(document: Document) -> str:
    records = list(find(document, "start"))
    return _section(
        "Start-up",
        "Milliseconds from a program's start to its end, on a local disk, median (10 % to 90 %).",
        _table(["", ""], [[f"`{record['program']}`", _spread(record, "seconds", _ms)] for record in records])
        if records
        else "",
    )


def _cache(document: Document) -> str:
    rows = []
    for record in find(document, "cache", contender="nfsrwlock"):
        plain = first(document, "cache", record["place"], "joblib", deed=record["deed"])
        times = targets.cache_ratio(document, record["deed"])
        cells = [_spread(one, "seconds", _ms) for one in (plain, record)]
        rows.append([record["deed"], *cells, "–" if times is None else f"{times:.1f}"])
    count = next((str(record["results"]) for record in find(document, "cache")), "")
    return _section(
        f"joblib: {count} small results",
        "Milliseconds for each of the results, which are floats: called in turns when none is stored (miss), and when "
        "all are (hit); then one half is removed by `reduce_size`, and the other by `clear`. Median (10 % to 90 %).",
        _table(["", "joblib's own", "nfsrwlock", "times as long"], rows) if rows else "",
    )


def _contended(document: Document) -> str:
    rows = []
    for record in find(document, "contended"):
        those = f"{record['processes']} processes" if record["threads"] == 1 else f"{record['threads']} threads"
        failed = f" ({record['failed']} failed: {_short(record['error'])})" if record["failed"] else ""
        most = KINDS[record["contender"]].permits / record["hold"]
        requests = f"{record['requests']:.1f}" if "requests" in record and _is_counted(record) else ""
        rows.append(
            [
                _label(document, record),
                _kind(record),
                f"{those}, {record['hold'] * 1000:g} ms",
                f"{_figures(record['cycles per second'])} of {most:g}{failed}",
                f"{record['fewest']}–{record['most']}",
                f"{_ms(record['seconds'].get('median'))} / {_ms(record['longest'])}",
                requests,
            ]
        )
    header = ["", "", "who, and each's hold", "cycles/s", "each's cycles", "wait, ms", "requests a cycle"]
    return _section(
        "Contended: hold, release, and ask again at once",
        "Processes on two clients, or threads of one process with a lock object each, take the lock exclusively, or "
        "one of its permits. "
        "Cycles of all together, of at most so many; of the slowest and the fastest; waits: the median of those that "
        "were granted / the longest, those included that lasted at the end.",
        _table(header, rows) if rows else "",
    )


def _storm(document: Document) -> str:
    places = _places(document, "storm")

    def cell(record: Record | None) -> str:
        if record is None:
            return "–"
        if record["failed"] and not record["granted"]:
            return f"fails: {_short(record['error'])}"
        limit = f"> {record['limit']:g}"
        times = [_s(record[which].get("median")) or limit for which in ("first", "median", "last")]
        failed = f" ({record['failed']} failed: {_short(record['error'])})" if record["failed"] else ""
        missing = f" ({record['granted']} had it)" if record["granted"] + record["failed"] < record["processes"] else ""
        return " / ".join(times) + missing + failed

    processes = next((str(record["processes"]) for record in find(document, "storm")), "")
    return _section(
        f"Storm: {processes} processes ask at one moment",
        "Seconds until the first / the median / the last of them has the lock for reading. A shared lock is kept to "
        "the end; an exclusive one goes from one to the next.",
        _by_place(document, "storm", places, cell),
    )


def _writer(document: Document) -> str:
    places = _places(document, "writer")

    def cell(record: Record | None) -> str:
        if record is None:
            return "–"
        if record.get("error") and not record["seconds"]["n"]:
            return f"fails: {_short(record['error'])}"
        text = _spread(record, "seconds", _s) if record["seconds"]["n"] else ""
        if record["waiting"] is not None:
            text += f"{'; then ' * bool(text)}> {record['waiting']:.1f}"
        return text + (f" ({record['failed']} readers failed)" if record["failed"] else "")

    readers = next((str(record["readers"]) for record in find(document, "writer")), "")
    return _section(
        f"A writer among {readers} readers that come and go",
        "Seconds until the writer has the lock, median (10 % to 90 %). Readers hold for 0.2 s and pause for 0.2 s on "
        "average.",
        _by_place(document, "writer", places, cell),
    )


def _handover(document: Document) -> str:
    records = list(find(document, "handover"))
    columns = sorted({(record["waited"], record["poll"]) for record in records if record["poll"] is not None})
    rows = []
    for place in _places(document, "handover"):
        for name, kind in KINDS.items():
            cells = []
            for number, (waited, poll) in enumerate(columns):
                found = first(document, "handover", place, name, poll=poll if kind.polls else None, waited=waited)
                cells.append("" if found is None or (number and not kind.polls) else _spread(found, "seconds", _s))
            if any(cells):
                rows.append([document["places"][place]["label"], kind.label, *cells])
    header = ["", "", *(f"poll {poll:g} s, waited {waited:g} s" for waited, poll in columns)]
    return _section(
        "Handover: release on one client to grant on another",
        "Seconds, median (10 % to 90 %), for the poll interval and a wait of at least so long before the release. "
        "`lockf` and `flufl.lock` poll as they please.",
        _table(header, rows) if rows else "",
    )


def _waiters(document: Document) -> str:
    rows = []
    for record in find(document, "waiters"):
        if "requests per second" not in record or record["failed"] == record["processes"]:
            rows.append([_label(document, record), _kind(record), f"fails: {_short(record['error'])}", "", "", "", ""])
            continue
        failed = f" ({record['failed']} failed: {_short(record['error'])})" if record["failed"] else ""
        polls = record["polls per second"]
        rows.append(
            [
                _label(document, record),
                _kind(record),
                f"{record['waited']:g} s to {record['waited'] + record['watched']:.0f} s",
                f"{record['requests per second']:g}{failed}",
                "" if polls is None else f"{polls / record['processes']:.2f}",
                "" if polls is None else f"{record['requests per poll']:.2f}",
                _kinds(record["requests by kind"], least=1),
            ]
        )
    processes = next((str(record["processes"]) for record in find(document, "waiters") if "processes" in record), "")
    header = ["", "", "waited", "requests/s", "polls/s of each", "requests a poll", "by kind"]
    return _section(
        f"{processes} waiters",
        "All together, for readers (or the only lock there is) while one holds it exclusively.",
        _table(header, rows) if rows else "",
    )


def _holders(document: Document) -> str:
    rows = []
    for record in find(document, "holders"):
        if record.get("error"):
            rows.append([_label(document, record), _kind(record), f"fails: {_short(record['error'])}", "", "", ""])
            continue
        beat = record["requests per heartbeat"]
        rows.append(
            [
                _label(document, record),
                _kind(record),
                f"{record['requests per second']:g} at one each {record['heartbeat']:g} s",
                f"{beat:.2f}",
                f"{beat * record['processes'] / 30:.1f}",
                _kinds(record["requests by kind"], least=0.1),
            ]
        )
    processes = next((str(record["processes"]) for record in find(document, "holders") if "processes" in record), "")
    header = ["", "", "requests/s", "requests a heartbeat", "requests/s at one each 30 s, by arithmetic", "by kind"]
    return _section(
        f"{processes} idle holders",
        "All together; they hold for reading. Locks without heartbeats cost nothing here, and last as long as somebody "
        "removes them.",
        _table(header, rows) if rows else "",
    )


def _recovery(document: Document) -> str:
    records = list(find(document, "recovery"))
    scenes = list(dict.fromkeys(record["scene"] for record in records))
    rows = []
    for place in _places(document, "recovery"):
        for name, kind in KINDS.items():
            found = [first(document, "recovery", place, name, scene=scene) for scene in scenes]
            if any(found):
                rows.append([document["places"][place]["label"], kind.label, *map(_recovered, found)])
    lease = f"{records[0]['lease']:g}" if records else ""
    return _section(
        "Recovery: from a holder's end to the next grant",
        f"Seconds, median (least to most), with a lease (of flufl.lock: a lifetime) of {lease} s and heartbeats each "
        "second. With the default lease of 90 s, what waits for a lease takes 87 s longer.",
        _table(["", "", *scenes], rows) if rows else "",
    )


def _recovered(record: Record | None) -> str:
    if record is None:
        return "–"
    seconds = record["seconds"]
    if not seconds["n"]:
        return f"fails: {_short(record['error'])}" if record["error"] else f"> {record['limit']:g}"
    if seconds["n"] == 1:
        return str(_s(seconds["median"]))
    return f"{_s(seconds['median'])} ({_s(seconds['min'])} to {_s(seconds['max'])})"


def _growth(document: Document) -> str:
    records = list(find(document, "growth"))
    sizes = sorted({record["readers"] for record in records})
    rows = []
    for place in _places(document, "growth"):
        for name, kind in KINDS.items():
            found = [first(document, "growth", place, name, readers=size) for size in sizes]
            if any(found):
                rows.append([document["places"][place]["label"], kind.label, *map(_grown, found)])
    return _section(
        "Growth: a read cycle among so many readers",
        "Milliseconds, median; requests to the server. The readers are lock objects in three processes on other "
        "clients, and the one that is measured counts. Beyond 100, nfsrwlock's are announcements under names as the "
        "lock makes them, for each real one lists all before it. The floor has as many entries of about that length.",
        _table(["", "", *(f"{size:,}" for size in sizes)], rows) if rows else "",
    )


def _grown(record: Record | None) -> str:
    if record is None:
        return "–"
    if "late" in record:
        return f"not there in {record['late']:g} s"
    if "error" in record:
        return f"fails: {_short(record['error'])}"
    count = f"; {record['requests']:g}" if "requests" in record else ""
    return f"{_ms(record['seconds']['median'])}{count}"


# -- pieces -----------------------------------------------------------------------------------------------------------


def _places(document: Document, measurement: str) -> list[str]:
    there = {record["place"] for record in find(document, measurement)}
    return [place for place in document["places"] if place in there]


def _header(document: Document, places: Iterable[str]) -> list[str]:
    return ["", *(document["places"][place]["label"] for place in places)]


def _label(document: Document, record: Record) -> str:
    return str(document["places"][record["place"]]["label"])


def _kind(record: Record) -> str:
    return KINDS[record["contender"]].label


def _by_place(document: Document, measurement: str, places: list[str], cell: Any) -> str:
    rows = []
    for name, kind in KINDS.items():
        records = [first(document, measurement, place, name) for place in places]
        if any(records):
            rows.append([kind.label, *map(cell, records)])
    return _table(_header(document, places), rows) if rows else ""


def _spread(record: Record | None, values: str, unit: Any) -> str:
    if record is None:
        return "–"
    found = record[values]
    if not found["n"]:
        return f"fails: {_short(record['error'])}" if record.get("error") else "–"
    if found["n"] == 1:
        return str(unit(found["median"]))
    return f"{unit(found['median'])} ({unit(found['p10'])}–{unit(found['p90'])})"


def _short(error: str) -> str:
    return error if len(error) <= 60 else f"{error[:59]}…"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else _figures(seconds * 1000)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else _figures(seconds)


def _figures(value: float) -> str:
    # Three significant ones are more than repeat from run to run.
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3 if abs(value) >= 0.01 else 4
    return f"{value:.{digits}f}"


def _kinds(kinds: dict[str, float], least: float = 0.05) -> str:
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {count:.1f}" for kind, count in ordered if count >= least)


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    return "".join(_lines(header, rows))


def _lines(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (header, ["--"] * len(header), *rows):
        yield "| " + " | ".join(row) + " |\n"


def _section(title: str, text: str, table: str) -> str:
    if not table:
        return ""
    return f"## {title}\n\n{text}{chr(10) * 2 * bool(text)}{table}"
