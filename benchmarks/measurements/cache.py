"""Many small results of joblib: this project's ``Memory`` beside joblib's own, for each result."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import NfsLab, Place, group

#: The stores that are compared, by what a task calls them.
STORES = ("joblib", "nfsrwlock")
#: What is done with them.
DEEDS = ("miss", "hit", "reduce_size", "clear")


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """Round by round, and locally only. What a lock costs where the results are large or lie on NFS is a cycle's."""
    if place.is_nfs:
        return
    times: dict[tuple[str, str], list[float]] = {(store, deed): [] for store in STORES for deed in DEEDS}
    with group([place.machines[0].member()]) as (member,):
        for turn in range(plan.rounds + 1):
            for store in STORES:
                found = member.do("small_results", store=store, directory=place.path(), count=plan.results)
                if turn:  # the first one imports
                    for deed in DEEDS:
                        times[store, deed].append(found[deed])
    for (store, deed), took in times.items():
        yield {
            "measurement": "cache",
            "place": place.name,
            "contender": store,
            "deed": deed,
            "results": plan.results,
            "seconds": spread(took),
        }
