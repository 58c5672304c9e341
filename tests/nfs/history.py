"""
A judge of what several machines say they held: written apart from the engine, and knowing nothing of how it works.

All times are of the host's one clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hold:
    """
    One hold, from the moment its user knew of it until the moment before its user gave it back.

    :param who: held it
    :param mode: "read" or "write"
    :param granted: s
    :param released: s
    :param generation: of the grant, or of the data that a reader saw
    """

    who: str
    mode: str
    granted: float
    released: float
    generation: int

    def overlaps(self, other: Hold, error_s: float = 0) -> bool:
        """Whether both were held at one moment, even if the clocks are wrong by ``error_s``."""
        return self.granted + error_s < other.released and other.granted + error_s < self.released


def overlaps(holds: Iterable[Hold], error_s: float) -> Iterator[tuple[Hold, Hold]]:
    """Yield the pairs that were held together, the earlier first."""
    open_holds: list[Hold] = []
    for hold in sorted(holds, key=lambda hold: hold.granted):
        open_holds = [other for other in open_holds if other.released > hold.granted]
        yield from ((other, hold) for other in open_holds if other.overlaps(hold, error_s))
        open_holds.append(hold)


def conflicts(holds: Iterable[Hold], error_s: float) -> list[tuple[Hold, Hold]]:
    """The pairs that must not have been held together."""
    return [pair for pair in overlaps(holds, error_s) if "write" in (pair[0].mode, pair[1].mode)]


def out_of_order(holds: Iterable[Hold]) -> list[tuple[Hold, Hold]]:
    """The pairs of successive writes whose grant numbers do not rise."""
    writes = sorted((hold for hold in holds if hold.mode == "write"), key=lambda hold: hold.granted)
    return [(one, next_) for one, next_ in itertools.pairwise(writes) if next_.generation <= one.generation]
