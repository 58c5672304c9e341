"""
What a cluster can add to the locks: early eviction, metrics, events. The locks do without it.

A lock ends early only when the kernel of its holder's host says that the process is dead. That the scheduler has
removed a worker proves nothing: its task may go on writing for as long as it likes. So the scheduler only asks, and the
nanny of that worker or a worker on the same host looks (:mod:`nfsrwlock.dask.journal`). If the whole host is gone
nobody can look, and the lease decides.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from distributed import Client, Scheduler, SchedulerPlugin, Worker, WorkerPlugin
from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.scheduler import WorkerState

from nfsrwlock.text import printable

from .holding import TOPIC, Hold, activity
from .journal import evict_dead, logger
from .settings import configured_time

#: How much longer than its looks an answer may take.
_ANSWER_S: Final = 5.0
#: Whoever cannot be reached for so many seconds is passed over.
_CONNECT_S: Final = 1.0


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
    plugins = (_SchedulerEviction(configured_time("eviction-timeout")), _WorkerLocks())

    async def register() -> None:
        for plugin in plugins:
            await client.register_plugin(plugin)

    return client.sync(register)  # type: ignore[no-untyped-call]


class _WorkerLocks(WorkerPlugin):
    # Shows what this worker holds and waits for. Releases nothing, not even when the worker is removed.
    name = "nfsrwlock-worker"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        worker.metrics["nfsrwlock held"] = lambda _: _shown(activity.held)
        worker.metrics["nfsrwlock awaited"] = lambda _: _shown(activity.awaited)
        activity.open_journal(_journal_of(worker.local_directory))
        with suppress(ImportError):  # there is no prometheus_client
            from . import prometheus  # noqa: F401, PLC0415 - registers
        activity.workers.append(worker)

    def teardown(self, worker: Worker) -> None:
        # Tasks may be running yet, and hold locks.
        for name in ("held", "awaited"):
            worker.metrics.pop(f"nfsrwlock {name}", None)
        activity.close_journal(_journal_of(worker.local_directory))
        activity.workers.remove(worker)


class _SchedulerEviction(SchedulerPlugin):
    # Asks, when a worker is removed, somebody on its host to evict what its process left, if it is dead.
    name = "nfsrwlock-scheduler"
    idempotent = True

    def __init__(self, patience: float) -> None:
        #: Seconds for which the process is given time to die.
        self._patience = patience
        # The scheduler forgets a worker before it tells the plugins of its end.
        self._workers: dict[str, WorkerState] = {}

    async def start(self, scheduler: Scheduler) -> None:
        self._workers.update(scheduler.workers)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._workers[worker] = scheduler.workers[worker]

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        if (removed := self._workers.pop(worker, None)) is not None:
            # Beside the removal, not in it: the rest of the cluster need not wait until a process is dead.
            scheduler._ongoing_background_tasks.call_soon(self._ask, scheduler, removed)

    async def _ask(self, scheduler: Scheduler, removed: WorkerState) -> None:
        arguments = evict_dead, _journal_of(removed.local_directory), self._patience
        neighbours = [state.address for state in scheduler.workers.values() if state.host == removed.host]
        for address in filter(None, (removed.nanny, *neighbours)):  # the nanny may have died with its worker
            try:
                async with (
                    asyncio.timeout(self._patience + _ANSWER_S),
                    rpc(address, timeout=_CONNECT_S, connection_args=scheduler.connection_args) as server,  # type: ignore[no-untyped-call]
                ):
                    # Dask's means to run something there, as client.run does; in a thread, for the loop there must not
                    # wait for a file server.
                    answer = await server.run(function=dumps(asyncio.to_thread), args=dumps(arguments))  # type: ignore[no-untyped-call]
                evicted = answer["result"]
            except Exception as error:  # whatever kind it is: one that is there without nfsrwlock, say
                logger.info("%s cannot look for what %s left: %r", address, removed.address, error)
                continue
            for entry in evicted:
                event = {"action": "evicted", "mode": entry.mode, "path": printable(entry.path)}
                scheduler.log_event(TOPIC, {**event, "worker": removed.address})
            return


def _journal_of(local_directory: str) -> str:
    # Beside that directory: a nanny removes it as soon as its worker has died.
    return f"{local_directory}.nfsrwlock"


def _shown(holds: list[Hold]) -> str:
    # A string, for the table of workers on the dashboard shows nothing else; and one that Dask's messages can carry: a
    # worker whose heartbeat is none ends.
    return ", ".join(sorted({f"{hold.settings.mode} {printable(hold.settings.path)}" for hold in list(holds)}))
