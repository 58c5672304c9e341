"""
What the locks of this process do, for Prometheus: on the page ``/metrics`` of each worker that has the plugins.

Needs ``prometheus_client``, without which Dask itself has no such page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import prometheus_client
from distributed import Worker
from distributed.http.prometheus import PrometheusCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .activity import activity


class _Collector(PrometheusCollector):
    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)  # type: ignore[no-untyped-call]
        self.subsystem = "worker"

    def collect(self) -> Iterator[Metric]:
        for state in ("held", "awaited"):
            gauge = GaugeMetricFamily(self._name(state), f"Locks {state}.", labels=["mode"])
            modes = [use.mode for use in activity.uses(held=state == "held")]
            for mode in ("read", "write"):
                gauge.add_metric([mode], modes.count(mode))
            yield gauge
        yield CounterMetricFamily(self._name("wait"), "Time spent waiting.", activity.waited_s(), unit="seconds")
        yield CounterMetricFamily(self._name("lost"), "Holds that were lost.", activity.losses)

    def _name(self, name: str) -> str:
        return str(self.build_name(f"nfsrwlock_{name}"))  # type: ignore[no-untyped-call]


_collectors: Final[list[_Collector]] = []


def show(worker: Worker) -> None:
    """Add the metrics to those of the process, once: workers of one process have one page."""
    if not _collectors:
        _collectors.append(_Collector(worker))
        prometheus_client.REGISTRY.register(_collectors[0])


def hide() -> None:
    """Remove the metrics again."""
    while _collectors:
        prometheus_client.REGISTRY.unregister(_collectors.pop())
