"""``nfsrwlock doctor``: what it says of file systems that are fit, of some that are not, and of some that lie."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors import PATIENCE_S, wait_until
from adapters.cli_scene import Scene, scene
from nfsrwlock import inspect
from small_disks import fill, remount_read_only, small_disk

__all__ = ["scene"]

LIES = Path(__file__).parents[1] / "lies"


def examine(scene: Scene, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the one report, and stderr."""
    result = scene.run("doctor", "--json", *arguments, **environment)
    (report,) = json.loads(result.stdout)
    return result.returncode, report, result.stderr


def lying(scene: Scene, lie: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """What is said of a file system that lies."""
    code, report, _ = examine(scene, "--rounds", "60", *arguments, ".", **environment_of(lie))
    return code, report


def failing(scene: Scene, lie: str) -> tuple[int, str]:
    """What is said instead of a verdict."""
    result = scene.run("doctor", "--json", "--rounds", "60", ".", **environment_of(lie))
    assert json.loads(result.stdout) == []
    return result.returncode, result.stderr


def environment_of(lie: str) -> dict[str, str]:
    return {"LIE": lie, "PYTHONPATH": os.pathsep.join(filter(None, [str(LIES), os.environ.get("PYTHONPATH")]))}


def level(report: dict[str, Any], name: str) -> str:
    """How bad the answer to one question is."""
    (check,) = (check for check in report["checks"] if check["name"] == name)
    assert check["text"]
    return str(check["level"])


def start_peer(scene: Scene, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start the first node, and return the token that it gives out."""
    leader = scene.start("doctor", "--peer", *arguments, env={**scene.environment, **environment})
    assert leader.stderr is not None
    token = re.search(r"nfsrwlock doctor --join ([0-9a-f]{12}) (\S+)", leader.stderr.readline())
    assert token is not None
    assert token[2] == os.path.realpath(scene.directory)
    return leader, token[1]


# What is fit


def test_a_sound_local_file_system_is_fit_for_this_host(scene: Scene) -> None:
    result = scene.run("doctor", ".")
    assert (result.returncode, result.stderr) == (0, "")
    assert "FIT for the processes of this host, and for no others" in result.stdout
    for demand in ("demand a", "demand b", "demand c"):
        assert demand in result.stdout
    # What fails in 1 of 100 rounds is seen in a run of the default length with a probability of 95 % at least.
    (rounds,) = {int(times) for times in re.findall(r"([0-9]+)\s+times\s+\(half", result.stdout)}
    assert 1 - 0.99**rounds >= 0.95
    assert os.listdir(scene.directory) == []


def test_any_number_of_processes_race(scene: Scene) -> None:
    code, report, _ = examine(scene, "--rounds", "20", "--processes", "4", ".")
    assert code == 0
    assert [check["level"] for check in report["checks"] if check["name"] in {"mkdir", "listing", "removal"}] == [
        "ok"
    ] * 3
    assert "4 processes" in next(check["text"] for check in report["checks"] if check["name"] == "listing")


def test_json_has_the_documented_fields(scene: Scene) -> None:
    code, report, stderr = examine(scene, "--rounds", "20", "data")
    assert (code, stderr) == (0, "")
    assert {
        "path",
        "home",
        "fit",
        "level",
        "verdict",
        "remedies",
        "scope",
        "two_hosts",
        "host",
        "peer",
        "versions",
    } <= report.keys()
    home = os.path.realpath(scene.directory)
    assert (report["path"], report["home"], report["lock_path"]) == ("data", home, f"{home}/data.rwlock")
    assert (report["fit"], report["scope"], report["two_hosts"], report["peer"]) == (True, "host", False, None)
    assert {"type", "source", "mountpoint", "options"} == report["file_system"].keys()
    for check in report["checks"]:
        assert check.keys() == {"name", "level", "text", "remedy", "basis", "facts"}
        assert check["level"] in {"ok", "note", "warning", "unfit"}
        assert check["basis"] in {"measured", "lab", "documented"}
    assert [check["name"] for check in report["checks"]] == [
        *("file-system", "space", "permission", "mkdir", "listing", "removal", "cost"),
    ]
    facts = {check["name"]: check["facts"] for check in report["checks"]}
    assert facts["mkdir"]["rounds"] == facts["listing"]["rounds"] == facts["removal"]["rounds"] == 20
    assert 0 < facts["cost"]["read"]["median_ms"] <= facts["cost"]["read"]["p95_ms"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a tmpfs at /dev/shm")
def test_a_tmpfs_is_recognised(scene: Scene) -> None:
    _, report, _ = examine(scene, "--rounds", "10", "/dev/shm")
    assert (report["file_system"]["type"], report["file_system"]["mountpoint"]) == ("tmpfs", "/dev/shm")
    assert report["scope"] == "host"
    assert "gone after a restart" in report["checks"][0]["text"]
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(".nfsrwlock-doctor-")]


def test_each_path_gets_a_report_and_locks_kept_elsewhere_are_looked_for_there(scene: Scene) -> None:
    (scene.directory / "locks").mkdir()
    result = scene.run(
        "doctor", "--json", "--rounds", "10", "data", "other", NFSRWLOCK_DIR=str(scene.directory / "locks")
    )
    reports = json.loads(result.stdout)
    assert [report["path"] for report in reports] == ["data", "other"]
    home = os.path.realpath(scene.directory / "locks")
    assert {report["home"] for report in reports} == {home}
    assert [report["lock_path"] for report in reports] == [
        inspect(scene.directory / name, lock_dir=home).lock_path for name in ("data", "other")
    ]
    assert os.listdir(scene.directory) == ["locks"]
    assert os.listdir(scene.directory / "locks") == []


# What is not


@pytest.mark.parametrize(
    ("lie", "question", "fact"),
    [
        ("mkdir succeeds twice", "mkdir", "both"),
        ("listings show own names only", "listing", "missed"),
        ("listings are without own names", "listing", "own_missed"),
        ("unlink succeeds always", "removal", "moved_and_removed"),
        ("rmdir removes what is inside", "removal", "nonempty_removed"),
        ("create makes the directory", "removal", "filled_and_removed"),
        ("rmdir succeeds always", "removal", "renamed_and_removed"),
        ("rename succeeds always", "removal", "renamed_twice"),
    ],
)
def test_a_file_system_that_breaks_a_demand_is_unfit(scene: Scene, lie: str, question: str, fact: str) -> None:
    code, report = lying(scene, lie)
    assert code == 1
    assert (report["fit"], report["level"]) == (False, "unfit")
    assert [check["name"] for check in report["checks"] if check["level"] == "unfit"] == [question]
    (check,) = (check for check in report["checks"] if check["name"] == question)
    assert check["facts"][fact] > 0
    assert "another file system" in check["remedy"]
    assert check["remedy"] in report["remedies"]
    assert report["verdict"].startswith("UNFIT")
    assert os.listdir(scene.directory) == []


def test_calls_that_fail_are_told(scene: Scene) -> None:
    code, report = lying(scene, "rename fails")
    assert (code, level(report, "removal")) == (0, "warning")
    (check,) = (check for check in report["checks"] if check["name"] == "removal")
    assert "EIO 60 times" in check["text"]
    assert "There are warnings" in report["verdict"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_report_to_where_stdout_goes_comes_after_what_is_said_there(scene: Scene, form: tuple[str, ...]) -> None:
    log = scene.directory / "log"
    log.write_text("kept\n")
    with log.open("a") as file:
        options = ("--rounds", "10", "--report", "/dev/stdout", *form)
        assert scene.start("doctor", ".", *options, stdout=file).wait(PATIENCE_S) == 0
    assert log.read_text().startswith("kept\n[" if form else "kept\n.: locks live in")
    assert log.read_text().count('"verdict"') == len(form) + 1
    assert log.read_text().endswith('"\n    }\n  }\n]\n')


def test_a_file_system_that_hangs_is_given_up_on(scene: Scene) -> None:
    code, report = lying(scene, "mkdir hangs", "--timeout", "4")
    assert (code, level(report, "answers")) == (1, "unfit")
    left = os.listdir(scene.directory)
    assert len(left) == 1
    assert left[0] in report["checks"][-1]["text"]
    assert "file server is up" in report["checks"][-1]["remedy"]


def test_a_doctor_that_stood_still_takes_no_file_system_for_hung(scene: Scene) -> None:
    doctor = scene.start("doctor", "--json", "--timeout", "15", ".")
    wait_until(lambda: list(scene.directory.glob(".nfs*/list-0/0.2")))
    os.killpg(doctor.pid, signal.SIGSTOP)
    time.sleep(16)
    doctor.send_signal(signal.SIGCONT)
    time.sleep(0.5)  # the others go on a little later
    os.killpg(doctor.pid, signal.SIGCONT)
    stdout, _ = doctor.communicate(timeout=2 * PATIENCE_S)
    (report,) = json.loads(stdout)
    assert (doctor.returncode, [check for check in report["checks"] if check["level"] == "unfit"]) == (0, [])


def test_a_second_process_that_dies_is_no_reason_to_call_it_fit(scene: Scene) -> None:
    code, said = failing(scene, "the second process dies")
    assert (code, "a process ended while starting processes" in said) == (1, True)
    assert os.listdir(scene.directory) == []


def test_files_that_look_empty_to_others_are_no_reason_to_call_it_fit(scene: Scene) -> None:
    code, said = failing(scene, "files look empty")
    assert (code, "does not show what others write" in said) == (1, True)
    assert os.listdir(scene.directory) == []


def test_an_examination_that_fails_from_inside_is_no_reason_to_call_it_fit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nfsrwlock.doctor import examination

    def fail(*arguments: object) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr(examination, "cost", fail)
    assert examination.doctor([str(scene.directory)], None, peer=False, rounds=10, timeout=None, as_json=True) == 1
    said = capsys.readouterr()
    assert said.out == "[]\n"
    assert "internal error, please report it: RuntimeError: what nobody thought of" in said.err
    assert os.listdir(scene.directory) == []


@pytest.mark.root
def test_a_full_file_system_is_unfit(tmp_path: Path, scene: Scene) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        code, report, _ = examine(scene, str(disk))
        assert (code, level(report, "space"), level(report, "permission")) == (1, "unfit", "unfit")
        assert "Free some space or inodes." in report["remedies"]


@pytest.mark.root
def test_a_file_system_that_fills_up_in_between_is_told_and_cleaned(tmp_path: Path, scene: Scene) -> None:
    with small_disk(tmp_path / "disk") as disk:
        before = os.listdir(disk)
        code, report, _ = examine(scene, str(disk))
        assert (code, level(report, "space"), level(report, "rounds")) == (1, "warning", "unfit")
        assert "No space left" in next(check["text"] for check in report["checks"] if check["name"] == "rounds")
        assert os.listdir(disk) == before


@pytest.mark.root
def test_a_read_only_file_system_is_unfit(tmp_path: Path, scene: Scene) -> None:
    with small_disk(tmp_path / "disk") as disk:
        remount_read_only(disk)
        code, report, _ = examine(scene, str(disk))
        assert (code, level(report, "option-ro"), level(report, "permission")) == (1, "unfit", "unfit")
        assert "--lock-dir" in report["remedies"][0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_unfit(tmp_path: Path, scene: Scene) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    code, report, _ = examine(scene, "theirs")
    assert (code, level(report, "permission")) == (1, "unfit")
    assert "--lock-dir" in report["remedies"][0]


# Two nodes


def test_two_processes_that_are_told_of_each_other_meet_and_leave_nothing_behind(scene: Scene) -> None:
    leader, token = start_peer(scene, "--json", "--rounds", "20", ".")
    joined = scene.run("doctor", "--join", token, ".")
    assert (joined.returncode, joined.stderr) == (0, "")
    assert "first node has the verdict" in joined.stdout
    stdout, _ = leader.communicate(timeout=2 * PATIENCE_S)
    (report,) = json.loads(stdout)
    assert leader.returncode == 0
    assert (level(report, "mkdir"), level(report, "listing"), level(report, "removal")) == ("ok", "ok", "ok")
    # It is told apart from a second node by its kernel.
    assert (report["two_hosts"], level(report, "peer")) == (False, "warning")
    assert report["peer"] == report["host"]
    assert os.listdir(scene.directory) == []


@pytest.mark.parametrize(
    ("lie", "unlike"),
    [
        ("it is another host", {}),
        ("it is another host, where files stay old", {"data": "unfit"}),
        ("it is another host, where listings stay old", {"freshness": "warning"}),
    ],
)
def test_two_hosts_look_at_each_others_changes(scene: Scene, lie: str, unlike: dict[str, str]) -> None:
    leader, token = start_peer(scene, "--json", "--rounds", "20", ".")
    joined = scene.run("doctor", "--join", token, ".", NFSRWLOCK_HOST="n2", **environment_of(lie))
    assert (joined.returncode, joined.stderr) == (0, "")
    stdout, _ = leader.communicate(timeout=2 * PATIENCE_S)
    (report,) = json.loads(stdout)
    assert (report["two_hosts"], report["peer"], leader.returncode) == (True, "n2", "data" in unlike)
    seen = {name: level(report, name) for name in ("mkdir", "listing", "removal", "freshness", "data")}
    assert seen == dict.fromkeys(seen, "ok") | unlike
    assert os.listdir(scene.directory) == []


def test_what_is_known_of_a_type_s_data_gives_way_to_what_two_hosts_saw(scene: Scene) -> None:
    """GlusterFS does not show its mount options: whether they are those of the remedy is seen by two hosts only."""
    code, alone = lying(scene, "it is GlusterFS")
    assert (code, level(alone, "data"), level(alone, "file-system")) == (1, "unfit", "warning")
    assert alone["verdict"] == "UNFIT: locks hold here, but data read under them may be old (data)."
    for lie, seen in (("", "ok"), (", where files stay old", "unfit")):
        leader, token = start_peer(scene, "--json", "--rounds", "20", ".", **environment_of("it is GlusterFS"))
        scene.run("doctor", "--join", token, ".", NFSRWLOCK_HOST="n2", **environment_of(f"it is another host{lie}"))
        (report,) = json.loads(leader.communicate(timeout=2 * PATIENCE_S)[0])
        assert (level(report, "data"), leader.returncode) == (seen, seen == "unfit")


def test_a_second_node_whose_words_cannot_be_read_is_no_reason_to_call_it_fit(scene: Scene) -> None:
    leader, token = start_peer(scene, "--json", ".")
    meet = scene.directory / f".nfsrwlock-doctor-{token}" / "meet"
    (meet / "1.about.json").touch()
    (meet / "about.1.0").mkdir()
    stdout, stderr = leader.communicate(timeout=2 * PATIENCE_S)
    assert (leader.returncode, json.loads(stdout)) == (1, [])
    assert "is not to be read here" in stderr
    assert "Traceback" not in stderr
    assert os.listdir(scene.directory) == []


def test_a_peer_that_does_not_come_is_told_and_nothing_is_left(scene: Scene) -> None:
    result = scene.run("doctor", "--peer", "--timeout", "0.5", ".")
    assert (result.returncode, result.stdout) == (75, "")
    assert "no second node came within 0.5 s" in result.stderr
    assert os.listdir(scene.directory) == []


def test_a_third_node_is_sent_away(scene: Scene) -> None:
    token = "0123456789ab"
    scratch = scene.directory / f".nfsrwlock-doctor-{token}"
    scratch.mkdir(mode=0o700)
    (scratch / "meet" / "second").mkdir(parents=True)
    third = scene.run("doctor", "--join", token, ".")
    assert third.returncode == 2
    assert "another node has joined already" in third.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_interrupted_doctor_cleans_up(scene: Scene, signum: signal.Signals) -> None:
    leader, token = start_peer(scene, ".")
    assert os.listdir(scene.directory) == [f".nfsrwlock-doctor-{token}"]
    leader.send_signal(signum)
    assert leader.wait(PATIENCE_S) == 128 + signum
    assert os.listdir(scene.directory) == []


def players_in(directory: str) -> list[int]:
    """The processes that work in a scratch directory below ``directory``, by their open descriptors."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            names = {os.readlink(descriptor) for descriptor in (process / "fd").iterdir()}
            if any(name.startswith(f"{directory}/.nfsrwlock-doctor-") for name in names):
                found.append(int(process.name))
    return found


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_players_end_with_a_doctor_that_is_ended_while_they_race(scene: Scene, signum: signal.Signals) -> None:
    directory = os.path.realpath(scene.directory)
    doctor = scene.start("doctor", "--rounds", "800", "--processes", "3", ".")
    wait_until(lambda: len(players_in(directory)) == 4 and list(scene.directory.glob(".nfs*/list-0/2.*")))
    doctor.send_signal(signum)
    assert doctor.wait(PATIENCE_S) == (-signum if signum == signal.SIGKILL else 128 + signum)
    wait_until(lambda: not players_in(directory))
    assert len(os.listdir(scene.directory)) == (signum == signal.SIGKILL)


def test_a_second_node_cleans_up_after_a_first_that_was_killed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from nfsrwlock.cli.outcome import CliError
    from nfsrwlock.doctor import rendezvous

    leader, token = start_peer(scene, ".")
    leader.kill()
    leader.wait()
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)
    with pytest.raises(CliError, match="first node does not react"):
        rendezvous.join(token, str(scene.directory))
    assert os.listdir(scene.directory) == []


def test_what_other_doctors_have_made_is_named_and_stays(scene: Scene) -> None:
    leader, token = start_peer(scene, ".")
    leader.kill()
    leader.wait()
    left = [scene.directory / f".nfsrwlock-doctor-{token}", scene.directory / f".nfsrwlock-doctor-{'f' * 12}"]
    left[1].mkdir(mode=0o700)
    (scene.directory / ".nfsrwlock-doctor-notes").mkdir()
    code, report, _ = examine(scene, "--rounds", "10", ".")
    checks = [check for check in report["checks"] if check["name"] == "leftover"]
    assert (code, [check["level"] for check in checks]) == (0, ["note"] * 2)
    for check, path in zip(checks, sorted(left), strict=True):
        assert check["remedy"].endswith(f"rm -r {path.resolve()}")
        assert path.is_dir()


def test_a_report_to_share_names_nothing_of_this_place(scene: Scene) -> None:
    (scene.directory / f".nfsrwlock-doctor-{'f' * 12}").mkdir(mode=0o700)  # that the report for its user names
    shared = scene.directory / "shared.json"
    result = scene.run("doctor", "--json", "--rounds", "20", "--report", str(shared), "data", NFSRWLOCK_HOST="n77")
    assert (result.returncode, result.stderr) == (0, "")
    (full,), (report,) = json.loads(result.stdout), json.loads(shared.read_text())
    mount = full["file_system"]
    private = [full["path"], full["home"], full["host"], mount["source"], str(scene.directory), "f" * 12]
    for name in filter(lambda name: len(name) > 1, private):
        assert name in result.stdout
        assert f'"{name}"' not in shared.read_text()
        assert name == "data" or name not in shared.read_text()
    assert report.keys() == full.keys()
    for name in ("fit", "level", "verdict", "scope", "two_hosts", "versions"):
        assert report[name] == full[name]
    assert report["versions"]["kernel"] == os.uname().release
    assert report["file_system"]["type"] == mount["type"]
    figures = {check["name"]: check["facts"] for check in report["checks"]}
    assert figures.keys() == {check["name"] for check in full["checks"]}
    for name in ("mkdir", "listing", "removal", "cost"):
        assert figures[name] == next(check["facts"] for check in full["checks"] if check["name"] == name) != {}


def test_a_report_to_share_that_cannot_be_written_is_told_before_the_races(scene: Scene) -> None:
    result = scene.run("doctor", "--report", "none/shared.json", ".")
    assert (result.returncode, result.stdout) == (2, "")
    assert "none/shared.json" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_report_to_share_that_could_not_be_written_says_what_and_what_to_do(scene: Scene) -> None:
    result = scene.run("doctor", "--json", "--rounds", "10", "--report", "/dev/full", ".")
    assert (result.returncode, len(json.loads(result.stdout))) == (1, 1)
    assert result.stderr == (
        "nfsrwlock: the report could not be written to /dev/full: No space left on device; "
        "name another file with --report\n"
    )


def test_a_report_to_share_is_replaced_by_a_new_one_and_by_nothing_else(scene: Scene) -> None:
    shared = scene.directory / "shared.json"
    shared.write_text("an earlier one")
    options = ("--rounds", "10", "--report", "shared.json")
    for refused in (["--peer", ".", "data"], ["--rounds", "0", "."], [], ["missing/data"]):
        assert scene.run("doctor", *options, *refused).returncode == 2
        assert shared.read_text() == "an earlier one"
    assert scene.run("doctor", *options, ".").returncode == 0
    assert len(json.loads(shared.read_text())) == 1


@pytest.mark.parametrize("linked", [False, True])
def test_a_run_that_fails_leaves_no_report_behind_where_there_was_none(scene: Scene, linked: bool) -> None:
    if linked:
        (scene.directory / "shared.json").symlink_to("new.json")
    for fails in (["--rounds", "0", "."], ["missing/data"], ["--peer", ".", "data"]):
        assert scene.run("doctor", "--rounds", "10", "--report", "shared.json", *fails).returncode == 2
        assert os.listdir(scene.directory) == ["shared.json"] * linked
    leader, _ = start_peer(scene, "--report", "shared.json", ".")
    leader.terminate()
    assert leader.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert os.listdir(scene.directory) == ["shared.json"] * linked
    assert scene.run("doctor", "--rounds", "10", "--report", "shared.json", ".").returncode == 0
    assert len(json.loads((scene.directory / "shared.json").read_text())) == 1


@pytest.mark.parametrize("now", ["another report", None])
def test_a_run_that_is_interrupted_leaves_alone_what_others_did_to_its_report_meanwhile(
    scene: Scene, now: str | None
) -> None:
    shared = scene.directory / "shared.json"
    leader, _ = start_peer(scene, "--report", str(shared), ".")
    shared.write_text(now) if now is not None else shared.unlink()
    leader.terminate()
    assert leader.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert (shared.read_text() if shared.exists() else None) == now


def test_a_report_goes_into_a_fifo_that_somebody_reads(scene: Scene) -> None:
    os.mkfifo(scene.directory / "fifo")
    reader = scene.start("fifo", program=["cat"])
    for fails in (["missing/data"], ["."]):
        result = scene.run("doctor", "--rounds", "10", "--report", "fifo", *fails)
        assert result.returncode == (2 if fails == ["missing/data"] else 0)
        shown, _ = reader.communicate(timeout=PATIENCE_S)
        assert shown.count('"verdict"') == (fails == ["."])
        reader = scene.start("fifo", program=["cat"])
    reader.kill()


@pytest.mark.parametrize("by", ["directory", "link"])
def test_what_was_put_in_its_place_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    from nfsrwlock.doctor import scratch as module

    monkeypatch.setattr(module, "_REMOVAL_SECONDS", 0.0)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").touch()
    scratch = module.Scratch.make(str(tmp_path))
    try:
        moved = tmp_path / "moved"
        os.rename(scratch.path, moved)
        if by == "directory":
            precious.rename(scratch.path)
        else:
            os.symlink(precious, scratch.path)
        Path(scratch.root, "own").mkdir()
        assert "own" in os.listdir(moved), "work goes on in the directory that was made"
        assert not scratch.remove()
    finally:
        scratch.close()
    assert os.listdir(scratch.path) == ["data"]
    assert os.listdir(moved) == [], "what was made is removed"


# Bad input


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Missing argument 'PATH...'", "nfsrwlock doctor --help"]),
        ([""], ["empty path"]),
        (["missing/data"], ["missing", "does not exist"]),
        (["file/data"], ["file", "is not a directory"]),
        (["--lock-dir", "/missing", "data"], ["missing", "does not exist"]),
        (["--lock-dir", "locks", "data"], ["--lock-dir must be an absolute path", "locks"]),
        (["--rounds", "0", "."], ["--rounds", "--help"]),
        (["--timeout", "0", "."], ["--timeout", "--help"]),
        (["--peer", ".", "data"], ["one path at a time"]),
        (["--join", "0123456789ab", "--peer", "."], ["leave one out"]),
        (["--join", "0123456789ab", "--report", "/dev/null", "."], ["--report", "for the first node", "leave one out"]),
        (["--join", "../..", "."], ["no token", "copy the command"]),
        (["--join", "0123456789ab", "--timeout", "0.3", "."], ["nobody waits", "same directory"]),
    ],
)
def test_bad_input_is_refused_with_one_line(scene: Scene, arguments: list[str], parts: list[str]) -> None:
    (scene.directory / "file").touch()
    result = scene.run("doctor", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("nfsrwlock: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr
    assert os.listdir(scene.directory) == ["file"]


def test_a_path_that_cannot_be_examined_does_not_hide_the_others(scene: Scene) -> None:
    result = scene.run("doctor", "--json", "--rounds", "10", "missing/data", ".")
    assert result.returncode == 2
    assert [(report["path"], report["lock_path"]) for report in json.loads(result.stdout)] == [(".", None)]
    assert result.stderr.count("\n") == 1


def test_where_the_user_happens_to_be_is_no_place_to_import_from(scene: Scene) -> None:
    (scene.directory / "json.py").write_text("raise SystemExit('imported')")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "nfsrwlock", "doctor", "--rounds", "10", "."],
        cwd=scene.directory,
        env=scene.environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert (result.returncode, result.stderr) == (0, "")
