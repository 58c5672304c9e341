"""Clocks that are wrong by minutes, and clocks that are set while a lock is held: time of day decides nothing."""

from __future__ import annotations

import time

import pytest

from nfs.scene import BOUND_S, LEASE_S, Scene, wait_until_announced

pytestmark = pytest.mark.nfs

MINUTES_10 = 600.0


@pytest.mark.parametrize("holder_ahead", [MINUTES_10, -MINUTES_10], ids=["holder ahead", "holder behind"])
def test_a_skewed_holder_is_waited_for_and_a_dead_one_is_not_waited_for_longer(
    scene: Scene, holder_ahead: float
) -> None:
    path = scene.path()
    scene.n1.skew(holder_ahead)
    scene.n2.skew(-holder_ahead)
    holder, waiter = scene.locker(scene.n1, path), scene.locker(scene.n2, path)
    holder.do("lock.acquire_write()")
    generation = holder.do("lock.generation")
    waiter.tell("lock.acquire_write()")
    wait_until_announced(scene, path, 2)
    time.sleep(LEASE_S / 2)
    # The holder's clock is set right past by ten minutes, and the waiter's too, the other way.
    scene.n1.skew(-holder_ahead)
    scene.n2.skew(holder_ahead)
    time.sleep(LEASE_S * 1.5)
    holder.do("lock.check()")
    assert not waiter.has_answered()

    scene.n1.cut()
    silent_since = time.monotonic()
    waiter.answer(timeout=LEASE_S + 60)
    took = time.monotonic() - silent_since
    print(f"recovered after {took:.2f} s with a lease of {LEASE_S:.0f} s")
    # Its last heartbeat may be a third of the lease old.
    assert LEASE_S * 0.6 < took < LEASE_S + BOUND_S
    assert waiter.do("lock.generation") > generation
    waiter.do("lock.release()")
