"""
Runs the snippets of one page, as a reader would who copies them one after the other: `test_snippets.py` starts it.

Python blocks share one namespace, which is empty at first; shell blocks share one shell. What belongs in another
terminal has a shell of its own. Steps come as JSON on stdin; the exit code is 1 where one did not do what is shown.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import nfsrwlock

#: For how long what the page shows may take to come, on a machine with much else to do, in seconds.
PATIENCE_S = 80.0

# What differs from run to run, in what a page shows and in what a command printed.
_VARIES = [
    (r"\S*\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d\d:\d\d:\d\d", "CLOCK"),
    (r"\d{4}-\d\d-\d\d[T ]CLOCK(?:Z|[+-]\d\d:?\d\d)?", "CLOCK"),
    (r"\b\d+(?:\.\d+)? (?:ms|s|min|h|d)\b(?: \d+ (?:ms|s|min|h)\b)*", "TIME"),
    (r"\b[0-9a-f]{8,}\b", "TOKEN"),
    (r"[\w.-]+@[\w.-]+", "SOMEBODY"),
    (r"\d{3,}(?:\.\d+)?|\d+\.\d+", "N"),
    (r"\s+", " "),
]


def alike(shown: str, printed: str) -> bool:
    """Whether a command printed what its page shows, where `…` stands for anything, but for what differs anyway."""
    for pattern, common in _VARIES:
        shown, printed = re.sub(pattern, common, shown), re.sub(pattern, common, printed)
    return re.fullmatch(re.escape(shown.strip()).replace("…", ".*"), printed.strip(), re.DOTALL) is not None


class Terminal:
    """A shell, to which commands are given one after the other."""

    def __init__(self, logs: Path, number: int, here: Path) -> None:
        self._answers, answers = os.pipe()
        #: The shell's current directory.
        self.here = here
        self.log = logs / f".terminal-{number}"
        self._count = 0
        with self.log.open("wb") as log:
            self._shell = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    'while IFS= read -r name; do . "$name" </dev/null; echo "$? $PWD" >&$0; done',
                    str(answers),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=here,
                pass_fds=[answers],
                process_group=0,
            )
        os.close(answers)
        self._where = 0

    def give(self, command: str) -> None:
        """Have the shell carry out *command*, without waiting for it."""
        self._count += 1
        script = self.log.with_name(f"{self.log.name}-{self._count}")
        script.write_text(command + "\n")
        self._where = self.log.stat().st_size
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{script}\n".encode())
        self._shell.stdin.flush()

    def code(self) -> int:
        """Wait for the command; a shell that it has ended counts by its own code."""
        answer = b""
        while not answer.endswith(b"\n"):
            byte = os.read(self._answers, 1)
            if not byte:
                return self._shell.wait()
            answer += byte
        code, _, here = answer.decode().rstrip("\n").partition(" ")
        self.here = Path(here)
        return int(code)

    def printed(self) -> str:
        """What the latest command has printed until now."""
        return self.log.read_bytes()[self._where :].decode(errors="replace")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGINT)

    def ended(self) -> bool:
        """Whether the shell is gone."""
        return self._shell.poll() is not None

    def close(self) -> None:
        """End the shell and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()


class Page:
    """Carries out the steps of a page."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._terminals: list[Terminal] = []
        self._others: list[tuple[Terminal, dict[str, Any]]] = []
        self._names: dict[str, Any] = {"__name__": "__main__"}
        sys.path.insert(0, "")

    def _terminal(self) -> Terminal:
        here = self._terminals[0].here if self._terminals else self._directory
        self._terminals.append(Terminal(self._directory, len(self._terminals), here))
        return self._terminals[-1]

    def run(self, steps: list[dict[str, Any]]) -> None:
        """Carry out all steps, then wait for what runs in other terminals."""
        main = self._terminal()
        for step in steps:
            os.chdir(main.here)
            if step["kind"] == "file":
                with open(step["name"], "a" if step["append"] else "w") as file:
                    file.write(step["text"])
            elif step["kind"] == "python":
                self._sleepers_wake(True)
                self._python(step)
            elif step["elsewhere"]:
                self._sleepers_wake(False)
                self._start_elsewhere(step)
            else:
                for command in step["commands"]:
                    if main.ended():
                        main = self._terminal()
                    self._shell(main, command, step["code"] if command is step["commands"][-1] else 0)
        self._sleepers_wake(True)
        for other, step in self._others:
            if step["ctrl_c"]:
                self._await(other, step, step["shows"] or "…")
                other.interrupt()
            elif (code := other.code()) != step["code"]:
                self._fail(step, f"ended with {code}:\n{other.printed()}")
            if not step["ctrl_c"] and step["commands"][-1]["shown"]:
                self._await(other, step, step["commands"][-1]["shown"])

    def _start_elsewhere(self, step: dict[str, Any]) -> None:
        other, text = self._terminal(), step["text"]
        locks = re.findall(r"nfsrwlock run --(?:read|write) (\S+)", text)
        before = {lock: self._participants(lock) for lock in locks}
        other.give("\n".join(command["text"] for command in step["commands"]))
        self._others.append((other, step))
        # A reader of the page goes on when the command is at work, or says that it waits.
        deadline = time.monotonic() + PATIENCE_S
        while locks and not other.printed() and all(self._participants(lock) <= before[lock] for lock in locks):
            if time.monotonic() > deadline:
                self._fail(step, "neither took its lock nor said that it waits")
            time.sleep(0.05)

    def _participants(self, lock: str) -> int:
        state = nfsrwlock.inspect(lock)
        return len(state.holders) + len(state.waiters)

    def _shell(self, main: Terminal, command: dict[str, Any], code: int) -> None:
        looks = command["text"].startswith("nfsrwlock status")
        self._sleepers_wake(not looks)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            main.give(command["text"])
            if (found := main.code()) != code:
                self._fail(command, f"ended with {found}, not {code}:\n{main.printed()}")
            shown = command["shown"]
            if not shown or alike(shown, main.printed()):
                return
            # What other terminals are about to do may not have come so far. Looking changes nothing, so look again.
            if not looks or time.monotonic() > deadline:
                self._fail(command, f"the page shows\n{shown}\nand this was printed\n{main.printed()}")
            time.sleep(0.1)

    def _await(self, other: Terminal, step: dict[str, Any], shown: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not alike(f"…{shown}…" if step["ctrl_c"] else shown, other.printed()):
            if time.monotonic() > deadline:
                self._fail(step, f"the page shows\n{shown}\nand this was printed\n{other.printed()}")
            time.sleep(0.05)

    def _python(self, step: dict[str, Any]) -> None:
        source = "\n" * step["line"] + step["text"]
        try:
            exec(compile(source, self._name, "exec"), self._names)
        except BaseException as error:
            if step["raises"] and type(error).__name__ == step["raises"]:
                return
            traceback.print_exc()
            self._fail(step, "raised the above")
        if step["raises"]:
            self._fail(step, f"did not raise {step['raises']}")

    def _sleepers_wake(self, do: bool) -> None:
        # `sleep` in the directory bin/ looks for this file.
        awake = self._directory / ".awake"
        if do:
            awake.touch()
        else:
            awake.unlink(missing_ok=True)

    def _fail(self, step: dict[str, Any], why: str) -> NoReturn:
        print(f"{self._name}:{step['line']}: {step['text'].strip()}\n{why}", flush=True)
        self.close()
        os._exit(1)

    def close(self) -> None:
        """End all shells."""
        for terminal in self._terminals:
            terminal.close()


def main() -> None:
    """Carry out what stdin says, here."""
    page = Page(sys.argv[1], Path.cwd())
    try:
        page.run(json.load(sys.stdin))
    finally:
        page.close()


if __name__ == "__main__":
    main()
