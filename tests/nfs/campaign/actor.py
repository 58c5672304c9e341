"""
One process of a campaign, on a client: takes the locks at random, and says what it knows of each hold.

``python actor.py SETTINGS`` with one JSON object; ends in order when its standard input does. Each line of its output
is one event, with the time on the machine's monotonic clock, s, and the number of the task that says it.

- ``ask``: is about to acquire; ``timeout``: got nothing
- ``granted``: has the lock ``since`` when, with the grant's generation, and ``until`` when by the lease's own account;
  its ``limit``, if at most so many may have it at a time
- ``beat``: the lease was renewed ``until``; ``suspect``, ``restored``, ``lost``: what the hold says of itself
- ``release``: is about to give it back
- ``end``: the last line
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable
from typing import Any

from nfsrwlock import AsyncSoftReadWriteLock, HoldStatus, LockError, SoftReadWriteLock, Timeout

#: How often a holder looks at what its hold says, seconds.
_LOOK_S = 0.05


async def result_of(value: Any) -> Any:
    """What a lock for threads returns, or what one for tasks lets wait for."""
    return await value if inspect.isawaitable(value) else value


class Actor:
    """
    Takes locks until it is told to stop: a process's only thread, or one of its tasks.

    :param locks: by number
    :param limits: how many may hold a lock at a time of those who read it with a limit, by the lock's number
    :param permits: whether it takes nothing but what is limited
    :param lease_s: of the locks, seconds; some holds last longer
    :param seed: of its choices
    """

    def __init__(
        self,
        locks: dict[int, Any],
        limits: dict[int, int],
        permits: bool,
        lease_s: float,
        seed: int,
        task: int,
        stop: threading.Event,
    ) -> None:
        self.locks = locks
        self.limits = limits
        self.permits = permits
        self.lease_s = lease_s
        self.chance = random.Random(seed + task)
        self.task = task
        self.stop = stop

    def say(self, event: str, at: float | None = None, **more: Any) -> None:
        """Write one event."""
        at = time.monotonic() if at is None else at
        sys.stdout.write(json.dumps({"event": event, "at": at, "task": self.task, **more}) + "\n")
        sys.stdout.flush()

    def sleep(self, lock: Any, seconds: float) -> Awaitable[None] | None:
        """Sleep as the lock's users do."""
        return asyncio.sleep(seconds) if isinstance(lock, AsyncSoftReadWriteLock) else time.sleep(seconds)

    async def play(self) -> None:
        """Take one lock after the other."""
        while not self.stop.is_set():
            number = self.chance.choice(list(self.locks))
            mode = "write" if self.chance.random() < 0.25 and not self.permits else "read"
            await self._turn(number, mode)
            await result_of(self.sleep(self.locks[number], self.chance.expovariate(40)))

    async def _turn(self, number: int, mode: str) -> None:
        lock = self.locks[number]
        timeout = self.chance.choice([-1, -1, -1, 0, 1, self.lease_s / 2])
        is_limited = mode == "read" and (self.permits or self.chance.random() < 0.7)
        limit = self.limits.get(number) if is_limited else None
        self.say("ask", lock=number, mode=mode)
        try:
            if mode == "write":
                await result_of(lock.acquire_write(timeout))
            else:
                await result_of(lock.acquire_read(timeout, at_most=limit))
        except Timeout:
            self.say("timeout")
            return
        # The clock before the question, here and below: then what is said is true of an earlier moment, never too much.
        at = time.monotonic()
        until = at + (lock.lease_remaining or 0.0)
        generation = None
        # A reader's number costs more than its lock, so not all of them ask.
        if mode == "write" or self.chance.random() < 0.25:
            try:
                is_async = isinstance(lock, AsyncSoftReadWriteLock)
                generation = await lock.read_generation() if is_async else lock.generation
            except LockError:  # it was lost already, or cannot be known while the server is away
                pass
        said = {"lock": number, "mode": mode, "generation": generation, "limit": limit}
        self.say("granted", **said, until=until, since=at, lease=self.lease_s)
        await self._hold(lock, until)
        if lock.status is HoldStatus.LOST:
            self.say("lost")
        self.say("release")
        await result_of(lock.release())

    async def _hold(self, lock: Any, until: float) -> None:
        short = self.chance.random() < 0.98
        seconds = self.chance.expovariate(60) if short else self.chance.uniform(0.3, 2.5) * self.lease_s
        end, said = time.monotonic() + seconds, HoldStatus.HELD
        while (left := end - time.monotonic()) > 0:
            await result_of(self.sleep(lock, min(left, _LOOK_S)))
            at = time.monotonic()
            remaining, status = lock.lease_remaining, lock.status
            if status is HoldStatus.LOST:
                return
            if status is not said:
                self.say("suspect" if status is HoldStatus.SUSPECT else "restored")
                said = status
            if status is HoldStatus.HELD and remaining is not None and at + remaining > until + 0.1:
                until = at + remaining
                self.say("beat", until=until)


def become(user: int, group: int) -> None:
    """Go on as another user, who may not be able to read where Python lies: what is imported late comes first."""
    import pwd  # noqa: F401

    import filelock  # noqa: F401

    os.setgroups([group])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


async def play(settings: dict[str, Any]) -> None:
    """Let all tasks of this process play; without tasks, its thread."""
    cls = AsyncSoftReadWriteLock if settings["tasks"] else SoftReadWriteLock
    locks = {
        int(number): cls(path, is_singleton=False, **settings["options"], share=share)
        for number, (path, share) in settings["locks"].items()
    }
    stop = threading.Event()

    def listen() -> None:
        os.read(sys.stdin.fileno(), 1)  # by no buffer, which an interpreter that ends early would wait for, and abort
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    lease_s, seed = settings["options"]["stale_threshold"], settings["seed"]
    limits = {int(number): limit for number, limit in settings["limits"].items()}
    permits = settings["permits"]
    actors = [Actor(locks, limits, permits, lease_s, seed, task, stop) for task in range(settings["tasks"] or 1)]
    await asyncio.gather(*(actor.play() for actor in actors))
    for lock in locks.values():
        await result_of(lock.close())
    actors[0].say("end")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    if arguments["user"]:
        become(*arguments["user"])
    asyncio.run(play(arguments))
