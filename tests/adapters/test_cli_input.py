"""Bad input: one line that names the path and the remedy, exit code 2, nothing left behind, never a traceback."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import wait_until
from adapters.cli_scene import Scene, scene
from nfsrwlock.cli import guard, main
from nfsrwlock.cli.options import positive_span, span
from nfsrwlock.processes import KEEPER_NAME, process_table
from other_users import ALICE, as_user, directory_of, needs_root

__all__ = ["scene"]


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check that it was refused with one line that contains ``parts``."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("nfsrwlock: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--read PATH"]),
        (["--read", "data"], ["one command", "after --"]),
        (["--read", "data", "file", "--", "true"], ["'file'", "--read", "after --"]),
        (["--read", "data", "true"], ["'true'", "after --"]),
        (["--write", "file.rwlock", "--", "true"], ["file.rwlock", "name the data", "/file'"]),
        (["--write", "file.rwlock/", "--", "true"], ["name the data"]),
        (["--read", "data", "-c", "true", "--", "true"], ["one command"]),
        (["--read", "data", "--nonblock", "--timeout", "1", "--", "true"], ["--nonblock", "--timeout"]),
        (["--permits", "2", "data", "--permits", "3", "data", "--", "true"], ["two limits for one path"]),
        (["--permits", "2", "data", "--permits", "3", "./data", "--", "true"], ["'./data' is limited to 2 and to 3"]),
        (["--at-most", "2", "--read", "data", "--permits", "3", "data", "--", "true"], ["two limits for one path"]),
        (["--read", "data", "--timeout", "5x", "--", "true"], ["5x", "5m"]),
        (["--read", "", "--", "true"], ["empty path"]),
        (["--reed", "data", "--", "true"], ["--reed", "--help"]),
        (["--read", "data", "--on-expiry", "explode", "--", "true"], ["explode"]),
        (["--read", "missing/data", "--", "true"], ["missing", "--parents"]),
        (["--read", "file/data", "--", "true"], ["file", "not a directory"]),
        (["--read", "data", "--lock-dir", "/missing", "--", "true"], ["missing", "--parents"]),
        (["--read", "data", "--lock-dir", "locks", "--", "true"], ["--lock-dir must be an absolute path", "locks"]),
        (["--read", "data", "--lock-dir", "~/locks", "--parents", "--", "true"], ["must be an absolute path", "~"]),
        (["--read", "x" * 300, "--", "true"], ["too long", "shorter name"]),
        *(
            (["--read", "data", option, value, "--", "true"], [option, value])
            for option in ("--timeout", "--heartbeat", "--stale", "--poll")
            for value in ("-1", "nan", "soon")
        ),
        (["--read", "data", "--heartbeat", "0", "--", "true"], ["--heartbeat"]),
        (["--read", "data", "--stale", "inf", "--", "true"], ["--stale"]),
        (["--read", "data", "--heartbeat", "5", "--stale", "4", "--", "true"], ["--stale", "--heartbeat"]),
        (["--read", "data", "--stale", "1", "--poll", "2", "--", "true"], ["--poll", "--stale"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_it_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code = main(["run", *arguments])  # in this process: a new one for each would take most of the time
    refused(subprocess.CompletedProcess(arguments, code, *capfd.readouterr()), *parts)
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("kind", ["file", "fifo", "link", "dangling link"])
def test_a_lock_directory_that_is_none_is_refused(scene: Scene, kind: str) -> None:
    lock = scene.directory / "data.rwlock"
    if kind == "file":
        lock.touch()
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to("elsewhere")
    if kind == "link":
        (scene.directory / "elsewhere").mkdir()
    before = sorted(scene.directory.rglob("*"))
    refused(scene.run("run", "--write", "data", "--", "true"), "data.rwlock")
    assert sorted(scene.directory.rglob("*")) == before


def test_a_lock_directory_of_another_user_is_refused(scene: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lock = scene.directory / "data.rwlock"
    lock.mkdir(mode=0o700)
    os.chown(lock, 12345, 12345)
    result = scene.run("run", "--write", "data", "--", "true")
    refused(result, "data.rwlock", "--share 'group'", "another --lock-dir", "move it away (mv)")
    assert "another lock_dir" not in result.stderr
    assert os.listdir(lock) == []
    lock.rename(scene.directory / "moved")
    assert scene.run("run", "--write", "data", "--", "true").returncode == 0


def test_a_directory_that_cannot_be_written_is_refused_and_lock_dir_is_the_way_out(scene: Scene) -> None:
    if os.geteuid() == 0:
        data = "/sys/data"  # refuses new directories even to root
        if not Path("/sys").is_dir():
            pytest.skip("needs a directory that root cannot write")
    else:
        data = str(scene.directory / "read-only" / "data")
        Path(data).parent.mkdir(mode=0o500)
    refused(scene.run("run", "--read", data, "--", "true"), "--lock-dir")
    locks = str(scene.directory / "locks")
    assert scene.run("run", "--read", data, "--lock-dir", locks, "--parents", "--", "true").returncode == 0
    assert scene.run("run", "--read", data, "--", "true", NFSRWLOCK_DIR=locks).returncode == 0
    (lock,) = os.listdir(scene.directory / "locks")
    assert lock.endswith(".rwlock")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--read", "dead/data", "--", "true"],
        ["run", "--read", "dead/data", "--parents", "--", "true"],
        ["run", "--read", "data", "--lock-dir", "/dead/locks", "--", "true"],
        ["run", "--read", "data", "--", "dead/command"],
        ["hold", "--write", "dead/data"],
    ],
    ids=["data", "its parents", "lock directory", "command", "hold"],
)
def test_a_time_out_counts_while_a_mere_look_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Below a hard mount whose server is down, a look takes as long as the outage. Only the keeper may look there."""
    here = os.getpid()

    def hanging(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def may_hang(path: str, **more: Any) -> os.stat_result:
            if "dead" in str(path).split("/"):
                assert os.getpid() != here
                signal.pause()
            return look(path, **more)

        return may_hang

    monkeypatch.chdir(tmp_path)
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, hanging(getattr(os, name)))
    monkeypatch.setattr(guard, "_ANSWER_SECONDS", 0.6)
    monkeypatch.setattr(guard, "ODD_SECONDS", 0.1)
    assert main([*arguments[:1], "--timeout", "0", *arguments[1:]]) == 75
    told, given_up = capfd.readouterr().err.splitlines()
    assert told.endswith("data: the file system answers nothing so far")
    assert "has not answered for" in given_up
    assert os.listdir() == []

    def keepers() -> list[int]:
        children = [one for one in process_table().values() if one.parent == here and not one.dead]
        return [one.pid for one in children if one.name == KEEPER_NAME]

    # It has made nothing, so it waits for no server; killed by now, but a busy machine may take a moment over it.
    wait_until(lambda: keepers() == [])


@pytest.mark.parametrize("options", [[], ["--timeout", "inf"]])
def test_without_a_time_out_no_silence_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "_ANSWER_SECONDS", -1e6)
    assert main(["run", "--read", "data", *options, "--", "true"]) == 0


def test_parents_makes_missing_directories(scene: Scene) -> None:
    assert scene.run("run", "--write", "a/b/data", "--parents", "--", "true").returncode == 0
    assert (scene.directory / "a" / "b" / "data.rwlock").is_dir()


@pytest.mark.parametrize("name", [b"new\nline", b"no utf-8 \xff", b"-dash", "ünï".encode(), b"trailing/"])
def test_odd_names_work(scene: Scene, name: bytes) -> None:
    assert scene.run("run", b"--write=" + name, "--", "true").returncode == 0
    assert os.path.isdir(os.path.join(os.fsencode(scene.directory), name.rstrip(b"/") + b".rwlock"))


def test_an_odd_name_is_one_line_in_messages(scene: Scene) -> None:
    refused(
        scene.run("run", "--read", os.fsencode("no\nsuch\x1b[2Jdirectory/data"), "--", "true"),
        "no\\nsuch\\x1b[2Jdirectory",
    )


def test_entries_of_an_unknown_format_count_as_held_and_say_so(scene: Scene) -> None:
    (scene.directory / "data.rwlock").mkdir(mode=0o700)
    (scene.directory / "data.rwlock" / "write.junk").mkdir()
    result = scene.run("run", "--read", "data", "--timeout", "0", "--", "true")
    assert result.returncode == 75
    assert "unknown format" in result.stderr


def test_main_returns_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nfsrwlock ")
    assert main(["run"]) == 2


def test_neither_click_nor_rich_is_imported_by_the_package_and_rich_not_by_a_free_lock(scene: Scene) -> None:
    code = "import sys, nfsrwlock, nfsrwlock.cli; sys.exit(bool({'click', 'rich'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = (
        "import sys; from nfsrwlock.cli import main; main(['run', '--read', 'data', '--', 'true']);"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=scene.directory).returncode == 0


class TestAsAnotherUser:
    pytestmark = needs_root

    def test_a_file_that_its_owner_may_not_read_can_be_locked(self) -> None:
        """The lock lies beside the file; `flock` has to open what it locks, this does not."""
        with directory_of(ALICE) as place:
            (place / "data").touch(mode=0)
            main(["status", "--json", str(place)])  # loads what another user may not be able to read
            assert as_user(ALICE, lambda: main(["status", "--json", str(place / "data")])) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("5min", 300), ("2h", 7200), ("1d", 86400)],
)
def test_a_time_is_a_number_of_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert span(text) == positive_span(text) == seconds
    assert span("inf") == math.inf


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take /proc away")
def test_without_proc_nothing_is_run_for_nothing_could_be_stopped(scene: Scene) -> None:
    hidden = 'mount -t tmpfs none /proc && exec "$@"'
    program = [sys.executable, "-m", "nfsrwlock", "run", "--write", "data", "--", "touch", "ran"]
    command = ["unshare", "--mount", "sh", "-c", hidden, "sh", *program]
    result = subprocess.run(command, cwd=scene.directory, capture_output=True, text=True, timeout=60)
    refused(result, "there is no /proc", "mount it")
    assert not (scene.directory / "ran").exists()
