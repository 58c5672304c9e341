"""One attempt at a lock, step by step: where the server refuses, and when nobody wants the lock any more."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import announcements
from nfsrwlock import SoftReadWriteLock
from nfsrwlock_core.holding.waiting import Attempt, Wait
from nfsrwlock_core.names import Mode
from nfsrwlock_core.system.directory import LockDirectory

_attempts: list[Attempt] = []


def attempt_at(path: Path, mode: Mode = Mode.WRITE) -> Attempt:
    _attempts.append(Attempt(SoftReadWriteLock(path, is_singleton=False)._settings, mode, Wait(-1)))
    return _attempts[-1]


@pytest.fixture(autouse=True)
def _gives_up() -> Iterator[None]:
    """As who drives the attempt does at its end."""
    yield
    while _attempts:
        _attempts.pop().give_up()


class Refuses:
    """A server that refuses calls, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> None:
        real = getattr(LockDirectory, name)
        self.left = times

        def call(files: LockDirectory, *arguments: Any) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(number, "refused")
            return real(files, *arguments)

        monkeypatch.setattr(LockDirectory, name, call)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, which take no time."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


@pytest.fixture
def waits(path: Path) -> Attempt:
    """A writer that is announced and waits for a reader."""
    reader = attempt_at(path, Mode.READ)
    assert reader.step() is not None
    writer = attempt_at(path)
    assert writer.step() is None
    assert len(announcements(path)) == 2
    return writer


def test_a_step_that_begins_after_the_attempt_was_given_up_makes_nothing(path: Path) -> None:
    """It may have waited for a thread until nobody wanted the lock any more."""
    attempt = attempt_at(path)
    attempt.give_up()
    assert attempt.step() is None
    assert not Path(f"{path}.rwlock").exists()


def test_giving_up_goes_on_until_the_server_takes_the_withdrawal(
    path: Path, waits: Attempt, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    refuses = Refuses(monkeypatch, "rmdir", errno.EIO, 3)
    waits.give_up()
    assert refuses.left == 0
    assert len(pauses) == 3
    assert len(announcements(path)) == 1


def test_giving_up_does_not_insist_where_nothing_can_be_removed(
    waits: Attempt, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    Refuses(monkeypatch, "rmdir", errno.EROFS, 1000)
    waits.give_up()
    assert pauses == []


def test_trouble_that_may_pass_is_logged_once_until_it_has_passed(
    waits: Attempt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nfsrwlock")
    for outage in (1, 2):
        with monkeypatch.context() as fails:
            Refuses(fails, "listdir", errno.EIO, 3)
            for _ in range(3):
                assert waits.step() is None
        assert len([record for record in caplog.records if "trying again" in record.getMessage()]) == outage
        assert "refused" in (waits.wait_info(1.0).trouble or "")
        assert waits.step() is None
        assert waits.wait_info(1.0).trouble is None
    waits.give_up()


def test_a_timeout_says_how_many_hold_the_lock_and_who_waits_before_us(path: Path) -> None:
    attempts = [attempt_at(path, Mode.READ), attempt_at(path)]
    assert attempts[0].step() is not None
    assert attempts[1].step() is None
    one = str(attempts[1].timed_out(1.0))
    assert one.count(f"pid {os.getpid()}") == 1
    assert "more)" not in one
    reader = attempt_at(path, Mode.READ)
    attempts.append(reader)
    assert reader.step() is None
    assert "waiting for writing" in str(reader.timed_out(1.0)).partition(";")[2]
    attempts[1].give_up()
    assert reader.step() is not None
    writer = attempt_at(path)
    attempts.append(writer)
    assert writer.step() is None
    assert "(and 1 more)" in str(writer.timed_out(1.0))


def test_a_timeout_says_what_the_file_system_answered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempt_at(path)
    assert "others came first" in str(attempt.timed_out(1.0))
    with monkeypatch.context() as fails:
        Refuses(fails, "mkdir", errno.EIO, 1)
        assert attempt.step() is None
    assert "refused" in str(attempt.timed_out(1.0))


def test_a_forked_child_does_not_go_on_with_its_parents_attempt(path: Path, waits: Attempt) -> None:
    before = announcements(path)
    child = os.fork()
    if not child:
        code = 1
        try:
            waits.step()
        except RuntimeError as error:
            code = 0 if "parent of this fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert announcements(path) == before
