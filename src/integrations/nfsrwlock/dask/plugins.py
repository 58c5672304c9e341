"""
What a cluster can add to the locks: early eviction, metrics, events. The locks do without it.

A lock ends early only when the kernel of its holder's host says that the process is dead. That the scheduler has
removed a worker proves nothing: its task may go on writing for as long as it likes. So the scheduler only asks, the
nanny of that worker or a worker on the same host looks, and the core's :func:`nfsrwlock.break_lock` refuses whatever is
alive. If the whole host is gone nobody can look, and the lease decides.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from distributed import Client, Nanny, NannyPlugin, Scheduler, SchedulerPlugin, Worker, WorkerPlugin

from nfsrwlock_core import LockError, break_lock, inspect

from .ledger import Event, Recent, Used, ledger
from .place import current_worker
from .settings import configured, positive

logger: Final = logging.getLogger("nfsrwlock.dask")

#: The topic of ``client.get_events``.
TOPIC: Final = "nfsrwlock"
_HANDLER: Final = "nfsrwlock_evict_dead"
_LOOK_S: Final = 0.05
#: How much longer than its looks an answer may take.
_ANSWER_S: Final = 5.0
#: After so many seconds without an answer another neighbour is asked.
_HEAD_START_S: Final = 1.0


def install(client: Client) -> Any:
    """
    Register the plugins with a cluster: with what runs now and with what joins later.

    They evict the locks of worker processes that are proven dead, show held and awaited locks as metrics of each
    worker, measure waits (``nfsrwlock-wait`` among the fine performance metrics), and log events under the topic
    ``nfsrwlock``. Registering them again changes nothing. Nothing else changes: a lock needs no plugin.

    :param client: of the cluster
    :returns: ``None``; of an asynchronous client, something to await
    :raises TypeError: if ``client`` is no client of ``distributed``
    :raises ValueError: if ``nfsrwlock.eviction-timeout`` in Dask's configuration is no time above 0
    """
    if not isinstance(client, Client):
        raise TypeError(f"install needs a distributed.Client, not {type(client).__name__}")
    patience = positive("eviction-timeout", configured("eviction-timeout", None))
    # The scheduler first: workers tell it what they use as soon as they have their plugin.
    plugins = (SchedulerEviction(patience), NannyEviction(), WorkerLocks())
    if client.asynchronous:
        return _install_async(client, plugins)
    for plugin in plugins:
        client.register_plugin(plugin)
    return None


async def _install_async(client: Client, plugins: Iterable[Any]) -> None:
    for plugin in plugins:
        await client.register_plugin(plugin)


class WorkerLocks(WorkerPlugin):
    """Tells the scheduler what this worker uses, holds and waits for. Releases nothing, not even when it is removed."""

    name = "nfsrwlock-worker"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Distributed calls this when the plugin comes to the worker."""
        self._worker = worker
        # Strings, for the table of workers on the dashboard shows no others.
        worker.metrics["nfsrwlock held"] = _held_metric
        worker.metrics["nfsrwlock awaited"] = _awaited_metric
        worker.handlers[_HANDLER] = _evict_handler
        ledger.listeners.append(self._log)
        if used := ledger.used():
            self._log({"action": "uses", "pid": os.getpid(), "locks": [list(lock) for lock in used]})

    def teardown(self, worker: Worker) -> None:
        """Distributed calls this when the worker ends or the plugin goes; tasks may be running yet, and hold locks."""
        if self._log in ledger.listeners:
            ledger.listeners.remove(self._log)

    def _log(self, event: Event) -> None:
        # Workers of one process have one ledger: all may come to hold what it knows, but one of them waited.
        if event["action"] != "uses" and current_worker() not in (None, self._worker):
            return
        try:
            self._worker.log_event(TOPIC, event)
        except Exception:  # the loop has ended: nobody listens any more, and the lock is not concerned
            logger.debug("the event %r was not delivered", event, exc_info=True)


class NannyEviction(NannyPlugin):
    """Lets a nanny, which outlives its worker's process, look at what that process has left."""

    name = "nfsrwlock-nanny"
    idempotent = True
    restart = False

    def setup(self, nanny: Nanny) -> None:
        """Distributed calls this when the plugin comes to the nanny."""
        nanny.handlers[_HANDLER] = _evict_handler


@dataclass(slots=True)
class _Known:
    # The scheduler forgets a worker before it tells the plugins of its end, so this is noted while it lives.
    pid: int
    host: str
    nanny: str | None
    locks: Recent = field(default_factory=Recent)


class SchedulerEviction(SchedulerPlugin):
    """
    Asks, when a worker is removed, somebody on its host to evict what its process left, if it is dead.

    :param patience: seconds for which the process is given time to die
    """

    name = "nfsrwlock-scheduler"
    idempotent = True

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._known: dict[str, _Known] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Distributed calls this when the plugin comes to the scheduler."""
        self._scheduler = scheduler

    async def before_close(self) -> None:
        """Distributed calls this when the scheduler is about to end."""
        for task in self._asking:
            task.cancel()

    def log_event(self, topic: str, msg: Any) -> None:
        """Distributed calls this with every event that anybody logs."""
        if topic != TOPIC or not isinstance(msg, dict) or msg.get("action") != "uses":
            return
        worker = self._scheduler.workers.get(msg.get("worker", ""))
        if worker is None:
            return
        known = self._known.get(worker.address)
        if known is None or known.pid != msg["pid"]:
            known = self._known[worker.address] = _Known(msg["pid"], worker.host, worker.nanny)
        for path, lock_dir in msg["locks"]:
            known.locks.use((path, lock_dir))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Distributed calls this when it has removed a worker, for whatever reason."""
        known = self._known.pop(worker, None)
        if known is None:
            return
        # Beside the removal, not in it: the rest of the cluster need not wait until a process is dead.
        task = asyncio.get_running_loop().create_task(self._ask(scheduler, worker, known))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, scheduler: Scheduler, worker: str, known: _Known) -> None:
        neighbours = [state.address for state in scheduler.workers.values() if state.host == known.host]
        addresses = deque(filter(None, (known.nanny, *neighbours)))
        asked: set[asyncio.Task[list[dict[str, Any]] | None]] = set()
        try:
            while addresses or asked:
                if addresses:
                    # Somebody else, too, if there is no answer soon: the nanny may have died with its worker.
                    asked.add(asyncio.create_task(self._evicted_by(scheduler, addresses.popleft(), worker, known)))
                done, asked = await asyncio.wait(
                    asked, timeout=_HEAD_START_S if addresses else None, return_when=asyncio.FIRST_COMPLETED
                )
                for evicted in (task.result() for task in done):
                    if evicted is not None:
                        addresses.clear()
                    for entry in evicted or ():
                        scheduler.log_event(TOPIC, {"action": "evicted", "worker": worker, **entry})
        finally:
            for task in asked:
                task.cancel()

    async def _evicted_by(
        self, scheduler: Scheduler, address: str, worker: str, known: _Known
    ) -> list[dict[str, Any]] | None:
        try:
            evicted = await asyncio.wait_for(
                getattr(scheduler.rpc(address), _HANDLER)(
                    pid=known.pid, locks=[list(lock) for lock in reversed(known.locks)], patience=self._patience
                ),
                self._patience + _ANSWER_S,
            )
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            logger.info("%s cannot look for what %s left: %s", address, worker, error)
            return None
        # msgpack makes tuples of lists; an address without our plugin answers with an error in a dict.
        return list(evicted) if isinstance(evicted, list | tuple) else None


async def _evict_handler(pid: int, locks: list[list[Any]], patience: float) -> list[dict[str, Any]]:
    # In a thread: this process's loop must not wait for a file server.
    return await asyncio.to_thread(evict_dead, pid, [(path, lock_dir) for path, lock_dir in locks], patience)


def evict_dead(pid: int, locks: list[Used], patience: float) -> list[dict[str, Any]]:
    """
    Evict process ``pid`` of this host from ``locks`` as soon as the kernel says that it is dead; never before.

    :param locks: path, and directory of locks or ``None``, of each
    :param patience: seconds after which a process that lives is left alone
    :returns: what was evicted: path, mode and token of each
    """
    deadline = time.monotonic() + patience
    evicted: list[dict[str, Any]] = []
    while locks:
        locks = [lock for lock in locks if _is_held_by_living(pid, lock, evicted)]
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_S if locks else 0)
    return evicted


def _is_held_by_living(pid: int, lock: Used, evicted: list[dict[str, Any]]) -> bool:
    path, lock_dir = lock
    try:
        state = inspect(path, lock_dir=lock_dir)
        ours = [peer for peer in (*state.holders, *state.waiters) if peer.pid == pid and peer.same_kernel]
        dead = [peer for peer in ours if peer.alive is False]
        gone = [peer for peer in dead if break_lock(path, token=peer.token, lock_dir=lock_dir)]
        evicted.extend({"path": path, "mode": peer.mode, "token": peer.token} for peer in gone)
    except (LockError, OSError) as error:
        logger.info("the lock on %r cannot be looked at: %s", path, error)
        return False
    return any(peer.alive for peer in ours)


def _held_metric(_: Worker) -> str:
    return ", ".join(ledger.held())


def _awaited_metric(_: Worker) -> str:
    return ", ".join(ledger.awaited())
