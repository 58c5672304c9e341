"""
The processes that race: two or more on each side, which is this host, or each of two.

They find the plan in the scratch directory, and print what they saw as JSON. In between they print signs of life. So
they end soon after the process that started them, however that ended: then nobody reads what they print.
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
from nfsrwlock.doctor.races import Plan, Player, Record, Result, prepare
from nfsrwlock.doctor.scratch import Scratch, read_json, write_json

_SIGN_OF_LIFE_SECONDS: Final = 0.2
_END_SECONDS: Final = 5.0
_PLAN: Final = "plan.json"


def set_up(scratch: Scratch, plan: Plan, progress: Callable[[str], None]) -> None:
    """Write down the plan, and make what its rounds need; before any player is started."""
    write_json(f"{scratch.root}/{_PLAN}", asdict(plan))
    prepare(scratch.root, plan, lambda: progress("preparing the rounds"))


def race_here(scratch: Scratch, plan: Plan, progress: Callable[[str], None]) -> Result:
    """Let processes of this host alone race; return what they saw. Raises what :class:`Players` does."""
    set_up(scratch, plan, progress)
    players = Players(scratch, range(plan.players), progress)
    try:
        return Result(plan, players.play(time.monotonic() + 0.05))
    finally:
        players.end()


class Players:
    """
    The player processes of this host; ready when this returns.

    :param scratch: where all is prepared
    :param numbers: of the players
    :param progress: called every now and then, with what is being done; raises to stop
    :raises CliError: one cannot be started, or has ended
    :raises OSError: what the file system told one of them
    """

    def __init__(self, scratch: Scratch, numbers: range, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for number in numbers:
                self._processes.append(_start_player(scratch, number))
            for process in self._processes:
                self._answer(process, "starting processes")
        except BaseException:
            self.end()
            raise

    def play(self, start: float) -> list[Record]:
        """
        Let them race; return what they saw.

        :param start: of the first round, on this host's monotonic clock
        """
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # its end is found below
                process.stdin.write(f"{start!r}\n".encode())
                process.stdin.flush()
        return [Record(**self._answer(process, "racing")) for process in self._processes]

    def end(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):  # not while the file server hangs
                process.wait(_END_SECONDS)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()

    def _answer(self, process: subprocess.Popen[bytes], doing: str) -> dict[str, Any]:
        assert process.stdout is not None
        while (line := process.stdout.readline()) == b"\n":  # a sign of life
            self._progress(doing)
        self._progress(doing)
        if not line:
            raise CliError("a process has ended before its time; find out what killed it, and try again", Exit.FAILED)
        answer: dict[str, Any] = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        if "error" in answer:
            raise CliError(answer["error"], Exit.FAILED)
        return answer


def _start_player(scratch: Scratch, number: int) -> subprocess.Popen[bytes]:
    # -P: where the user happens to be is no place to import from.
    command = [
        sys.executable,
        "-P",
        "-c",
        "from nfsrwlock.doctor.players import main; main()",
        scratch.root,
        str(number),
    ]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(scratch.fd,),
        )
    except OSError as error:
        raise CliError(f"a process could not be started: {error.strerror}", Exit.FAILED) from None


def main() -> None:
    """
    Be a player process: read the plan, print a line, read the start, print what was seen.

    Empty lines are printed in between as signs of life.
    """
    root, number = sys.argv[1], int(sys.argv[2])
    said = 0.0

    def progress() -> None:
        nonlocal said
        if time.monotonic() > said + _SIGN_OF_LIFE_SECONDS:
            said = time.monotonic()
            print(flush=True)

    try:
        plan = Plan(**read_json(f"{root}/{_PLAN}"))
        print("{}", flush=True)
        if start := sys.stdin.readline():
            print(json.dumps(asdict(Player(root, number, plan, float(start), progress).play())), flush=True)
    except CliError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except OSError as error:
        print(json.dumps({"errno": error.errno, "error": error.strerror}), flush=True)
