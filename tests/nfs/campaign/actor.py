"""
One process of a campaign, on a client: takes the locks at random, and says what it knows of each hold.

``python actor.py SETTINGS`` with one JSON object; ends in order when its standard input does. Each line of its output
is one event, with the time on the machine's monotonic clock, s.

- ``ask``: is about to acquire; ``timeout``: got nothing
- ``granted``: has the lock ``since`` when, with the grant's generation, and ``until`` when by the lease's own account
- ``beat``: the lease was renewed ``until``; ``suspect``, ``restored``, ``lost``: what the hold says of itself
- ``release``: is about to give it back; ``released``: has
- ``end``: the last line
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

from nfsrwlock import HoldStatus, LockError, SoftReadWriteLock, Timeout

#: How often a holder looks at what its hold says, seconds.
_LOOK_S = 0.05


def say(event: str, at: float | None = None, **more: Any) -> None:
    """Write one event."""
    print(json.dumps({"event": event, "at": time.monotonic() if at is None else at, **more}), flush=True)


class Actor:
    """
    Takes locks until it is told to stop.

    :param paths: what the locks are for
    :param options: of the locks
    :param seed: of its choices
    :param lease_s: of the locks, seconds; some holds last longer
    """

    def __init__(self, paths: list[str], options: dict[str, Any], seed: int, lease_s: float) -> None:
        self.locks = [SoftReadWriteLock(path, is_singleton=False, **options) for path in paths]
        self.chance = random.Random(seed)
        self.lease_s = lease_s
        self.stop = threading.Event()

    def play(self) -> None:
        """Take one lock after the other."""
        while not self.stop.is_set():
            number = self.chance.randrange(len(self.locks))
            mode = "write" if self.chance.random() < 0.25 else "read"
            timeout = self.chance.choice([-1, -1, -1, 0, 1, self.lease_s / 2])
            self._turn(number, mode, timeout)
            self.stop.wait(self.chance.expovariate(4))
        for lock in self.locks:
            lock.close()
        say("end")

    def _turn(self, number: int, mode: str, timeout: float) -> None:
        lock = self.locks[number]
        say("ask", lock=number, mode=mode)
        try:
            (lock.acquire_write if mode == "write" else lock.acquire_read)(timeout=timeout)
        except Timeout:
            say("timeout")
            return
        # The clock before the question, here and below: then what is said is true of an earlier moment, never too much.
        at = time.monotonic()
        until = at + (lock.lease_remaining or 0.0)
        try:
            generation = lock.generation
        except LockError:  # it was lost already, or cannot be known while the server is away
            generation = None
        say("granted", lock=number, mode=mode, generation=generation, until=until, since=at)
        self._hold(lock, until)
        if lock.status is HoldStatus.LOST:
            say("lost")
        say("release")
        lock.release()
        say("released")

    def _hold(self, lock: SoftReadWriteLock, until: float) -> None:
        short = self.chance.random() < 0.85
        seconds = self.chance.expovariate(10) if short else self.chance.uniform(0.3, 2.5) * self.lease_s
        end, said = time.monotonic() + seconds, HoldStatus.HELD
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
            at = time.monotonic()
            remaining, status = lock.lease_remaining, lock.status
            if status is HoldStatus.LOST:
                return
            if status is not said:
                say("suspect" if status is HoldStatus.SUSPECT else "restored")
                said = status
            if status is HoldStatus.HELD and remaining is not None and at + remaining > until + 0.1:
                until = at + remaining
                say("beat", until=until)


def main() -> None:
    settings = json.loads(sys.argv[1])
    actor = Actor(settings["paths"], settings["options"], settings["seed"], settings["lease_s"])

    def listen() -> None:
        sys.stdin.buffer.read(1)
        actor.stop.set()

    threading.Thread(target=listen, daemon=True).start()
    actor.play()


if __name__ == "__main__":
    main()
