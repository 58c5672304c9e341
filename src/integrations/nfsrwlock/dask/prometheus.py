"""
What the locks of this process do, for Prometheus: on the page ``/metrics`` of each worker that has the plugins.

Needs ``prometheus_client``, without which Dask itself has no such page. All workers of a process have one page.
"""

from __future__ import annotations

from collections.abc import Iterator

import dask.config
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

from .holding import activity


class _Collector(Collector):
    def collect(self) -> Iterator[Metric]:
        if not activity.workers:  # no worker has the plugin
            return
        namespace = dask.config.get("distributed.dashboard.prometheus.namespace")
        prefix = f"{namespace}_worker_nfsrwlock_" if namespace else "worker_nfsrwlock_"
        for state, holds in (("held", activity.held), ("awaited", activity.awaited)):
            gauge = GaugeMetricFamily(f"{prefix}{state}", f"Locks {state}.", labels=["mode"])
            modes = [hold.settings.mode for hold in list(holds)]
            for mode in ("read", "write"):
                gauge.add_metric([mode], modes.count(mode))
            yield gauge
        yield CounterMetricFamily(f"{prefix}wait", "Time spent waiting.", activity.waited_s(), unit="seconds")
        yield CounterMetricFamily(f"{prefix}lost", "Holds that were lost.", activity.losses)


REGISTRY.register(_Collector())
