"""
Threads for file-system calls that may hang for as long as a file server does.

``concurrent.futures`` joins its threads when the interpreter exits, so that one hung server would hang the exit. These
are daemons, made when no idle one is left (a hung call never delays another), and gone soon after the last use.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar, cast

#: How long an idle thread of this package stays, seconds. Test suites of others look for threads that outlive a lock.
LINGER_S: Final = 2.0

#: How much later than it should a call may end, seconds.
_LATE_S: Final = 0.2

#: What to do about a system that gives no more threads.
NO_THREAD: Final = "no thread can be started: end some, or raise the limit (ulimit -u, or the container's)"

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_exiting(error: RuntimeError) -> bool:
    """Whether a thread could not be started because the interpreter exits (Python 3.12), not for want of threads."""
    return "shutdown" in str(error)


class Workers:
    """A pool without a limit of its own: as many threads as there are calls at one time, if the system gives them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all threads."""
        self._lock = threading.RLock()  # re-entrant: a signal's handler may release a lock
        #: Where each idle thread waits for its next task, the latest last.
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []
        #: What may hang and found no thread: for the next one that is done with its task.
        self._backlog: deque[Callable[[], None]] = deque()

    def submit(self, func: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Run ``func`` in a thread of the pool, or here and now if there can be none, and return its future."""
        return self._submit(False, func, *args, **kwargs)

    def enqueue(self, func: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Run ``func`` in a thread of the pool, as soon as there is one, and return its future."""
        return self._submit(True, func, *args, **kwargs)

    def _submit(self, may_wait: bool, func: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        future: Future[_R] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = func(*args, **kwargs)
            except BaseException as error:  # handed to whoever asked
                future.set_exception(error)
            else:
                future.set_result(result)

        self._start(task, may_wait=may_wait)
        return future

    def call(self, func: Callable[[], _R], seconds: float) -> _R:
        """
        Run ``func`` in a thread of the pool and wait for its result.

        Unlike a future's, this waiting may be ended by a signal's exception at any moment without harm.

        :raises TimeoutError: if it has not ended after ``seconds``; it goes on. Its text says why it has not begun
        """
        results: queue.SimpleQueue[tuple[_R | None, BaseException | None]] = queue.SimpleQueue()
        begun: list[bool] = []

        def task() -> None:
            begun.append(True)
            try:
                results.put((func(), None))
            except BaseException as error:  # handed to whoever asked
                results.put((None, error))

        self._start(task, may_wait=True)
        with suppress(queue.Empty):
            results.put(results.get(timeout=seconds))
        try:
            # If this process stood still (SIGSTOP) until now, its threads did, too.
            result, error = results.get(timeout=_LATE_S)
        except queue.Empty:
            raise TimeoutError("" if begun else NO_THREAD) from None
        if error is not None:
            raise error
        return cast("_R", result)

    def _start(self, task: Callable[[], None], *, may_wait: bool) -> None:
        with self._lock:
            if self._idle:
                # The latest, so that those that a burst of calls has left behind get nothing more to do, and end.
                self._idle.pop().put(task)
                return
        mine: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        mine.put(task)  # not as an argument: a thread keeps its arguments for as long as it lives
        try:
            threading.Thread(target=self._work, args=(mine,), name="nfsrwlock-io", daemon=True).start()
        except RuntimeError as error:
            if may_wait and not is_exiting(error):
                self._backlog.append(task)
            else:
                task()  # better late than never

    def _work(self, mine: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                task = mine.get(timeout=LINGER_S)
            except queue.Empty:
                with self._lock:
                    if mine in self._idle:
                        self._idle.remove(mine)
                        return
                # Somebody has just chosen this thread. If there is no task now, an exception came between for him.
                try:
                    task = mine.get_nowait()
                except queue.Empty:
                    return
            task()
            del task  # with all that it refers to
            with self._lock:
                if self._backlog:
                    mine.put(self._backlog.popleft())
                else:
                    self._idle.append(mine)


_workers: Final = Workers()
submit: Final = _workers.submit
enqueue: Final = _workers.enqueue
call: Final = _workers.call

os.register_at_fork(after_in_child=_workers.reset)  # threads do not survive a fork
