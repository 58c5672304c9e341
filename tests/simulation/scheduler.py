"""
Virtual time, and processes that take turns.

Each simulated process has a stack of its own (a greenlet), and only one of them ever runs: whoever must wait goes back
to the agenda, which goes on with whom its next entry wakes. So the engine's blocking code runs as it is, a run depends
on its random numbers alone, and an hour of waiting takes no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from greenlet import greenlet


class Stopped(BaseException):
    """Ends a simulated process, wherever it is. No ``except Exception`` of the engine holds it up."""


class Task:
    """One thread of a simulated process."""

    def __init__(self, agenda: Agenda, story: Callable[[], None]) -> None:
        self.agenda = agenda
        self.ended = False
        self._story = story
        self._stack: greenlet | None = None
        self._stop = False
        self._waits = True
        self._value: Any = None

    def wake(self, value: Any = None) -> Task:
        """Let :meth:`wait` return ``value``; an action of the agenda returns what this returns."""
        assert self._waits
        self._value, self._waits = value, False
        return self

    def stop(self) -> Task | None:
        """End it where it stands. An action of the agenda returns what this returns."""
        if self.ended or self._stop:
            return None
        self._stop = True
        return self.wake()

    def wait(self) -> Any:
        """Called by the task itself: let the others run until somebody wakes it; returns what it was woken with."""
        if self._stop:
            raise Stopped  # the clean-up of a task that is being stopped does nothing any more
        self._waits = True
        assert self._stack is not None
        self._stack.parent.switch()
        if self._stop:
            raise Stopped
        value, self._value = self._value, None
        return value

    @property
    def has_begun(self) -> bool:
        return self._stack is not None

    def go_on(self) -> None:
        """Run it until it waits or ends; called by the agenda."""
        if self._stack is None:
            self._stack = greenlet(self._run)
        self._stack.switch()

    def _run(self) -> None:
        try:
            if not self._stop:
                self._story()
        except Stopped:
            pass
        except BaseException as error:
            self.agenda.fail(error)
        self.ended = True


class Agenda:
    """What will happen, in the order of virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], Task | None]]] = []
        self._count = 0
        self._tasks: list[Task] = []
        self._failure: BaseException | None = None

    def at(self, moment: float, action: Callable[[], Task | None]) -> None:
        """Plan ``action``; it returns the task that it wakes, or ``None``."""
        self._count += 1
        heapq.heappush(self._heap, (max(self.now, moment), self._count, action))

    def start(self, story: Callable[[], None], after: float = 0.0) -> Task:
        """Begin a task ``after`` seconds from now."""
        task = Task(self, story)
        self._tasks.append(task)
        self.at(self.now + after, lambda: None if task.ended or not task._waits else task.wake())
        return task

    def fail(self, error: BaseException) -> None:
        """Let :meth:`run` raise ``error``, unless an earlier one is on its way."""
        if self._failure is None:
            self._failure = error

    def run(self, end: float) -> None:
        """Run until nothing is planned before ``end``; raises what went wrong."""
        while self._failure is None and self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            try:
                task = action()
            except BaseException as error:
                self.fail(error)
                break
            if task is not None:
                task.go_on()
        if self._failure is not None:
            raise self._failure
        self.now = max(self.now, end)

    def close(self) -> None:
        """End every task, so that nothing is left that holds on to its variables."""
        self._failure = None
        self._heap.clear()
        for task in self._tasks:
            if task.has_begun and (stopping := task.stop()) is not None:
                stopping.go_on()
