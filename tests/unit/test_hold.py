"""What a hold says of itself and when its owner is told, on a clock that the tests set."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from actors import wait_until
from faults import INTERVAL, TTL, After, Fails, Late, Stage
from nfsrwlock_core.errors import LeaseExpiredError
from nfsrwlock_core.holding import hold as hold_module
from nfsrwlock_core.holding.hold import Hold, HoldStatus
from nfsrwlock_core.protocol.heartbeat import MARGIN, Beat
from nfsrwlock_core.system.clock import WallClock

#: How long a holder trusts its lease.
TRUSTED = TTL * (1 - MARGIN)


_NUMBERS = itertools.count()


class NeverPaused(WallClock):
    """The wall clock of a machine that does not stand still: test_wall_clock.py has the others."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def look(self) -> float:
        return self._stage.clock()

    def gained(self, since: float) -> float:
        return 0.0


class Owner:
    """Who holds a lock, and what it was told."""

    def __init__(self, stage: Stage, *, listens: bool = True) -> None:
        self.stage = stage
        self.participant = stage.holding_reader()
        self.compromises: list[Any] = []
        self.path = f"data.{next(_NUMBERS)}"
        self.hold = Hold(self.participant, self.path, 0, self.compromises.append if listens else None)

    @property
    def reasons(self) -> list[str]:
        return [compromise.reason for compromise in self.compromises]

    def let_it_run_out(self) -> None:
        """Let more time pass than the lease has."""
        self.stage.clock.sleep(TTL)

    def be_evicted(self) -> None:
        del self.stage.server.entries[self.participant.name]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(hold_module, "now", stage.clock)
    monkeypatch.setattr(hold_module, "wall_clock", NeverPaused(stage))
    return stage


@pytest.fixture
def owner(stage: Stage) -> Owner:
    return Owner(stage)


@pytest.fixture
def words(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged so far, oldest first."""
    return lambda: [record.getMessage() for record in caplog.records]


# -- how it stands -----------------------------------------------------------------------------------------------------


def test_the_time_left_runs_down_from_the_whole_lease_and_is_nothing_once_it_is_lost(owner: Owner) -> None:
    assert owner.hold.remaining == pytest.approx(TRUSTED)
    owner.stage.clock.sleep(30)
    assert owner.hold.remaining == pytest.approx(TRUSTED - 30)
    assert owner.hold.beat() is Beat.DONE
    assert owner.hold.remaining == pytest.approx(TRUSTED)
    owner.let_it_run_out()
    assert owner.hold.remaining == pytest.approx(TRUSTED - TTL)
    assert owner.hold.status is HoldStatus.SUSPECT
    owner.be_evicted()
    assert owner.hold.beat() is Beat.LOST
    assert owner.hold.remaining == 0
    assert owner.hold.status is HoldStatus.LOST


def test_who_beats_for_it_is_asked_only_where_its_word_can_change_the_answer(owner: Owner) -> None:
    """It may be another process, which is stopped and answers late."""
    asked: list[float] = []

    def renew_late() -> None:
        asked.append(owner.stage.clock())
        owner.participant.take_over(7, owner.stage.clock())

    owner.hold.catch_up = renew_late
    assert owner.hold.status is HoldStatus.HELD
    assert asked == []
    owner.let_it_run_out()
    assert owner.hold.status is HoldStatus.HELD, "it had beaten, and this process had not heard of it"
    assert len(asked) == 1
    owner.hold.take_in(Beat.LOST)
    owner.let_it_run_out()
    assert owner.hold.status is HoldStatus.LOST
    assert len(asked) == 1


@pytest.mark.parametrize("fails", [True, False])
def test_the_error_of_a_lease_that_ran_out_says_why_if_that_is_known(owner: Owner, fails: bool) -> None:
    if fails:
        owner.participant.files.inject(Fails("create", errno.EIO, times=None))
        assert owner.hold.beat() is Beat.UNKNOWN
    owner.let_it_run_out()
    error = owner.hold.error()
    assert isinstance(error, LeaseExpiredError)
    why = " ([Errno 5] Input/output error" if fails else "; with a lease of 90 s"
    assert f"no heartbeat has succeeded for 90.0 s{why}" in str(error)


# -- when it beats -----------------------------------------------------------------------------------------------------


def test_a_heartbeat_that_failed_is_tried_again_soon_and_one_that_arrived_has_its_interval(owner: Owner) -> None:
    clock, hold = owner.stage.clock, owner.hold
    assert hold.due == clock() + INTERVAL
    owner.participant.files.inject(Fails("create", errno.EIO))
    assert hold.beat() is Beat.UNKNOWN
    assert hold.due == clock() + INTERVAL / 10
    assert hold.beat() is Beat.DONE
    assert hold.due == clock() + INTERVAL


def test_a_hold_that_has_ended_or_is_lost_sends_no_heartbeat(owner: Owner) -> None:
    """One that was due when its owner released it makes nothing, and alarms nobody."""
    owner.hold.ended = True
    owner.participant.files.ops()
    assert owner.hold.beat() is Beat.LOST
    assert owner.participant.files.ops() == []
    assert not owner.hold.is_known_lost
    lost = Owner(owner.stage)
    lost.be_evicted()
    assert lost.hold.beat() is Beat.LOST
    lost.participant.files.ops()
    assert lost.hold.beat() is Beat.LOST
    assert lost.participant.files.ops() == []


def test_what_a_heartbeat_found_of_a_loss_is_not_changed_by_one_that_comes_before_it_is_told(owner: Owner) -> None:
    hold, take_in = owner.hold, owner.hold.take_in
    calls: list[list[str]] = []

    def overtaken(outcome: Beat) -> None:
        hold.take_in = take_in  # type: ignore[method-assign]
        owner.participant.files.ops()
        hold.beat()
        calls.append(owner.participant.files.ops())
        take_in(outcome)

    hold.take_in = overtaken  # type: ignore[method-assign]
    owner.be_evicted()
    assert hold.beat() is Beat.LOST
    assert calls == [[]]


# -- what its owner is told --------------------------------------------------------------------------------------------


def test_each_expiry_is_told_once_and_so_is_the_loss_after_it(
    owner: Owner, words: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    hold = owner.hold
    hold.tell_owner()
    assert owner.compromises == []
    assert hold.next_expiry == owner.stage.clock() + TRUSTED
    for told in (1, 2):
        owner.let_it_run_out()
        hold.tell_owner()
        hold.tell_owner()
        assert owner.reasons == ["refresh-failed"] * told
        assert "no heartbeat has succeeded" in words()[-1]
        assert hold.next_expiry == math.inf
        assert hold.beat() is Beat.DONE
        assert "is safe again" in words()[-1]
        assert hold.next_expiry == owner.stage.clock() + TRUSTED
    said = len(words())
    assert hold.beat() is Beat.DONE
    assert len(words()) == said
    owner.let_it_run_out()
    hold.tell_owner()
    owner.be_evicted()
    assert hold.beat() is Beat.LOST
    wait_until(lambda: owner.reasons == ["refresh-failed"] * 3 + ["evicted"])
    assert "evicted this holder" in words()[-1]
    assert hold.compromise == owner.compromises[-1]
    hold.tell_owner()
    assert len(owner.compromises) == 4
    assert hold.next_expiry == math.inf
    # A worker may say so late what became of the hold of a test before this one.
    own = [record for record in caplog.records if repr(owner.path) in record.getMessage()]
    events = [vars(record)["event"] for record in own]
    assert events == [*("suspect", "restored") * 2, "suspect", "lost"]


def test_a_heartbeat_whose_answer_takes_a_lease_makes_nothing_safe(
    owner: Owner, words: Callable[[], list[str]]
) -> None:
    """It counts from before it was sent."""
    owner.let_it_run_out()
    owner.hold.tell_owner()
    owner.participant.files.inject(After("create", owner.let_it_run_out))
    assert owner.hold.beat() is Beat.DONE
    assert not any("safe again" in word for word in words())
    owner.hold.tell_owner()
    assert owner.reasons == ["refresh-failed"]


def test_an_unheard_heartbeat_that_turns_up_restores_a_hold_until_it_runs_out_in_turn(
    owner: Owner, words: Callable[[], list[str]]
) -> None:
    hold, files = owner.hold, owner.participant.files
    assert hold.beat() is Beat.DONE
    late = Late("rename")
    files.inject(late)
    owner.stage.clock.sleep(INTERVAL)
    assert hold.beat() is Beat.UNKNOWN
    late.arrive()
    owner.stage.clock.sleep(TRUSTED - INTERVAL + 1)
    hold.tell_owner()
    files.inject(Fails("rename", errno.EIO, times=None))
    assert hold.beat() is Beat.UNKNOWN
    assert hold.status is HoldStatus.HELD
    assert "safe again" in words()[-1]
    owner.let_it_run_out()
    hold.tell_owner()
    assert owner.reasons == ["refresh-failed"] * 2


def test_nobody_is_told_of_a_hold_that_has_ended_or_that_nobody_uses(
    owner: Owner, words: Callable[[], list[str]]
) -> None:
    owner.let_it_run_out()
    owner.hold.is_idle = True
    owner.hold.tell_owner()
    assert owner.compromises == []
    assert len(words()) == 1, "who reads the log can know"
    silent = Owner(owner.stage, listens=False)
    silent.let_it_run_out()
    silent.hold.tell_owner()
    assert len(words()) == 2
    ended = Owner(owner.stage)
    ended.let_it_run_out()
    ended.hold.ended = True
    ended.hold.tell_owner()
    assert ended.compromises == []
    assert len(words()) == 2
