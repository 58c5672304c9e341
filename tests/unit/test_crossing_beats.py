"""
A heartbeat of the helper process that crosses the release by its parent, in every order of their file-system calls.

Nothing keeps the two apart when the helper reads too late that a lock was given back
(nfsrwlock_core.holding.heartbeat_process). So whatever the order, nothing may stay on disk, the release must say that
the hold stood, and the helper must learn from its next beat at the latest that there is nothing left to beat for.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from faults import MemoryFiles, Stage
from nfsrwlock_core.names import Mode
from nfsrwlock_core.protocol.heartbeat import Beat

#: Calls whose order is tried in full; neither side makes more of them before the outcome is settled.
CALLS = 8


class Actor:
    """Runs ``work`` in a thread, one file-system call each time that it is its turn."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stops: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.is_done = False

    def start(self) -> None:
        self._thread.start()
        self.is_done = self._stops.get(timeout=10)

    def wait_for_turn(self) -> None:
        self._stops.put(False)
        self._turns.get()

    def act(self) -> None:
        if not self.is_done:
            self._turns.put(None)
            self.is_done = self._stops.get(timeout=10)

    def outcome(self) -> Any:
        while not self.is_done:
            self.act()
        self._thread.join()
        return self._outcomes.get()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._outcomes.put(work())
        except Exception as error:
            self._outcomes.put(error)
        self._stops.put(True)


class TurnByTurn(MemoryFiles):
    """A client that makes each call only when its actor is told to."""

    actor: Actor | None = None

    def play(self, work: Callable[[], Any]) -> Actor:
        self.actor = Actor(work)
        self.actor.start()
        return self.actor

    def _do(self, op: str, call: Callable[[], Any], name: str, *more: str) -> Any:
        if self.actor is not None:
            self.actor.wait_for_turn()
        return super()._do(op, call, name, *more)


def cross(mode: Mode, beats: int, unread: int, order: Iterable[bool]) -> tuple[Any, Any, Any, Stage]:
    stage = Stage()
    ours, theirs = TurnByTurn(stage.server), TurnByTurn(stage.server)
    parent = stage.participant(mode, files=ours)
    assert parent.advance()
    for _ in range(beats):
        assert parent.beat() is Beat.DONE
    helper = stage.twin(parent, theirs)
    for _ in range(unread):  # of which the parent has not heard
        assert helper.beat() is Beat.DONE
    releasing, beating = ours.play(parent.release), theirs.play(helper.beat)
    for is_ours in order:
        (releasing if is_ours else beating).act()
    outcomes = releasing.outcome(), beating.outcome()
    ours.actor = theirs.actor = None
    return *outcomes, helper.beat(), stage


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("beats", "unread"), [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)])
def test_nothing_stays_behind_and_the_release_stood_in_every_order(mode: Mode, beats: int, unread: int) -> None:
    seen = set()
    for order in itertools.product((True, False), repeat=CALLS):
        released, crossing, later, stage = cross(mode, beats, unread, order)
        seen.add(crossing)
        assert released is True, order
        assert crossing in (Beat.DONE, Beat.LOST, Beat.UNKNOWN), order
        assert later is Beat.LOST, order
        assert stage.server.announced == set(), order
        assert not any(name.startswith("gone.") for name in stage.server.names), order
    assert {Beat.DONE, Beat.LOST} <= seen, "the orders did not cross"
