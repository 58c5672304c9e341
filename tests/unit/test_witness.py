"""A hold as other processes see it: they fail in time when it no longer stands."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import Raised, Stage, announcements, beat_of, wait_until
from nfsrwlock import HoldWitness, LeaseExpiredError, LockLostError, LockNotHeldError, SoftReadWriteLock, break_lock

LEASE_S = 6.0
HOLD = f"lock = SoftReadWriteLock('data', heartbeat_interval=1, stale_threshold={LEASE_S}); lock.acquire_write(); pass"


@pytest.fixture(params=[None, "elsewhere"])
def host(request: pytest.FixtureRequest) -> str | None:
    return request.param  # type: ignore[no-any-return]


def passes_last(check: Callable[[], None]) -> float:
    """Check until the lease is over; return when the last check that passed was begun (``time.monotonic``)."""
    began = [time.monotonic()]

    def fails() -> bool:
        moment = time.monotonic()
        try:
            check()
        except LeaseExpiredError:
            return True
        began.append(moment)
        return False

    wait_until(fails, pause=0.1)
    return began[-1]


def witness(path: Path) -> HoldWitness:
    (name,) = announcements(path)
    return HoldWitness(str(path), f"{path}.rwlock", name)


def test_it_is_made_from_a_hold_only_and_survives_pickling(tmp_path: Path) -> None:
    lock = SoftReadWriteLock(tmp_path / "data")
    with pytest.raises(LockNotHeldError):
        lock.witness()
    with lock.read_lock():
        seen = pickle.loads(pickle.dumps(lock.witness()))
        seen.check()
    with pytest.raises(LockLostError, match="released it or was evicted"):
        seen.check()
    with lock.read_lock(), pytest.raises(LockLostError):
        seen.check()  # a new hold is another one


def test_it_passes_while_heartbeats_come_also_after_long_pauses(stage: Stage, tmp_path: Path, host: str) -> None:
    stage.actor(HOLD, host=host)
    seen = witness(tmp_path / "data")
    waited = wait_until(lambda: len(os.listdir(next((tmp_path / "data.rwlock").glob("write.*")))) > 0)
    for _ in range(3):
        seen.check()
        seen._looked, seen._seen = -1e9, None  # as if the last look had been very long ago
    assert waited < LEASE_S
    assert [name for name in os.listdir(tmp_path / "data.rwlock") if name.startswith("gone.")] == []


def test_it_fails_at_once_when_the_holder_has_died_on_this_machine(stage: Stage, tmp_path: Path) -> None:
    holder = stage.actor(HOLD)
    seen = witness(tmp_path / "data")
    seen.check()
    holder.kill()
    assert len(announcements(tmp_path / "data")) == 1, "the marker is still there"
    with pytest.raises(LockLostError, match="has died"):
        seen.check()


@pytest.mark.parametrize("looks_before", [True, False])
def test_it_fails_within_the_lease_when_a_holder_elsewhere_falls_silent(
    stage: Stage, tmp_path: Path, looks_before: bool
) -> None:
    holder = stage.actor(HOLD, host="elsewhere")
    seen = witness(tmp_path / "data")
    if looks_before:
        seen.check()
    holder.kill()
    killed = time.monotonic()

    def check() -> None:
        # A witness that looks for the first time must know the age as well as one that has looked all the time.
        (seen if looks_before else witness(tmp_path / "data")).check()

    assert passes_last(check) - killed <= LEASE_S
    assert len(announcements(tmp_path / "data")) == 1, "the marker is still there"


def test_a_heartbeat_that_a_cache_showed_late_counts_from_when_it_was_sent(stage: Stage, tmp_path: Path) -> None:
    # As on an NFS mount with `nocto`: what a look shows may be as it was a minute before.
    holder = stage.actor(HOLD, host="elsewhere")
    (name,) = announcements(tmp_path / "data")
    announcement = tmp_path / "data.rwlock" / name
    holder.kill()
    seen = witness(tmp_path / "data")
    began, shown = time.time(), time.monotonic()
    for beat, age in ((0, LEASE_S * 0.5), (1, LEASE_S * 0.45)):
        show_beat(announcement, beat)
        os.utime(announcement, (began, began - age))
        seen.check()
        time.sleep(0.1)
    assert passes_last(seen.check) - shown < LEASE_S * 0.6


def test_only_another_number_is_a_heartbeat_not_another_time_stamp(stage: Stage, tmp_path: Path) -> None:
    holder = stage.actor(HOLD, host="elsewhere")
    (name,) = announcements(tmp_path / "data")
    announcement = tmp_path / "data.rwlock" / name
    holder.kill()
    seen = witness(tmp_path / "data")
    show_beat(announcement, 4)
    seen.check()
    latest = seen._seen
    for beat in (4, 4, 3, 4):
        show_beat(announcement, beat)
        os.utime(announcement)
        seen.check()
        assert seen._seen == latest
    show_beat(announcement, 5)
    seen.check()
    assert seen._seen != latest


@pytest.mark.parametrize("knows", ["from a look", "from who has looked", "from the holder"])
def test_half_an_eviction_is_no_heartbeat(stage: Stage, tmp_path: Path, knows: str) -> None:
    holder = stage.actor(HOLD, host="elsewhere")
    wait_until(lambda: beat_of(tmp_path / "data") is not None)
    seen = witness(tmp_path / "data")
    seen.check()
    if knows == "from the holder":
        wait_until(lambda: holder.do("lock.witness()._beat") is not None)
        seen = HoldWitness(*holder.do("lock.witness().__reduce__()[1]"))
    elif knows == "from who has looked":
        seen = pickle.loads(pickle.dumps(seen))
    holder.stop()
    (tmp_path / "data.rwlock" / announcements(tmp_path / "data")[0] / f"beat.{beat_of(tmp_path / 'data')}").unlink()
    with pytest.raises(LockLostError, match="released it or was evicted") as lost:
        seen.check()
    assert not isinstance(lost.value, LeaseExpiredError)


def test_an_old_listing_from_before_the_first_heartbeat_is_no_eviction(stage: Stage, tmp_path: Path) -> None:
    stage.actor(HOLD, host="elsewhere").kill()
    (name,) = announcements(tmp_path / "data")
    announcement = tmp_path / "data.rwlock" / name
    seen = witness(tmp_path / "data")
    show_beat(announcement, 0)
    seen.check()
    stamp = announcement.stat().st_mtime_ns
    (announcement / "beat.0").unlink()
    os.utime(announcement, ns=(stamp, stamp))
    seen.check()


def show_beat(announcement: Path, beat: int) -> None:
    for entry in announcement.iterdir():
        entry.unlink()
    (announcement / f"beat.{beat}").symlink_to("{}")


def test_it_fails_when_the_holder_was_evicted(stage: Stage, tmp_path: Path) -> None:
    stage.actor(HOLD)
    seen = witness(tmp_path / "data")
    break_lock(tmp_path / "data", force=True)
    with pytest.raises(LockLostError):
        seen.check()


def test_what_cannot_be_looked_at_passes_until_the_lease_is_over_and_no_longer(stage: Stage, tmp_path: Path) -> None:
    stage.actor(HOLD, host="elsewhere")
    seen, blind = witness(tmp_path / "data"), witness(tmp_path / "data")
    seen.check()
    os.rename(tmp_path / "data.rwlock", tmp_path / "away")
    (tmp_path / "data.rwlock").write_text("no directory: listing it fails, and tells nothing")
    seen.check()
    with pytest.raises(LeaseExpiredError, match="cannot be looked at"):
        blind.check()
    seen._seen = (seen._seen[0], seen._seen[1] - LEASE_S) if seen._seen else None
    with pytest.raises(LeaseExpiredError, match="cannot be looked at"):
        seen.check()


def test_an_actor_checks_what_it_was_sent(stage: Stage, tmp_path: Path) -> None:
    child = stage.actor("import pickle; pass")
    lock = SoftReadWriteLock(tmp_path / "data")
    with lock.write_lock():
        child.do(f"seen = pickle.loads({pickle.dumps(lock.witness())!r}); seen.check()")
    with pytest.raises(Raised) as raised:
        child.do("seen.check()")
    assert "LockLostError" in raised.value.names
