"""
The clock that leases are counted on, and what the wall clock tells about it.

No time of another host is ever read, and none of these clocks decides anything about a peer. The wall clock only makes
a holder distrust itself, after a pause that its own clock has not seen.
"""

from __future__ import annotations

import math
import time
from collections import deque
from functools import partial
from typing import Final

#: A clock that runs through suspend, so that a laptop or a virtual machine that slept knows that its lease ran out.
#: Elsewhere than on Linux, CLOCK_MONOTONIC does that.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
#: By how much the wall clock must have been set for it to be noted, seconds.
_STEP_S: Final = 0.01
#: Returns seconds on the clock that leases are counted on. No function of our own: every cycle calls it many times.
now: Final = partial(time.clock_gettime, _CLOCK)


class WallClock:
    """By how much the wall clock has run ahead of the clock of the leases."""

    def __init__(self) -> None:
        #: Since when, on the clock of the leases, the one has been ahead of the other by how much, seconds.
        self._leads: deque[tuple[float, float]] = deque(maxlen=64)
        #: How many times it was seen to be set.
        self.steps = 0

    def look(self) -> float:
        """Compare the clocks; return the moment on that of the leases. To be called before anything renews a lease."""
        wall, moment = time.time(), now()
        # Small changes are how a clock is kept right; to note each of them would push out what counts.
        known = self._leads[-1][1] if self._leads else math.inf
        if abs(wall - moment - known) > _STEP_S:
            began, wall, moment = now(), time.time(), now()
            # If this thread stood still in between, they cannot be compared.
            if moment - began <= _STEP_S / 2 and abs(wall - moment - known) > _STEP_S:
                self._leads.append((moment, wall - moment))
                self.steps += 1
        return moment

    def gained(self, since: float) -> float:
        """Return by how much the wall clock has run ahead from the last look before ``since`` to the latest."""
        if not self._leads or self._leads[-1][0] <= since:  # none: whenever it looked so far, its thread stood still
            return 0.0
        leads = list(self._leads)
        before = [lead for moment, lead in leads if moment <= since]
        return max(leads[-1][1] - (before or [leads[0][1]])[-1], 0.0)


wall_clock: Final = WallClock()
