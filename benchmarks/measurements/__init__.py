"""
What is measured, one module each. A measurement takes a place and a plan, and yields records for the results.

A record names its measurement, place and contender; the rest are its values. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benchmarks.places import NfsLab, Place

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """
    How thoroughly a place is measured.

    :param contenders: those to be compared
    :param few: those of them that are compared in everything but uncontended cycles
    :param cycle_s: seconds of uncontended cycles
    :param turn_s: for about so long one contender after the other makes some of them
    :param starts: how often each program is started
    :param results: in a store of joblib's
    :param rounds: how often all of them are computed, loaded and removed
    :param contended_s: for how long a lock is contended for
    :param threads: numbers of threads of one process that contend for it
    :param crowd: processes of a storm, and of waiters and holders
    :param storm_s: for how long a storm is watched
    :param storms: how many, of a contender that is through in a second or so
    :param readers: that come and go around a writer
    :param writer_s: for how long the writer tries its luck
    :param writer_waits: after so many waits it has tried enough; 0: it tries all the time
    :param polls: poll intervals of the handover, seconds
    :param handovers: per pair of processes and poll interval
    :param long_wait_s: a handover after this long a wait, too; 0: none
    :param windows_s: when the requests of waiters are counted: after so long a wait, for so long
    :param heartbeat_s: of the idle holders
    :param recoveries: how often
    :param left_out: measurements that would find the same as at another place
    :param recovery_s: for how long a recovery is waited for
    :param sizes: numbers of readers at once
    :param growth_s: for how long they may take to come
    """

    contenders: tuple[str, ...]
    few: tuple[str, ...]
    cycle_s: float = 20.0
    turn_s: float = 0.1
    starts: int = 15
    results: int = 400
    rounds: int = 5
    contended_s: float = 8.0
    threads: tuple[int, ...] = (4, 30, 100)
    crowd: int = 100
    storm_s: float = 15.0
    storms: int = 4
    readers: int = 50
    writer_s: float = 8.0
    writer_waits: int = 0
    polls: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    handovers: int = 3
    long_wait_s: float = 12.0
    windows_s: tuple[tuple[float, float], ...] = ((2.0, 4.0), (14.0, 15.0))
    heartbeat_s: float = 2.0
    recoveries: int = 2
    recovery_s: float = 8.0
    sizes: tuple[int, ...] = (1, 10, 100, 1000, 5000)
    growth_s: float = 12.0
    left_out: tuple[str, ...] = ()

    def without(self, contender: str) -> Plan:
        """The same without a contender."""
        contenders, few = (tuple(name for name in names if name != contender) for names in (self.contenders, self.few))
        return replace(self, contenders=contenders, few=few)

    def scaled(self, factor: float) -> Plan:
        """The same, taking about so many times as long, as far as it can be shortened or drawn out."""
        return replace(
            self,
            cycle_s=self.cycle_s * factor,
            contended_s=self.contended_s * factor,
            storms=max(round(self.storms * factor), 1),
            writer_s=self.writer_s * factor,
            handovers=max(round(self.handovers * factor), 2),
            recoveries=max(round(self.recoveries * factor), 1),
        )


Measurement = Callable[["Place", Plan, "NfsLab | None"], Iterator[Record]]


def measurements() -> dict[str, Measurement]:
    """All of them by name, in the order in which they are taken."""
    from . import cache, contended, growth, handover, idle, recovery, start, storm, uncontended, writer

    modules = (uncontended, start, cache, contended, growth, storm, writer, handover, idle, recovery)
    return {module.__name__.rpartition(".")[2]: module.measure for module in modules}


def is_asked_shared(contender: str, plan: Plan) -> bool:
    """Whether it is what a contender offers to readers: its shared lock, or its only one."""
    return contender.replace("-write", "-read") not in {*plan.contenders} - {contender}


#: Seconds between the moment when processes are told to start and the start.
LEAD_S: Final = 0.5
