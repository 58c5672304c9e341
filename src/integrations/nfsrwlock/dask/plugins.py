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
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from distributed import Client, Nanny, NannyPlugin, Scheduler, SchedulerPlugin, Worker, WorkerPlugin
from distributed.core import Status
from distributed.scheduler import WorkerState

from nfsrwlock_core import LockError, break_lock, inspect

from .activity import Event, JournalEntry, Use, activity, read_journal, remove_journal
from .context import current_worker
from .settings import configured, positive

try:
    from . import prometheus
except ImportError:  # there is no prometheus_client
    prometheus = None  # type: ignore[assignment]

logger: Final = logging.getLogger("nfsrwlock.dask")

#: The topic of ``client.get_events``.
TOPIC: Final = "nfsrwlock"
_HANDLER: Final = "nfsrwlock_evict_dead"
#: Strings, for the table of workers on the dashboard shows no others.
_METRICS: Final[dict[str, Callable[[Worker], str]]] = {
    "nfsrwlock held": lambda _: _shown(activity.uses(held=True)),
    "nfsrwlock awaited": lambda _: _shown(activity.uses(held=False)),
}
_LOOK_S: Final = 0.05
#: How much longer than its looks an answer may take.
_ANSWER_S: Final = 5.0
#: After so many seconds without an answer another neighbour is asked.
_HEAD_START_S: Final = 1.0


def install(client: Client) -> Any:
    """
    Register the plugins with a cluster: with what runs now and with what joins later.

    They evict the locks of worker processes that are proven dead, show held and awaited locks as metrics of each
    worker, also for Prometheus, measure waits (``nfsrwlock-wait`` among the fine performance metrics), and log events
    under the topic ``nfsrwlock``. Registering them again changes nothing. Nothing else changes: a lock needs no plugin.

    :param client: of the cluster
    :returns: ``None``; of an asynchronous client, something to await
    :raises TypeError: if ``client`` is no client of ``distributed``
    :raises ValueError: if ``nfsrwlock.eviction-timeout`` in Dask's configuration is no time above 0
    """
    if not isinstance(client, Client):
        raise TypeError(f"install needs a distributed.Client, not {type(client).__name__}")
    patience = positive("eviction-timeout", configured("eviction-timeout", None))
    plugins = (SchedulerEviction(patience), NannyEviction(), WorkerLocks())

    async def register() -> None:
        for plugin in plugins:
            await client.register_plugin(plugin)

    return client.sync(register)  # type: ignore[no-untyped-call]


class WorkerLocks(WorkerPlugin):
    """Shows what this worker holds and waits for. Releases nothing, not even when it is removed."""

    name = "nfsrwlock-worker"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Distributed calls this when the plugin comes to the worker."""
        self._worker = worker
        worker.metrics.update(_METRICS)
        worker.handlers[_HANDLER] = _evict_handler
        activity.open_journal(_journal_of(worker.local_directory))
        activity.listeners.append(self._log)
        if prometheus is not None:
            prometheus.show(worker)

    def teardown(self, worker: Worker) -> None:
        """Distributed calls this when the worker ends or the plugin goes; tasks may be running yet, and hold locks."""
        for name in _METRICS:
            worker.metrics.pop(name, None)
        _remove_handler(worker)
        activity.close_journal(_journal_of(worker.local_directory))
        activity.listeners.remove(self._log)
        if not activity.listeners and prometheus is not None:
            prometheus.hide()

    def _log(self, event: Event) -> None:
        # Workers of one process have one record of it, and one of them waited.
        if current_worker() not in (None, self._worker):
            return
        try:
            self._worker.log_event(TOPIC, event)
        except Exception:  # the loop has ended: nobody listens any more, and the lock is not concerned
            logger.debug("the event %r was not delivered", event, exc_info=True)


def _journal_of(local_directory: str) -> str:
    # Beside that directory: a nanny removes it as soon as its worker has died.
    return f"{local_directory}.nfsrwlock"


class NannyEviction(NannyPlugin):
    """Lets a nanny, which outlives its worker's process, look at what that process has left."""

    name = "nfsrwlock-nanny"
    idempotent = True
    restart = False

    def setup(self, nanny: Nanny) -> None:
        """Distributed calls this when the plugin comes to the nanny."""
        nanny.handlers[_HANDLER] = _evict_handler

    def teardown(self, nanny: Nanny) -> None:
        """Distributed calls this when the nanny ends or the plugin goes."""
        _remove_handler(nanny)


def _remove_handler(server: Worker | Nanny) -> None:
    # One that ends is asked yet, and Dask would log an error.
    if server.status in (Status.running, Status.paused):
        server.handlers.pop(_HANDLER, None)


class SchedulerEviction(SchedulerPlugin):
    """
    Asks, when a worker is removed, somebody on its host to evict what its process left, if it is dead.

    :param patience: seconds for which the process is given time to die
    """

    name = "nfsrwlock-scheduler"
    idempotent = True

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # The scheduler forgets a worker before it tells the plugins of its end.
        self._workers: dict[str, WorkerState] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Distributed calls this when the plugin comes to the scheduler."""
        self._workers.update(scheduler.workers)

    async def before_close(self) -> None:
        """Distributed calls this when the scheduler is about to end."""
        for task in self._asking:
            task.cancel()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Distributed calls this when a worker has joined."""
        self._workers[worker] = scheduler.workers[worker]

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Distributed calls this when it has removed a worker, for whatever reason."""
        removed = self._workers.pop(worker, None)
        if removed is None:
            return
        # Beside the removal, not in it: the rest of the cluster need not wait until a process is dead.
        task = asyncio.get_running_loop().create_task(self._ask(scheduler, removed))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, scheduler: Scheduler, removed: WorkerState) -> None:
        neighbours = [state.address for state in scheduler.workers.values() if state.host == removed.host]
        addresses = deque(filter(None, (removed.nanny, *neighbours)))
        asked: set[asyncio.Task[list[Event] | None]] = set()
        try:
            while addresses or asked:
                if addresses:
                    # Somebody else, too, if there is no answer soon: the nanny may have died with its worker.
                    asked.add(asyncio.create_task(self._evicted_by(scheduler, addresses.popleft(), removed)))
                done, asked = await asyncio.wait(
                    asked, timeout=_HEAD_START_S if addresses else None, return_when=asyncio.FIRST_COMPLETED
                )
                for evicted in (task.result() for task in done):
                    if evicted is not None:
                        addresses.clear()
                    for event in evicted or ():
                        scheduler.log_event(TOPIC, {"action": "evicted", "worker": removed.address, **event})
        finally:
            for task in asked:
                task.cancel()

    async def _evicted_by(self, scheduler: Scheduler, address: str, removed: WorkerState) -> list[Event] | None:
        try:
            evicted = await asyncio.wait_for(
                getattr(scheduler.rpc(address), _HANDLER)(
                    journal=_journal_of(removed.local_directory), patience=self._patience
                ),
                self._patience + _ANSWER_S,
            )
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            logger.info("%s cannot look for what %s left: %s", address, removed.address, error)
            return None
        # msgpack makes tuples of lists; an address without our plugin answers with an error in a dict.
        return list(evicted) if isinstance(evicted, list | tuple) else None


async def _evict_handler(journal: str, patience: float) -> list[Event]:
    # In a thread: this process's loop must not wait for a file server.
    return await asyncio.to_thread(evict_dead, journal, patience)


def evict_dead(journal: str, patience: float) -> list[Event]:
    """
    Evict the process that wrote ``journal`` as soon as the kernel says that it is dead; never before.

    What that process held may have been released meanwhile by its heartbeat process, or been evicted by who waits for
    it: that counts as well. Afterwards the journal is removed.

    :param patience: seconds after which a process that lives is left alone
    :returns: the path and mode of each lock that it held when it died
    """
    deadline = time.monotonic() + patience
    while (left := read_journal(journal)) is not None:
        if not left.is_alive:
            evicted = [entry for entry in left.entries if _evict(entry, left.pid) and entry.is_held]
            remove_journal(journal)
            return [{"mode": entry.mode, "path": entry.path} for entry in evicted]
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_S)
    return []


def _evict(entry: JournalEntry, pid: int) -> bool:
    # Returns whether the process has no claim on the lock any more.
    try:
        state = inspect(entry.path, lock_dir=entry.lock_dir)
        ours = [peer for peer in (*state.holders, *state.waiters) if peer.pid == pid and peer.same_kernel]
        for peer in ours:
            if peer.alive is False:
                break_lock(entry.path, token=peer.token, lock_dir=entry.lock_dir)
    except (LockError, OSError) as error:
        logger.info("the lock on %r cannot be looked at: %s", entry.path, error)
        return False
    return not any(peer.alive for peer in ours)


def _shown(uses: list[Use]) -> str:
    return ", ".join(sorted({f"{use.mode} {use.path}" for use in uses}))
