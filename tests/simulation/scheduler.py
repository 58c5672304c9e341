"""
Virtual time, and processes that take turns.

Each simulated process is a thread, but only one thread ever runs: whoever must wait runs the agenda until something on
it wakes a process, and hands the baton to that one. So the engine's blocking code runs as it is, a run depends on its
random numbers alone, and an hour of waiting takes no time.
"""

from __future__ import annotations

import _thread
import heapq
import threading
from collections.abc import Callable
from typing import Any


class Stopped(BaseException):
    """Ends a simulated process, wherever it is. No ``except Exception`` of the engine holds it up."""


class Task:
    """One thread of a simulated process."""

    def __init__(self, agenda: Agenda, story: Callable[[], None]) -> None:
        self.agenda = agenda
        self.ended = False
        self._story: Callable[[], None] | None = story
        self._baton = _thread.allocate_lock()
        self._baton.acquire()
        self._stop = False
        self._waits = True
        self._value: Any = None
        self._thread: threading.Thread | None = None

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
        self.agenda.hand_over(self)
        if self._stop:
            raise Stopped
        value, self._value = self._value, None
        return value

    def take_baton(self) -> None:
        self._baton.acquire()

    def give_baton(self) -> None:
        if self._thread is None and self._story is not None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._baton.release()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self._baton.acquire()
        try:
            if not self._stop and self._story is not None:
                self._story()
        except Stopped:
            pass
        except BaseException as error:
            self.agenda.fail(error)
        self.ended = True
        self.agenda.hand_over(None)


class Agenda:
    """What will happen, in the order of virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], Task | None]]] = []
        self._count = 0
        self._end = 0.0
        self._tasks: list[Task] = []
        self._failure: BaseException | None = None
        self._main = Task(self, lambda: None)
        self._main._story = None

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
        self._end = end
        self._main._waits = True
        self.hand_over(self._main)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End every thread."""
        self._failure = None
        self._heap.clear()
        for task in self._tasks:
            if not task.ended and task._thread is not None:
                stopping = task.stop()
                if stopping is not None:
                    self._end = self.now
                    self.at(self.now, lambda stopping=stopping: stopping)
                    self._main._waits = True
                    self.hand_over(self._main)
            task.join()

    def hand_over(self, me: Task | None) -> None:
        """Give the baton to whom the agenda wakes next; return when ``me`` has it back. ``None`` ends the thread."""
        target = self._next()
        if target is not me:
            target.give_baton()
            if me is not None:
                me.take_baton()

    def _next(self) -> Task:
        heap = self._heap
        while self._failure is None and heap and heap[0][0] <= self._end:
            self.now, _, action = heapq.heappop(heap)
            try:
                target = action()
            except BaseException as error:
                self.fail(error)
                break
            if target is not None:
                return target
        if self._failure is None:
            self.now = max(self.now, self._end)
        return self._main
