"""
The processes that race on this host. They find out what to do from a plan in the scratch directory.

Each prints what it saw as JSON, and signs of life in between. So it ends soon after the process that started it,
however that ended: then nobody reads what it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.doctor.races import Record, planned, race
from nfsrwlock.doctor.scratch import Scratch

_SIGN_OF_LIFE_SECONDS: Final = 0.2
_END_SECONDS: Final = 5.0

Progress = Callable[[str], None]


def play(scratch: Scratch, numbers: range, agree: Callable[[], float], progress: Progress) -> list[Record]:
    """
    Start players, let them race as it was prepared, and return what they saw.

    :param numbers: of the players on this host
    :param agree: called when they are ready; returns when the first round begins, on this host's monotonic clock
    :param progress: called every now and then, with what is being done; raises to stop
    :raises CliError: one cannot be started, or has ended
    :raises OSError: what the file system answered one of them
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        processes.extend(_start(scratch, number) for number in numbers)
        for process in processes:
            _answer(process, "starting processes", progress)
        start = agree()
        for process in processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # its end is found below
                print(start, file=process.stdin, flush=True)
        return [Record(**_answer(process, "racing", progress)) for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):  # not while the file server hangs
                process.communicate(timeout=_END_SECONDS)


def _start(scratch: Scratch, number: int) -> subprocess.Popen[str]:
    # -P: where the user happens to be is no place to import from.
    code = "from nfsrwlock.doctor.players import main; main()"
    command, pipe = [sys.executable, "-P", "-c", code, scratch.root, str(number)], subprocess.PIPE
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, pass_fds=(scratch.fd,)
        )
    except OSError as error:
        raise CliError(f"a process could not be started: {error.strerror}", Exit.FAILED) from None


def _answer(process: subprocess.Popen[str], doing: str, progress: Progress) -> dict[str, Any]:
    assert process.stdout is not None
    while (line := process.stdout.readline()) == "\n":  # a sign of life
        progress(doing)
    progress(doing)
    if not line:
        raise CliError("a process has ended before its time; find out what killed it, and try again", Exit.FAILED)
    answer: dict[str, Any] = json.loads(line)
    if "error" not in answer:
        return answer
    number, text = answer["error"]
    raise CliError(text, Exit.FAILED) if number is None else OSError(number, text)


def main() -> None:
    """Be a player process: read the plan, print a line, read the start, print what was seen; empty lines in between."""
    root, number = sys.argv[1], int(sys.argv[2])
    said = 0.0

    def progress() -> None:
        nonlocal said
        if time.monotonic() > said + _SIGN_OF_LIFE_SECONDS:
            said = time.monotonic()
            print(flush=True)

    try:
        plan = planned(root)
        print("{}", flush=True)
        if start := sys.stdin.readline():
            print(json.dumps(asdict(race(root, number, plan, float(start), progress))), flush=True)
    except (CliError, OSError) as error:
        known = (error.errno, error.strerror) if isinstance(error, OSError) else (None, str(error))
        print(json.dumps({"error": known}), flush=True)
