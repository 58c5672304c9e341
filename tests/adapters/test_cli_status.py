"""``nfsrwlock status`` and ``break``: what people see of a lock, and how an operator removes a dead holder."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors import PATIENCE_S
from adapters.cli_scene import PROGRAM, QUICK, Scene, scene
from nfsrwlock.cli.status import Look
from nfsrwlock.text import duration

__all__ = ["scene"]

TOKEN = "0123456789abcdef" * 2
#: A holder on a host that nobody can look at.
ELSEWHERE = f"write.0000000000000001.{TOKEN}.90000.4711.12345.abcdef0123456789.4294967290.1700000000000.far-away"


def announce(scene: Scene, name: str, path: str = "data") -> None:
    """Put an entry into the lock directory."""
    os.makedirs(
        os.path.join(os.fsencode(scene.directory), os.fsencode(f"{path}.rwlock"), os.fsencode(name)), mode=0o700
    )
    os.chmod(scene.directory / f"{path}.rwlock", 0o700)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-1, "0 s"), (0.44, "0.4 s"), (3.0, "3 s"), (59.9, "59 s"), (60, "1 min"), (200, "3 min 20 s")),
        *((3600, "1 h"), (3605, "1 h"), (7500, "2 h 5 min"), (86400, "1 d"), (360_000, "4 d 4 h")),
    ],
)
def test_a_time_span_is_said_by_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# status


def test_a_lock_that_nobody_ever_took_is_free_and_looking_makes_nothing(scene: Scene) -> None:
    for name in ("data", "more"):
        (scene.directory / name).touch()
    result = scene.run("status", "data", "more")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("free, and never locked so far") == 2
    assert sorted(os.listdir(scene.directory)) == ["data", "more"]


def test_it_shows_holders_and_waiters(scene: Scene) -> None:
    reader = scene.hold("read")
    writer = scene.start("run", "--write", "data", *QUICK, "--", "true")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    lines = scene.run("status", "data").stdout.splitlines()
    assert "shared by 1 reader; 1 waits" in lines[0]
    assert lines[2].split()[0] == "reads"
    assert str(scene.keeper(reader)) in lines[2].split()
    assert lines[3].split()[:3] == ["waits", "to", "write"]
    assert str(scene.keeper(writer)) in lines[3].split()


def test_it_shows_what_runs_long_before_the_first_heartbeat_is_due(scene: Scene) -> None:
    scene.environment["SLURM_JOB_ID"] = "4711"
    scene.hold("write", "data", "--heartbeat", "1000", "--stale", "4000")
    scene.wait_for(lambda: "job 4711: nfsrwlock run --write data" in scene.run("status", "data").stdout)
    (peer,) = scene.state()["holders"]
    assert (peer["job"], peer["command"].split()[:2]) == ("4711", ["nfsrwlock", "run"])


def test_it_shows_at_once_what_holds_for_another_process(scene: Scene) -> None:
    scene.environment["SLURM_JOB_ID"] = "4711"
    other = scene.start("60", program=["sleep"])
    settings = ("--heartbeat", "1000", "--stale", "4000", "--pid", str(other.pid))
    assert scene.run("hold", "--write", "data", *settings).returncode == 0
    scene.wait_for(lambda: "job 4711: nfsrwlock hold --write data" in scene.run("status", "data").stdout)
    other.kill()
    scene.wait_for(lambda: scene.announced() == [])


@pytest.mark.parametrize(("width", "left_out"), [(200, []), (85, ["token"]), (60, ["silent", "evictable", "token"])])
def test_a_narrow_table_says_what_it_leaves_out(scene: Scene, width: int, left_out: list[str]) -> None:
    announce(scene, ELSEWHERE)
    head, row, *rest = scene.run("status", "data", COLUMNS=str(width)).stdout.splitlines()[1:]
    assert "…" not in row, "what does not fit is named, not cut"
    assert [name for name in ("silent", "evictable", "token") if name not in head.split()] == left_out
    note = " ".join(rest)
    assert [name for name in ("silent", "evictable", "token") if name in note] == left_out
    assert bool(left_out) == ("too narrow for: " in note)


def test_what_runs_is_cut_before_a_column_is_left_out(scene: Scene) -> None:
    scene.hold("write", "data", "--heartbeat", "1000", "--stale", "4000")
    scene.wait_for(lambda: scene.state()["holders"][0]["command"])
    head, row = scene.run("status", "data", COLUMNS="110").stdout.splitlines()[1:]
    assert head.split()[-2:] == ["token", "what"]
    assert row.rstrip().endswith("…")


def test_what_the_terminal_s_encoding_lacks_is_shown_escaped(scene: Scene) -> None:
    announce(scene, ELSEWHERE, "€")
    result = scene.run("status", "€", PYTHONIOENCODING="latin-1", COLUMNS="60")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("\\u20ac: held by a writer")


def test_json_is_always_an_array_with_the_fields_of_the_state(scene: Scene) -> None:
    announce(scene, ELSEWHERE)
    (state,) = json.loads(scene.run("status", "--json", "data").stdout)
    assert {"lock_file", "lock_path", "exists", "holders", "waiters", "generation"} <= state.keys()
    (peer,) = state["holders"]
    assert (peer["mode"], peer["token"], peer["host"], peer["pid"], peer["alive"]) == (
        "write",
        TOKEN,
        "far-away",
        4711,
        None,
    )
    assert len(json.loads(scene.run("status", "--json", "data", "data2", "data").stdout)) == 2


def test_hostile_names_are_shown_without_steering_the_terminal(scene: Scene) -> None:
    announce(scene, "write.\x1b[2J\n[red]" + "x" * 200)
    result = scene.run("status", "data")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "unknown format" in result.stdout
    assert "counts as held" in result.stdout


def test_paths_with_newlines_and_undecodable_bytes_are_shown_escaped(scene: Scene) -> None:
    path = os.fsdecode(b"new\nline \xff")
    announce(scene, ELSEWHERE, path)
    result = scene.run("status", os.fsencode(path))
    assert "new\\nline \\xff: held by a writer" in result.stdout
    (state,) = json.loads(scene.run("status", "--json", os.fsencode(path)).stdout)
    assert state["lock_file"] == path


@pytest.mark.parametrize("make", ["file", "link"])
def test_what_is_no_lock_directory_is_an_error_and_the_others_are_shown(scene: Scene, make: str) -> None:
    if make == "file":
        (scene.directory / "bad.rwlock").touch()
    else:
        (scene.directory / "bad.rwlock").symlink_to(scene.directory)
    (scene.directory / "good").touch()
    result = scene.run("status", "bad", "good")
    assert result.returncode == 2
    assert "bad.rwlock" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "good: free" in result.stdout


def test_watching_into_a_pipe_reports_each_change(scene: Scene) -> None:
    watcher = scene.start("status", "--watch", "--json", "data")
    assert watcher.stdout is not None
    changes = (json.loads(line)[0] for line in watcher.stdout)

    def next_holders() -> list[int]:
        # It may look just when the writer has announced itself and has not been granted the lock yet.
        state = next(state for state in changes if not state["waiters"])
        return [peer["pid"] for peer in state["holders"]]

    assert next_holders() == []
    holder = scene.hold("write")
    assert next_holders() == [scene.keeper(holder)]
    holder.terminate()
    assert next_holders() == []
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("arguments", [["status", "data"], ["status", "--json", "data"], ["--help"]], ids=" ".join)
def test_a_reader_that_has_gone_away_is_no_reason_for_a_traceback(scene: Scene, arguments: list[str]) -> None:
    (scene.directory / "data").touch()
    reader, writer = os.pipe()
    os.close(reader)
    process = scene.start(*arguments, stdout=writer)
    os.close(writer)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, "")


# break


def test_break_names_what_it_removes_and_removes_it(scene: Scene) -> None:
    announce(scene, ELSEWHERE)
    result = scene.run("break", "data", "--yes")
    assert result.returncode == 0
    assert "far-away pid 4711, writing since 2023-11-1" in result.stdout, "not of today"
    assert f"removed: token {TOKEN}" in result.stdout
    assert scene.announced() == []


def test_break_refuses_where_nobody_can_be_asked(scene: Scene) -> None:
    announce(scene, ELSEWHERE)
    result = scene.run("break", "data", stdin="y\n")
    assert result.returncode == 2
    assert "use --yes" in result.stderr
    assert scene.announced() == [ELSEWHERE]


def test_break_refuses_a_holder_that_is_alive_here_unless_forced(scene: Scene) -> None:
    holder = scene.hold("write")
    result = scene.run("break", "data", "--yes")
    assert result.returncode == 2
    assert f"pid {scene.keeper(holder)}" in result.stderr
    assert "--force" in result.stderr
    assert holder.poll() is None
    assert len(scene.announced()) == 1
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    assert scene.announced() == []
    assert holder.wait(PATIENCE_S) == 76


def test_break_takes_the_one_that_its_token_begins(scene: Scene) -> None:
    announce(scene, ELSEWHERE)
    other = ELSEWHERE.replace(TOKEN, "f" * 32)
    announce(scene, other)
    assert scene.run("break", "data", "--token", "e", "--yes").returncode == 2
    assert scene.run("break", "data", "--token", TOKEN[:8], "--yes").returncode == 0
    assert scene.announced() == [other]
    announce(scene, ELSEWHERE.replace(TOKEN, "f" * 31 + "0"))
    assert "2 tokens begin with ff; give" in scene.run("break", "data", "--token", "ff", "--yes").stderr
    (scene.directory / "data.rwlock" / other).rmdir()
    assert "empty token" in scene.run("break", "data", "--token", "", "--yes").stderr
    assert len(scene.announced()) == 1


def test_break_has_nothing_to_do_for_a_free_lock(scene: Scene) -> None:
    (scene.directory / "data").touch()
    result = scene.run("break", "data")
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing to break" in result.stdout
    assert os.listdir(scene.directory) == ["data"]


def test_break_removes_an_entry_of_unknown_format(scene: Scene) -> None:
    announce(scene, "write.of-another-version")
    result = scene.run("break", "data", "--yes")
    assert result.returncode == 0
    assert scene.announced() == []


def test_a_broken_lock_can_be_taken_at_once(scene: Scene) -> None:
    announce(scene, ELSEWHERE)
    assert scene.run("run", "--read", "data", "--timeout", "0", "--", "true").returncode == 75
    assert scene.run("break", "data", "--yes").returncode == 0
    assert scene.run("run", "--read", "data", "--timeout", "0", "--", "true").returncode == 0


def test_a_path_that_does_not_exist_and_was_never_locked_is_a_typing_error(scene: Scene) -> None:
    (scene.directory / "data").touch()
    result = scene.run("status", "typo", "data", "nowhere/data")
    assert result.returncode == 2
    assert "'typo' does not exist" in result.stderr
    assert "nowhere/data' does not exist" in result.stderr
    assert "data: free" in result.stdout
    broken = scene.run("break", "typo")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "'typo' does not exist" in broken.stderr


def test_a_path_that_is_locked_before_it_exists_is_none(scene: Scene) -> None:
    assert scene.run("run", "--write", "planned", "--", "true").returncode == 0
    assert "free (generation 1)" in scene.run("status", "planned").stdout


def test_json_answers_for_each_path_in_order(scene: Scene) -> None:
    (scene.directory / "data").touch()
    result = scene.run("status", "--json", "typo", "data")
    typo, data = json.loads(result.stdout)
    assert result.returncode == 2
    assert (typo["lock_file"], data["lock_file"]) == ("typo", "data")
    assert "does not exist" in typo["error"]
    assert data["exists"] is False


def test_the_lock_s_own_directory_is_not_taken_for_data(scene: Scene) -> None:
    scene.hold("write")
    for command in (("status",), ("break", "--yes"), ("run", "--timeout", "0", "-w")):
        result = scene.run(*command, "data.rwlock", *(("--", "true") if command[0] == "run" else ()))
        assert result.returncode == 2
        assert "name the data" in result.stderr
    assert len(scene.announced()) == 1


# status -r and prune


def test_the_locks_in_use_below_a_directory_are_shown_and_with_all_the_others_too(scene: Scene) -> None:
    for path in ("data", "below/idle", 'below/lines\nand \\ "quotes"'):
        (scene.directory / path).parent.mkdir(exist_ok=True)
        assert scene.run("run", "--write", path, "--", "true").returncode == 0
    holder = scene.hold("read")
    here = os.path.realpath(scene.directory)
    shown = scene.run("status", "-r", ".")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"{here}/data: shared by 1 reader" in shown.stdout
    assert str(scene.keeper(holder)) in shown.stdout
    assert "idle" not in shown.stdout
    assert re.search(r"^holders by host: \S+ 1$", shown.stdout, re.MULTILINE)
    assert f"{here}/below/idle: free (generation 1)" in scene.run("status", "-r", "-a", ".").stdout
    (state,) = json.loads(scene.run("status", "-r", "--json", ".").stdout)
    assert (state["lock_file"], len(state["holders"])) == (f"{here}/data", 1)
    families = {
        family.name: {(s.labels["path"], s.labels["mode"]): s.value for s in family.samples}
        for family in text_string_to_metric_families(scene.run("status", "-ra", "--metrics", ".").stdout)
    }
    assert families["nfsrwlock_holders"][f"{here}/data", "read"] == 1
    assert families["nfsrwlock_holders"][f"{here}/data", "write"] == 0
    assert families["nfsrwlock_waiters"][f'{here}/below/lines\\nand \\ "quotes"', "write"] == 0
    assert sum(sum(family.values()) for family in families.values()) == 1


def test_of_the_locks_below_a_directory_the_longest_wait_comes_first(scene: Scene) -> None:
    for path in ("a", "b", "c"):
        scene.hold("read", path) if path == "a" else announce(scene, ELSEWHERE.replace("-away", f"-{path}"), path)
    younger, older = (ELSEWHERE.replace("write.0", f"write.{number}").replace(TOKEN, TOKEN[::-1]) for number in (2, 1))
    announce(scene, younger.replace("1700000000000", "1700000000002"), "b")
    announce(scene, older.replace("1700000000000", "1700000000001"), "c")
    states = json.loads(scene.run("status", "-r", "--json", ".").stdout)
    assert [os.path.basename(state["lock_file"]) for state in states] == ["a", "b", "c"], "for programs, as found"
    heads = [line.partition(":")[0] for line in scene.run("status", "-r", ".").stdout.splitlines() if ": held" in line]
    assert [os.path.basename(head) for head in heads] == ["c", "b"]


def test_watching_below_a_directory_shows_a_lock_that_comes(scene: Scene) -> None:
    watch = scene.start("status", "-r", "--watch", ".")
    assert watch.stdout is not None
    scene.hold("write")
    assert any("data: held by a writer" in line for line in watch.stdout)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("idle", [False, True])
def test_a_lock_that_has_gone_since_it_was_found_is_no_error(
    scene: Scene, idle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    look = Look((str(scene.directory),), None, lambda directory: [f"{directory}/gone"], idle=idle)
    assert look() == []
    assert (look.found, look.code, capsys.readouterr().err) == ({}, 0, "")


@pytest.mark.parametrize("form", [(), ("--json",), ("--metrics",)])
def test_a_directory_that_cannot_be_listed_does_not_hide_the_others(scene: Scene, form: tuple[str, ...]) -> None:
    scene.hold("read")
    here = os.path.realpath(scene.directory)
    shown = scene.run("status", "-r", *form, "nowhere", ".", "nowhere/else")
    assert shown.returncode == 2
    assert [line.partition(" cannot be searched")[0] for line in shown.stderr.splitlines()] == [
        f"nfsrwlock: '{here}/nowhere'",
        f"nfsrwlock: '{here}/nowhere/else'",
    ]
    assert f"{here}/data" in shown.stdout
    if form == ("--json",):
        failed, found, failed_too = json.loads(shown.stdout)
        assert (failed["lock_file"], found["lock_file"], failed_too["lock_file"]) == (
            "nowhere",
            f"{here}/data",
            "nowhere/else",
        )
        assert "cannot be searched" in failed["error"]


def test_locks_that_nobody_uses_are_pruned_and_the_others_are_named(scene: Scene) -> None:
    for path in ("data", "idle"):
        assert scene.run("run", "--write", path, "--", "true").returncode == 0
    scene.hold("read")
    here = os.path.realpath(scene.directory)
    young = scene.run("prune", ".")
    assert f"{here}/idle: kept, it was used " in young.stdout
    pruned = scene.run("prune", "--unused-for", "0", ".")
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert pruned.stdout.splitlines() == [
        f"{here}/data: kept, it is in use",
        f"{here}/idle: removed",
        "1 lock directory removed",
    ]
    assert len(scene.announced()) == 1
    assert not (scene.directory / "idle.rwlock").exists()


def test_a_directory_that_cannot_be_listed_keeps_prune_from_none_of_the_others(scene: Scene) -> None:
    assert scene.run("run", "--write", "idle", "--", "true").returncode == 0
    pruned = scene.run("prune", "--unused-for", "0", "nowhere", ".")
    assert pruned.returncode == 2
    assert "nowhere" in pruned.stderr
    idle = os.path.realpath(scene.directory / "idle")
    assert pruned.stdout.splitlines() == [f"{idle}: removed", "1 lock directory removed"]


@pytest.mark.parametrize("command", ["prune", "status -r"])
def test_a_directory_that_was_removed_is_no_place_to_look(scene: Scene, command: str) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && {shlex.join(PROGRAM)} {command} ."
    result = scene.run("-c", line, program=["sh"])
    assert result.returncode == 2
    assert result.stderr.startswith("nfsrwlock: '.' cannot be searched for locks: no such file or directory; name a")


def test_a_lock_that_cannot_be_pruned_is_named_and_keeps_none_of_the_others(scene: Scene) -> None:
    for path in ("a", "c"):
        assert scene.run("run", "--write", path, "--", "true").returncode == 0
    (scene.directory / "b.rwlock").symlink_to(scene.directory)
    pruned = scene.run("prune", "--unused-for", "0", ".")
    assert (pruned.returncode, pruned.stderr.count("\n")) == (2, 1)
    assert "b.rwlock' is a symbolic link" in pruned.stderr
    assert pruned.stdout.splitlines()[-1] == "2 lock directories removed"
    assert scene.run("status", "-r", ".").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("prune", ""), "'' cannot be searched for locks: no such file or directory; name a directory"),
        (("status", "-r", ""), "'' cannot be searched for locks: no such file or directory; name a directory"),
        (("status", "share=eu"), "'share=eu' does not exist"),
        (("prune", "nowhere"), "cannot be searched for locks: no such file or directory; name a directory"),
        (("status", "-r", "nowhere"), "cannot be searched for locks: no such file or directory; name a directory"),
        (("status", "--watch", "--metrics", "data"), "--metrics prints once, so it cannot be used with --watch"),
        (("status", "-r", "--lock-dir", "/locks", "."), "give the directory of locks as PATH, not by --lock-dir"),
    ],
)
def test_what_makes_no_sense_is_refused(scene: Scene, arguments: tuple[str, ...], reason: str) -> None:
    result = scene.run(*arguments)
    assert result.returncode == 2
    assert reason in result.stderr
