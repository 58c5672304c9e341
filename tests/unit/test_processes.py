"""Finding and ending the processes of a command or a job, without more looks at the process table than that takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from actors import has_ended, wait_until
from nfsrwlock import processes
from nfsrwlock.processes import Entry, family, kill


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    """A shell and two processes below it."""
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
    try:
        wait_until(lambda: len(family([shell.pid])) == 3)
        yield shell
    finally:
        kill(lambda: family([shell.pid]))
        shell.wait()


def test_a_family_is_whom_it_is_asked_for_and_who_is_below(tree: subprocess.Popen[bytes]) -> None:
    shell, *others = family([tree.pid])
    assert shell.pid == tree.pid
    assert [entry.parent for entry in others] == [tree.pid] * 2


def test_where_nobody_is_asked_for_no_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "process_table", lambda: pytest.fail("it is long on a busy node"))
    assert family([]) == []


def test_all_of_a_family_are_killed(tree: subprocess.Popen[bytes]) -> None:
    members = family([tree.pid])
    kill(lambda: family([tree.pid]))
    tree.wait()
    wait_until(lambda: all(has_ended(entry.pid) for entry in members))


def test_to_find_nobody_to_kill_takes_one_look() -> None:
    looks: list[None] = []

    def nobody() -> list[Entry]:
        looks.append(None)
        return []

    kill(nobody)
    assert len(looks) == 1


def test_parents_come_before_children_and_nobody_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The table of a busy node: 6 was found after its child, and 8 and 9 have changed while the table was read.
    parents = {4: 6, 5: 4, 6: 1, 8: 9, 9: 8}
    table = {pid: Entry(pid, parent, group=6, name="job", state="S") for pid, parent in parents.items()}
    monkeypatch.setattr(processes, "process_table", lambda: table)
    assert [entry.pid for entry in family([], group=6)] == [6, 4, 5, 8, 9]
