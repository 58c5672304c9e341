"""``nfsrwlock timeline``: what it finds in records of real processes, and in files written for the purpose."""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, wait_until
from adapters.cli_scene import Scene, scene

__all__ = ["scene"]

SVG = "{http://www.w3.org/2000/svg}"
#: The epoch of the tests, and when the host was booted.
WALL, BOOT = 1_790_000_000.0, 1_789_990_000.0

Step = dict[str, Any]


def timeline(scene: Scene, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return scene.run("timeline", *arguments, **environment)


def write_trace(directory: Path, host: str, pid: int, /, *steps: Step, lead: float = 0.0, **head: Any) -> Path:
    """
    Write the file of one process.

    :param steps: of a file, with the true time of each, ``at``
    :param lead: how far the host's clock is ahead, seconds
    """
    directory.mkdir(exist_ok=True)
    path = directory / f"{host}.{pid}.1.a.jsonl"
    first = {
        "at": 0.0,
        "v": 1,
        "event": "process",
        "host": host,
        "pid": pid,
        "boot": host,
        "command": "work.py",
        **head,
    }
    with path.open("w") as file:
        for step in (first | head, *steps):
            at = WALL + step["at"]
            facts = {name: value for name, value in step.items() if name != "at"}
            file.write(json.dumps({"time": at + lead, "clock": at - BOOT, **facts}) + "\n")
    return path


def hold(
    token: str, begin: float, end: float | None = None, *, lock: str = "/data", number: int = 0, **more: Any
) -> list[Step]:
    """The steps of a hold, exclusive if it has a number."""
    mode: dict[str, Any] = {"mode": "write", "generation": number} if number else {"mode": "read"}
    granted = {
        "at": begin,
        "event": "granted",
        "lock": f"{lock}.rwlock",
        "attempt": token,
        "token": token,
        "waited": 0.0,
    }
    released = [] if end is None else [{"at": end, "event": "released", "token": token, "stood": True}]
    return [granted | mode | more, *released]


def asked(token: str, at: float, *by: str, mode: str = "write", lock: str = "/data") -> Step:
    peers = [{"mode": "write", "token": peer, "host": "x", "pid": 1} for peer in by]
    return {"at": at, "event": "asked", "lock": f"{lock}.rwlock", "mode": mode, "attempt": token, "by": peers}


def facts(scene: Scene, *arguments: str) -> dict[str, Any]:
    result = timeline(scene, "trace", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_the_record_of_real_processes_says_what_happened(stage: Stage, scene: Scene) -> None:
    code = "lock = SoftReadWriteLock('data', poll_interval=0.01)"
    trace = str(stage.directory / "trace")
    first, second = (stage.actor(code, NFSRWLOCK_TRACE=trace, SLURM_JOB_ID=job) for job in "78")
    dead = stage.actor(code, NFSRWLOCK_TRACE=trace)
    first.do("lock.acquire_write()")
    second.tell("lock.acquire_read()")
    wait_until(lambda: '"asked"' in "".join(path.read_text() for path in Path(trace).glob("*")))
    first.do("lock.release()")
    second.answer()
    second.do("lock.release()")
    dead.do("lock.acquire_write()")
    wait_until(lambda: any('"granted"' in path.read_text() for path in Path(trace).glob(f"*.{dead.pid}.*")))
    dead.kill()
    first.do("lock.acquire_read()")
    assert first.leave() == second.leave() == 0

    known = facts(scene)
    shape = [(one["process"]["pid"], one["mode"], one["ending"]) for one in known["holds"]]
    assert shape == [
        (first.pid, "write", "released"),
        (second.pid, "read", "released"),
        (dead.pid, "write", "evicted"),
        (first.pid, "read", "released"),
    ]
    times = [(one["begin"], one["end"]) for one in known["holds"]]
    assert [end > begin for begin, end in times] == [True] * 4
    assert times[0][1] <= times[1][0] + 0.05
    assert known["waits"][0]["process"]["pid"] == second.pid
    assert known["waits"][0]["ending"] == "granted"
    kept = known["kept_waiting"][0]
    assert (f"pid {first.pid} (job 7)" in kept["by"], kept["waiting"]["process"]["pid"]) == (True, second.pid)
    (eviction,) = known["evictions"]
    assert eviction["whom"].endswith(f"pid {dead.pid}")
    assert eviction["by"]["pid"] == first.pid
    assert known["skipped"] == {}


def test_what_run_holds_is_recorded_to_its_end(scene: Scene) -> None:
    for _ in range(5):
        run = scene.run("run", "--write", "data", "--", "true", NFSRWLOCK_TRACE=str(scene.directory / "trace"))
        assert (run.returncode, run.stderr) == (0, "")
    scene.wait_for(lambda: not scene.processes())
    known = facts(scene)
    assert [(one["generation"], one["ending"]) for one in known["holds"]] == [(n + 1, "released") for n in range(5)]
    assert known["holds"][0]["process"]["command"] == "nfsrwlock run --write data -- true"


def test_what_break_removes_is_recorded(scene: Scene) -> None:
    scene.hold("write")
    broken = scene.run("break", "--yes", "--force", "data", NFSRWLOCK_TRACE=str(scene.directory / "trace"))
    assert broken.returncode == 0, broken.stderr
    (file,) = (scene.directory / "trace").iterdir()
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["process", "evicted"]


def test_the_picture_shows_rows_by_host_holds_waits_and_evictions(scene: Scene) -> None:
    trace = scene.directory / "trace"
    write_trace(trace, "a", 1, *hold("t1", 1, 3, number=1, task={"rule": "align"}), job="77")
    write_trace(trace, "b", 2, asked("t2", 2, "t1"), *hold("t2", 3.1, number=2))
    evicted = {"at": 6, "event": "evicted", "lock": "/data.rwlock", "whom": {"token": "t2", "host": "b", "pid": 2}}
    write_trace(trace, "a", 3, evicted, *hold("t3", 6.1, 7, lock="/data", at_most=3))
    result = timeline(scene, "trace", "-o", "out.svg")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    picture = ET.parse(scene.directory / "out.svg").getroot()
    words = [element.text or "" for element in picture.iter(f"{SVG}text")]
    assert {"a", "b", "job 77 1", "work.py 2", "work.py 3", "evicted by a pid 3"} <= set(words)
    assert words.index("a") < words.index("b")
    titles = {
        str(bar.get("class")): str(bar.findtext(f"{SVG}title"))
        for bar in picture.iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    }
    assert titles["wait"].startswith("b pid 2 waits for /data (exclusive), granted, 1.10 s")
    assert "a pid 3 holds /data (shared, one of 3), released" in titles["shared"]
    exclusive = [bar.findtext(f"{SVG}title") for bar in picture.iter(f"{SVG}rect") if bar.get("class") == "exclusive"]
    assert any("a pid 1 (job 77) holds /data (exclusive), generation 1, rule align" in str(text) for text in exclusive)
    assert any("generation 2, evicted, 2.90 s" in str(text) for text in exclusive)
    assert "prefers-color-scheme: dark" in str(picture.findtext(f"{SVG}style"))
    assert any(line.get("class") == "kill" for line in picture.iter(f"{SVG}line"))


class Page(HTMLParser):
    """The tables of a page, and where it would go for more."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "data-src", "srcset")]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data)


def test_the_page_is_one_file_with_tables(scene: Scene) -> None:
    trace = scene.directory / "trace"
    write_trace(trace, "a", 1, *hold("t1", 1, 3, number=1), *hold("t4", 4, 4.5, lock="/more", number=1))
    write_trace(trace, "b", 2, asked("t2", 2, "t1"), *hold("t2", 3, 3.5, number=2))
    assert timeline(scene, "trace", "-o", "out.html").returncode == 0
    text = (scene.directory / "out.html").read_text()
    page = Page(text)
    assert page.links == []
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert "svg" in page.tags
    assert ["/data", "1 s", "1 s", "1", "0", "2"] in page.rows
    assert ["a pid 1", "b pid 2", "/data", "1 s"] in page.rows
    assert ["a pid 1", "/data", "exclusive", "2 s", "released"] in page.rows


def test_the_terminal_gets_the_tables(scene: Scene) -> None:
    trace = scene.directory / "trace"
    write_trace(trace, "a", 1, *hold("t1", 1, 3, number=1))
    write_trace(trace, "b", 2, asked("t2", 2, "t1"), *hold("t2", 3, 3.5, number=2))
    result = timeline(scene, "trace")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "/data: 2 processes on 2 hosts, 2.5 s."
    assert "/data 1 s 1 s 1 0 2" in lines
    assert "a pid 1 b pid 2 /data 1 s" in lines
    assert "Evictions" not in lines


def test_paths_below_the_current_directory_are_named_relative_to_it_but_not_for_programs(scene: Scene) -> None:
    trace, data, beside = scene.directory / "trace", f"{scene.directory}/sub/data", f"{scene.directory}-2/data"
    steps = (*hold("t1", 1, 2, lock=data, number=1), *hold("t2", 3, 4, lock=beside, number=1))
    write_trace(trace, "a", 1, asked("t1", 0, lock=data), *steps)
    assert timeline(scene, "trace", "-o", "out.html").returncode == 0
    text = (scene.directory / "out.html").read_text()
    rows = Page(text).rows
    assert ["a pid 1", "sub/data", "exclusive", "1 s", "released"] in rows
    assert ["a pid 1", beside, "exclusive", "1 s", "released"] in rows
    assert "<option>sub/data</option>" in text
    assert set(re.findall('data-lock="([^"]*)"', text)) == {"sub/data", beside}
    assert f"{scene.directory}/" not in text
    assert "sub/data" in timeline(scene, "trace").stdout
    assert {one["lock"] for one in facts(scene)["holds"]} == {f"{data}.rwlock", f"{beside}.rwlock"}


@pytest.mark.parametrize("lead", [-300.0, 0.0, 7.5])
def test_clocks_that_differ_are_set_by_the_order_of_grants(scene: Scene, lead: float) -> None:
    trace = scene.directory / "trace"
    # They take turns, each right after the other; no clock needs to be asked for that.
    turns = range(0, 20, 2)
    write_trace(trace, "a", 1, *(s for n in turns for s in hold(f"a{n}", n, n + 0.9, number=n + 1)))
    its = (
        step for n in turns for step in (asked(f"b{n}", n + 0.5, f"a{n}"), *hold(f"b{n}", n + 1, n + 1.9, number=n + 2))
    )
    write_trace(trace, "b", 2, *its, lead=lead)
    known = facts(scene)
    order = sorted(known["holds"], key=lambda one: float(one["begin"]))
    assert [one["generation"] for one in order] == list(range(1, 21))
    fixed, moved = known["shifts"]
    assert (fixed["host"], fixed["seconds"], moved["host"]) == ("b", 0, "a")
    assert moved["seconds"] == pytest.approx(lead, abs=0.2)
    assert moved["at_least"] <= lead <= moved["at_most"]
    assert ("Clocks set by the order of grants" in timeline(scene, "trace").stdout) == (lead != 0)


def test_what_cannot_be_read_is_left_out_and_counted(scene: Scene) -> None:
    trace = scene.directory / "trace"
    path = write_trace(trace, "a", 1, *hold("t1", 1, 3, number=1))
    write_trace(trace, "b", 2, *hold("t2", 3, 4, number=2), v=2)
    with path.open("ab") as file:
        file.write(b"\n\x00\xff junk\n[1]\n{}\n" + b"[" * 100_000 + b'\n{"time": NaN, "clock": 1, "event": "lost"}\n')
        file.write(b'{"time": "1", "clock": 5')
    write_trace(
        trace, "c", 3, *hold("t3", 1, None, number=5, by="?"), {"at": 2, "event": "asked", "lock": 5, "by": [7]}
    )
    (trace / "notes.txt").write_text("no record")
    result = timeline(scene, "trace", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["skipped"] == {
        "files of a newer version": 1, "half a last line": 1, "lines that are no records": 5
    }  # fmt: skip
    assert "nfsrwlock: 5 lines that are no records: left out" in result.stderr
    for output in ("out.svg", "out.html"):
        assert timeline(scene, "trace", "-o", output).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "No such file"),
        (["empty"], "Set NFSRWLOCK_TRACE to the absolute path of a directory"),
        (["trace", "--lock", "other"], "nothing was held or awaited of"),
        (["trace", "--from", "noon"], "'noon' is no time; write it as"),
        (["trace", "--from", "+5000"], "nothing was held or awaited in that time"),
        (["trace", "-o", "nowhere/out.svg"], "No such file"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(scene: Scene, arguments: list[str], words: str) -> None:
    write_trace(scene.directory / "trace", "a", 1, *hold("t1", 1, 3, number=1))
    (scene.directory / "empty").mkdir()
    result = timeline(scene, *arguments)
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_one_lock_and_a_part_of_the_time_can_be_asked_for(scene: Scene) -> None:
    trace = scene.directory / "trace"
    data = str(scene.directory / "data")
    write_trace(trace, "a", 1, *hold("t1", 0, 3, lock=data), *hold("t2", 4, 5, lock=data), *hold("t3", 4, 5))
    assert [one["token"] for one in facts(scene, "--lock", "data")["holds"]] == ["t1", "t2"]
    assert [one["token"] for one in facts(scene, "--from", "+3.5")["holds"]] == ["t2", "t3"]
    assert [one["token"] for one in facts(scene, "--to", "+3.5")["holds"]] == ["t1"]
    environment = {"TZ": "UTC"}
    begin = timeline(scene, "trace", "--from", "2026-09-21T14:13:23.5Z", "--json", **environment)
    assert [one["token"] for one in json.loads(begin.stdout)["holds"]] == ["t2", "t3"]


def test_a_permit_that_is_granted_while_others_are_held_sets_no_clock(scene: Scene) -> None:
    trace = scene.directory / "trace"
    write_trace(trace, "a", 1, *hold("t1", 0, 1, at_most=2), *hold("t2", 0.5, 9, at_most=2))
    by = [{"mode": "read", "token": token, "host": "a", "pid": 1} for token in ("t1", "t2")]
    write_trace(trace, "b", 2, *hold("t3", 1.1, 3, at_most=2, by=by))
    assert [one["seconds"] for one in facts(scene)["shifts"]] == [0, 0]


def test_a_hold_without_an_end_ends_before_the_next_that_excludes_it(scene: Scene) -> None:
    trace = scene.directory / "trace"
    write_trace(trace, "a", 1, *hold("t1", 1, None, number=1))
    write_trace(trace, "b", 2, *hold("t2", 5, 6), *hold("t3", 7, None, number=2))
    ends = {one["token"]: (one["ending"], one["end"] - WALL) for one in facts(scene)["holds"]}
    assert ends["t1"] == ("never released", pytest.approx(5))
    assert ends["t3"] == ("open", pytest.approx(7))
    assert timeline(scene, "trace", "-o", "out.svg").returncode == 0
    lines = [line.get("class") for line in ET.parse(scene.directory / "out.svg").getroot().iter(f"{SVG}line")]
    assert "kill" in lines


def test_five_hundred_processes_fit_into_a_picture_that_a_browser_opens(scene: Scene) -> None:
    trace = scene.directory / "trace"
    for pid in range(500):
        steps = [step for n in range(200) for step in hold(f"{pid}-{n}", n + pid / 500, n + pid / 500 + 0.5)]
        write_trace(trace, f"node{pid % 10}", pid, *steps)
    assert timeline(scene, "trace", "-o", "out.svg").returncode == 0
    path = scene.directory / "out.svg"
    assert path.stat().st_size < 8_000_000
    picture = ET.parse(path).getroot()
    assert 1500 < float(picture.get("height", "0")) < 4000
    words = {element.text for element in picture.iter(f"{SVG}text")}
    assert {f"node{number}: 50" for number in range(10)} <= words
    assert len(words) < 60


def test_nothing_that_others_wrote_becomes_markup(scene: Scene) -> None:
    trace = scene.directory / "trace"
    evil = '</script><script>alert(1)</script>"\x1b[31m\u202e\x00'
    write_trace(trace, "a", 1, asked("t0", 0, lock=f"/{evil}"), *hold("t1", 1, 3, lock=f"/{evil}", task={evil: evil}),
                host=evil, command=evil, job=evil, user=evil)  # fmt: skip
    for output in ("out.svg", "out.html"):
        assert timeline(scene, "trace", "-o", output).returncode == 0
    ET.parse(scene.directory / "out.svg")
    text = (scene.directory / "out.html").read_text()
    assert Page(text).tags.count("script") == 1
    for bad in ("<script>alert", "\x1b", "\u202e", "\x00"):
        assert bad not in text
    assert "\x1b" not in timeline(scene, "trace").stdout
