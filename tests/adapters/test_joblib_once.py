"""Compute-once, as a table: what happens to the computation, against who calls."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import Actor, Stage, wait_until

pytest.importorskip("joblib")

HERE = Path(__file__).parent
CALLERS = 8

sys.path.insert(0, str(HERE))
from joblib_scene import CHANGED, FUNCTIONS  # noqa: E402

BACKENDS = ["loky", "multiprocessing", "threading", "programs"]

Call = Callable[[str, str, int], list[Any]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.fixture
def stage(directory: Path) -> Iterator[Stage]:
    with Stage(directory) as stage:
        yield stage


class Callers:
    """Eight who call at once: workers of a joblib backend below one program, or programs of their own."""

    def __init__(self, stage: Stage, backend: str) -> None:
        self._stage, self._backend = stage, backend
        self._actors: list[Actor] = []
        self._meeting = ""

    def _new(self) -> Actor:
        # No bytecode files: a module that is rewritten within a second would not be noticed.
        return self._stage.actor("from joblib_scene import *", path=HERE, PYTHONDONTWRITEBYTECODE="1")

    def begin(self, kind: str, name: str, x: int) -> None:
        if not self._actors:
            self._actors = [self._new() for _ in range(CALLERS if self._backend == "programs" else 1)]
        here = os.fspath(self._stage.directory)
        if self._backend != "programs":
            self._actors[0].tell(f"together({self._backend!r}, {here!r}, {kind!r}, {name!r}, {x})")
            return
        self._meeting = f"meeting-{uuid.uuid4().hex}"
        for actor in self._actors:
            actor.tell(f"attempt({here!r}, {kind!r}, {name!r}, {x}, {self._meeting!r}, {CALLERS})")

    def results(self) -> list[Any]:
        answers = [actor.answer(100) for actor in self._actors]
        return answers if self._backend == "programs" else answers[0]

    def call(self, kind: str, name: str, x: int) -> list[Any]:
        self.begin(kind, name, x)
        return self.results()


@pytest.fixture
def callers(stage: Stage, backend: str) -> Callers:
    return Callers(stage, backend)


def computed(directory: Path, what: str) -> int:
    return sum(line.startswith(f"{what} ") for line in (directory / "log").read_text().splitlines())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_call_ever_and_a_new_key_are_computed_once(callers: Callers, directory: Path) -> None:
    assert callers.call("item", "work", 1) == [[1, 1]] * CALLERS
    assert computed(directory, "work-1 1") == 1
    assert callers.call("item", "work", 2) == [[2, 1]] * CALLERS
    assert computed(directory, "work-1 2") == 1
    assert callers.call("item", "work", 1) == [[1, 1]] * CALLERS
    assert computed(directory, "work-1 1") == 1, "it is found again"


@pytest.mark.parametrize("backend", BACKENDS)
def test_if_the_function_raises_one_caller_gets_that_and_it_is_computed_once_more(
    callers: Callers, directory: Path
) -> None:
    results = callers.call("item", "fails_once", 1)
    assert sorted(results, key=str) == sorted([*([[1, 1]] * (CALLERS - 1)), "raised"], key=str)
    assert computed(directory, "fails_once 1") == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_if_the_computing_process_is_killed_it_is_computed_once_more(
    stage: Stage, callers: Callers, directory: Path
) -> None:
    victim = stage.actor("from joblib_scene import *", path=HERE)
    victim.tell("cached('item', 'hangs_once')(1)")
    wait_until((directory / "hung").exists)
    callers.begin("item", "hangs_once", 1)
    wait_until(lambda: [path for path in directory.glob("meeting-*") if len(os.listdir(path)) == CALLERS], 60)
    victim.kill()
    assert callers.results() == [[1, 1]] * CALLERS
    assert computed(directory, "hangs_once 1") == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_if_the_functions_code_has_changed_it_is_computed_once_with_the_new_code(
    stage: Stage, callers: Callers, directory: Path
) -> None:
    old = stage.actor("from joblib_scene import *", path=HERE, PYTHONDONTWRITEBYTECODE="1")
    old.do("f = cached('item', 'work')")
    assert old.do("[f(x) for x in (1, 2)]") == [[1, 1], [2, 1]]
    (directory / "functions.py").write_text(CHANGED)
    assert callers.call("item", "work", 1) == [[1, 2, "changed"]] * CALLERS
    assert computed(directory, "work-2 1") == 1
    # A process that still has the old code, and its results, and goes on: nobody takes one for the other's.
    assert old.do("[f(x) for x in (1, 2, 3)]") == [[1, 1], [2, 1], [3, 1]]
    assert callers.call("item", "work", 3) == [[3, 2, "changed"]] * CALLERS
    assert computed(directory, "work-2 3") == 1


@pytest.mark.peers
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_joblib_computes_more_than_once_in_the_same_test(callers: Callers, directory: Path) -> None:
    # What is counted is not how quick the others are: the first waits for another one.
    assert callers.call("joblib", "meets", 1) == [1] * CALLERS
    assert computed(directory, "meets 1") > 1


def test_with_one_lock_for_the_function_it_is_computed_once_too(stage: Stage, directory: Path) -> None:
    callers = Callers(stage, "programs")
    assert callers.call("function", "work", 1) == [[1, 1]] * CALLERS
    assert computed(directory, "work-1 1") == 1


def test_a_store_is_read_by_joblib_itself(stage: Stage, directory: Path) -> None:
    # And the other way round: what either stored is not computed by the other.
    script = "import sys; sys.path.insert(0, ''); from joblib_scene import *; print(cached(sys.argv[1], 'work')(1))"
    for kind in ("item", "joblib", "item"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore:Persisting input arguments took", "-c", script, kind],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == ("[1, 1]\n", "")
    assert computed(directory, "work-1 1") == 1
