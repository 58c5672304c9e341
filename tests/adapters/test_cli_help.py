"""What helps to type commands: completion by the shell, and the manual pages that come with a wheel."""

from __future__ import annotations

import importlib.util
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adapters.cli_scene import PROGRAM, Scene, scene
from nfsrwlock.cli.app import cli

__all__ = ["scene"]

ROOT = Path(__file__).parents[2]


def completed(scene: Scene, line: str, shell: str = "bash") -> list[str]:
    """What the program answers a shell that asks how the last word of ``line`` may go on: kind and text."""
    words = line.split(" ")
    words_to_the_cursor = {
        "bash": (line, str(len(words) - 1)),
        "zsh": (line, str(len(words) - 1)),
        "fish": (line, words[-1]),
    }
    text, word = words_to_the_cursor[shell]
    result = scene.run(_NFSRWLOCK_COMPLETE=f"{shell}_complete", COMP_WORDS=text, COMP_CWORD=word)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_the_program(scene: Scene, shell: str) -> None:
    result = scene.run(_NFSRWLOCK_COMPLETE=f"{shell}_source")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"_NFSRWLOCK_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_paths_are_completed(scene: Scene, shell: str) -> None:
    assert any("release" in answer for answer in completed(scene, "nfsrwlock rel", shell))
    assert any("--exclusive" in answer for answer in completed(scene, "nfsrwlock run --ex", shell))
    for line in (
        *(
            "nfsrwlock run --write da",
            "nfsrwlock hold -r da",
            "nfsrwlock run -w x -- da",
            "nfsrwlock run --lock-dir da",
        ),
        *("nfsrwlock status da", "nfsrwlock release da", "nfsrwlock break da", "nfsrwlock doctor da"),
    ):
        assert "file" in completed(scene, line, shell)[0].replace(",", " ").split(), line


@pytest.fixture
def shell_environment(scene: Scene) -> dict[str, str]:
    """That of a shell which finds the program by its name."""
    (scene.directory / "bin").mkdir()
    program = scene.directory / "bin" / "nfsrwlock"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    return {**scene.environment, "PATH": f"{scene.directory}/bin:{os.environ['PATH']}"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_paths_with_the_documented_line(scene: Scene, shell_environment: dict[str, str]) -> None:
    script = """
        eval "$(_NFSRWLOCK_COMPLETE=bash_source nfsrwlock)"
        compopt() { echo "compopt $1 $2"; }  # works within a completion only
        function=$(complete -p nfsrwlock | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(nfsrwlock rel) COMP_CWORD=1
        "$function" nfsrwlock
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(nfsrwlock status dat) COMP_CWORD=2
        "$function" nfsrwlock
        echo "${COMPREPLY[@]}"
    """
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=scene.directory,
        env=shell_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["release", "compopt -o default", ""], "bash itself completes paths"


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_with_the_documented_line(scene: Scene, shell_environment: dict[str, str]) -> None:
    (scene.directory / "data.fa").touch()
    lines = ("nfsrwlock rel", "nfsrwlock status da", "nfsrwlock run --write da", "nfsrwlock run -w x -- da")
    script = "_NFSRWLOCK_COMPLETE=fish_source nfsrwlock | source\n" + "".join(
        f"complete --do-complete {shlex.quote(line)}\n" for line in lines
    )
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=scene.directory,
        env=shell_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert [line.partition("\t")[0] for line in result.stdout.splitlines()] == ["release", *["data.fa"] * 3]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("nfsrwlock rel", "nfsrwlock release "),
        ("nfsrwlock status da", "nfsrwlock status data.fa "),
        ("nfsrwlock run -w x -- da", "nfsrwlock run -w x -- data.fa "),
    ],
)
def test_zsh_completes_with_the_documented_line(
    scene: Scene, shell_environment: dict[str, str], typed: str, completed: str
) -> None:
    (scene.directory / "data.fa").touch()
    set_up = (
        'autoload -Uz compinit; compinit -u -D; eval "$(_NFSRWLOCK_COMPLETE=zsh_source nfsrwlock)"; echo "is"" set up"'
    )
    child, terminal = pty.fork()  # zsh completes what is typed at a terminal only
    if child == 0:
        os.chdir(scene.directory)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**shell_environment, "TERM": "dumb"})
    try:
        os.write(terminal, f"{set_up}\r".encode())
        read_until(terminal, "is set up")
        os.write(terminal, f"{typed}\t".encode())
        read_until(terminal, completed)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str) -> None:
    """Read what a terminal shows until it has shown ``wanted``."""
    shown = ""
    while wanted not in shown:
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 4096).decode(errors="replace")


# Manual pages


def test_a_wheel_has_a_manual_page_for_each_command(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        pages = {name.rpartition("/")[2] for name in archive.namelist() if "/data/share/man/man1/" in name}
    assert pages == {"nfsrwlock.1", *(f"nfsrwlock-{name}.1" for name in cli.commands)}


def test_manual_pages_say_what_the_help_says(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    page = pages["nfsrwlock-run.1"].replace("\\-", "-")
    for text in ("--conflict-exit-code", "Hold locks while COMMAND runs.", "EXIT CODES", "-- COMMAND...", "flock"):
        assert (text in page) == (text != "flock")
    for name in cli.commands:
        assert f"nfsrwlock-{name}" in pages["nfsrwlock.1"].replace("\\-", "-")
    if shutil.which("man") is None:
        return
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        shown = subprocess.run(
            ["man", "--warnings", "-l", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env={**os.environ, "MANPAGER": "cat"},
        )
        assert (shown.returncode, shown.stderr) == (0, "")
