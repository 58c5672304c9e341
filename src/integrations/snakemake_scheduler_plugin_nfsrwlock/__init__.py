"""
``snakemake --scheduler nfsrwlock``: jobs whose lock is busy are not started yet, so they take no core while they wait.

A separate package only because Snakemake finds schedulers by this name. Every Snakemake process imports it, so it
imports next to nothing. It is advisory: what it lets go takes its locks as always, and may still have to wait.
"""

from __future__ import annotations

from snakemake_interface_scheduler_plugins.base import SchedulerBase
from snakemake_interface_scheduler_plugins.registry import SchedulerPluginRegistry

__all__ = ["Scheduler"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Scheduler(SchedulerBase):  # type: ignore[misc]
    """Holds back jobs whose locks are busy; Snakemake's greedy scheduler chooses among the others."""

    def __post_init__(self) -> None:
        plugin = SchedulerPluginRegistry().get_plugin("greedy")
        self._chooser = plugin.scheduler(self.dag, plugin.settings_cls(), self.logger)
        self._admission: Any = None

    def dag_updated(self) -> None:
        """Pass it on."""
        self._chooser.dag_updated()

    def select_jobs(
        self,
        selectable_jobs: Sequence[Any],
        remaining_jobs: Sequence[Any],
        available_resources: Mapping[str, int | str],
        input_sizes: dict[Any, int],
    ) -> Sequence[Any]:
        """Return the jobs to start now. None, if all wait for locks; then it is asked again after a while."""
        if self._admission is None:
            from nfsrwlock.snakemake.admission import Admission  # noqa: PLC0415 - not for processes that choose nothing

            self._admission = Admission(self.dag)
        return self._admission.select(  # type: ignore[no-any-return]
            selectable_jobs,
            lambda free: self._chooser.select_jobs(free, remaining_jobs, available_resources, input_sizes),
        )
