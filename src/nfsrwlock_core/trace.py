"""
The record of what this process's locks do: one file of JSON lines, written if ``NFSRWLOCK_TRACE`` names a directory.

Each step of a lock is told to :func:`log`. Without the variable that is the logger's own method, so that it costs
nothing more. With it the step goes into a queue, too, and a thread of its own writes what is there a few times a
second: no lock waits for its record, or fails by it, not even where the directory is on a server that hangs.

What it does not promise: that the record is complete. What cannot be written is left out, and so is what a process did
in its last moment (:data:`_PAUSE_S`) before it was killed. The fields are described in docs/reference/trace.md.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from .names import Announcement, token_in
from .system.clock import now
from .system.process import boot_id, current_identity, own_record

VARIABLE: Final = "NFSRWLOCK_TRACE"
#: Of the format. A reader of version 1 understands every later file that says 1.
VERSION: Final = 1
#: How long records may gather before they are written together, seconds.
_PAUSE_S: Final = 0.05
#: How many records may wait for a file system that is slow.
_QUEUED_MOST: Final = 20_000
#: How many of those in the way a record names.
_PEERS_MOST: Final = 20
#: How long the end of the process waits for its last records, seconds.
_END_S: Final = 1.0

logger: Final = logging.getLogger("nfsrwlock")

_encode: Final = json.JSONEncoder(default=str).encode
_task: ContextVar[Mapping[str, object]] = ContextVar("nfsrwlock_task")
#: The time on both clocks, what the calling code works on, and the step.
_Step = tuple[float, float, Mapping[str, object] | None, Mapping[str, Any]]


@contextlib.contextmanager
def traced_as(**task: object) -> Iterator[None]:
    """
    Say what the code of a block works on, for the records of the locks that it takes.

    :param task: names and values, plain enough for JSON, such as ``rule="align"``; ``None`` says nothing
    """
    before = _task.set({name: value for name, value in task.items() if value is not None})
    try:
        yield
    finally:
        _task.reset(before)


class _Recorder:
    """Writes the steps of this process's locks into ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory: Final = directory
        self._steps: Final[queue.SimpleQueue[_Step | None]] = queue.SimpleQueue()
        self._is_ending: Final = threading.Event()
        self._path = ""
        self._has_head = self._is_torn = False
        self._dropped = 0
        self._has_complained = False
        self._thread: Final = threading.Thread(target=self._write_all, name="nfsrwlock-trace", daemon=True)
        self._thread.start()

    def log(self, level: int, message: str, *args: object, extra: Mapping[str, Any]) -> None:
        """Log a step as the logger does, and record it."""
        if logger.isEnabledFor(level):
            logger.log(level, message, *args, extra=extra, stacklevel=2)
        if self._steps.qsize() < _QUEUED_MOST:
            self._steps.put((time.time(), now(), _task.get(None), extra))
        else:
            self._dropped += 1

    def end(self) -> None:
        """Write what is left, and nothing after that; wait for it no longer than :data:`_END_S`."""
        self._steps.put(None)
        self._is_ending.set()
        self._thread.join(_END_S)

    def _write_all(self) -> None:
        is_over = False
        while not is_over:
            steps = [self._steps.get()]
            while not self._steps.empty():  # nobody else takes any
                steps.append(self._steps.get())
            is_over = None in steps
            dropped, self._dropped = self._dropped, 0
            if dropped:
                steps.append((time.time(), now(), None, {"event": "dropped", "count": dropped}))
            try:
                self._write("\n".join([*(_line(*step) for step in steps if step is not None), ""]).encode())
            except Exception as error:
                self._dropped += dropped + len(steps)
                if not self._has_complained:
                    self._has_complained = True
                    logger.warning("what locks do is not recorded in %r: %s", self._directory, error)
            self._is_ending.wait(_PAUSE_S)

    def _write(self, text: bytes) -> None:
        # Opened each time: at the end of a process the kernel waits, without a limit, for what an open file on a server
        # has yet to send; and only a close says that it has arrived.
        if not self._path:
            os.makedirs(self._directory, exist_ok=True)
            who = current_identity()
            host = re.sub(r"[^A-Za-z0-9._-]", "_", who.host)[:64]
            self._path = os.path.join(self._directory, f"{host}.{who.pid}.{who.start}.{who.kernel}.jsonl")
        text = (b"\n" if self._is_torn else b"") + (b"" if self._has_head else f"{_head()}\n".encode()) + text
        self._is_torn = True
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            while text:  # a disk that is nearly full takes half of it
                text = text[os.write(descriptor, text) :]
        finally:
            os.close(descriptor)
        self._has_head, self._is_torn = True, False


def _head() -> str:
    who, facts = current_identity(), {"v": VERSION, "event": "process"}
    with contextlib.suppress(OSError):
        facts["boot"] = boot_id()
    facts |= {"host": who.host, "pid": who.pid, "start": who.start, **json.loads(own_record(who.pid))}
    return _line(time.time(), now(), None, facts)


def _line(wall: float, moment: float, task: Mapping[str, object] | None, step: Mapping[str, Any]) -> str:
    facts = {"time": wall, "clock": moment, **step}
    if (name := facts.pop("announcement", None)) is not None:
        facts["token"] = token_in(name)
    if task:
        facts["task"] = task
    return _encode(facts)


def in_brief(peers: Sequence[Announcement]) -> list[dict[str, object]]:
    """Return what a record says of other participants; of many, the first few."""
    return [
        {"mode": peer.mode, "token": peer.token, **({"host": who.host, "pid": who.pid} if (who := peer.who) else {})}
        for peer in peers[:_PEERS_MOST]
    ]


_begin_lock = threading.RLock()
_recorder: _Recorder | None = None


def _log_first(level: int, message: str, *args: object, extra: Mapping[str, Any]) -> None:
    # The first step of this process: the environment says what becomes of it and of all others.
    global log, _recorder  # noqa: PLW0603 - one for the process
    with _begin_lock:
        if log is _log_first:
            directory = os.environ.get(VARIABLE, "")
            chosen: Callable[..., None] = logger.log
            if os.path.isabs(directory):
                with contextlib.suppress(RuntimeError):  # no thread can be started
                    _recorder = _Recorder(directory)
                    chosen = _recorder.log
            elif directory:
                logger.warning("%s must be an absolute path: %r is none, so nothing is recorded", VARIABLE, directory)
            log = chosen
    log(level, message, *args, extra=extra)


#: Log one step of a lock, and record it if that is asked for; ``extra`` has its ``event`` and the other fields.
log: Callable[..., None] = _log_first


def log_eviction(lock_path: str, whom: Announcement) -> None:
    """Log that this process has removed ``whom`` from a lock."""
    facts = {"event": "evicted", "lock": lock_path, "whom": in_brief([whom])[0]}
    log(logging.INFO, "evicted %s from the lock in %r", whom.name, lock_path, extra=facts)


def end_trace() -> None:
    """Write what is left of the record, in a second at most, before this process ends without Python's clean-up."""
    if _recorder is not None:
        _recorder.end()


def _forget() -> None:
    # A forked child has a file of its own; the thread and its queue are the parent's.
    global log, _recorder, _begin_lock
    log, _recorder, _begin_lock = _log_first, None, threading.RLock()


atexit.register(end_trace)  # it runs after what the keeper of holds registers, for that is imported later
os.register_at_fork(after_in_child=_forget)
