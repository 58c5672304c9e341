"""
How long a peer has been silent while we watched.

Liveness is judged on the watcher's own monotonic clock only: no time of another host is ever read. What counts is
watched time. If two looks lie further apart than a third of the peer's lease, the time between them was not watched
(we slept, or the server did, and then the peer could not beat either), so the count starts anew. It starts anew, too,
when the connection to the server is another one than before, and then needs to be longer if others may stand still.

A verdict from here is never more than a permission to try: the eviction itself is a compare-and-swap on the server
that fails if the peer has moved since it was observed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class _Record(NamedTuple):
    # Replaced as a whole: threads share a watch, and what they judge by must be of one look.
    met: float
    beat: int | None = None
    since: float | None = None
    last: float = 0.0
    credit: float = 0.0


class Watch:
    """
    What one observer knows of the peers on one lock. Times are seconds of one monotonic clock, passed in.

    It may outlive an acquisition and serve several at once: the rule about gaps keeps it honest.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._connection: str | None = None
        self._connected = -math.inf
        self._others_stand_still_until = -math.inf

    def connected(self, connection: str | None, *, now: float, standstill: float) -> None:
        """
        Note what the connection to the file server is now.

        :param connection: another text than before for a new one; ``None`` if it does not matter
        :param standstill: for how many seconds after a new one a peer may be unable to beat
        """
        before, self._connection = self._connection, connection
        if None is not before != connection:
            self._connected, self._others_stand_still_until = now, now + standstill

    def meet(self, name: str, now: float) -> float:
        """Note that ``name`` is there, without a look at its heartbeat; return when it was first met."""
        return self._records.setdefault(name, _Record(met=now)).met

    def look(
        self, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0
    ) -> tuple[float, int | None]:
        """
        Take in a successful look at ``name`` that showed ``beat``.

        :param lease: the peer's lease, seconds
        :param credit: seconds that others watched this very beat before we began, from their notes
        :returns: for how many seconds its latest known beat was seen, and which that is. To be judged together: another
            thread's look may find a later one at any moment
        """
        record = self._records.get(name, _Record(met=now))
        if beat is not None and record.beat is not None and beat < record.beat:
            beat, credit = record.beat, 0.0  # beats only grow: this look is an old one, and so is what others watched
        still = self._others_stand_still_until - now
        if (
            record.since is None
            or record.beat != beat
            or now - record.last > lease / 3
            or record.last < self._connected
        ):
            # What it takes longer than a lease until all others can beat again must pass, too.
            record = record._replace(beat=beat, since=now, credit=min(credit, lease - still) if still > 0 else credit)
        elif record.credit >= 0:
            # Others' time and ours may overlap: the longer counts.
            record = record._replace(credit=max(record.credit, credit - (now - record.since)))
        self._records[name] = record = record._replace(last=now)
        return _watched(record), beat

    def watched(self, name: str) -> float:
        """Return for how many seconds ``name`` was seen to show its latest known beat, notes of others included."""
        record = self._records.get(name)
        return 0.0 if record is None else _watched(record)

    def silence(self, name: str, now: float) -> float:
        """Return for how many seconds nothing new was seen of ``name``; for people: not all of it may count."""
        record = self._records.get(name)
        if record is None:
            return 0.0
        return now - (record.met if record.since is None else record.since) + max(0.0, record.credit)

    def last_look(self, name: str) -> float | None:
        """Return when the latest look was, ``None`` if there was none."""
        record = self._records.get(name)
        return None if record is None or record.since is None else record.last

    def beat(self, name: str) -> int | None:
        """Return the beat that the latest look showed."""
        record = self._records.get(name)
        return None if record is None else record.beat

    def known(self) -> set[str]:
        """Return the names of all peers that something is known of."""
        return set(self._records)

    def forget(self, names: Iterable[str]) -> None:
        """Forget peers that are gone: a name never comes back."""
        for name in names:
            self._records.pop(name, None)


def _watched(record: _Record) -> float:
    return 0.0 if record.since is None else record.last - record.since + record.credit
