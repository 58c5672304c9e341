"""The judge of the campaigns on real kernels finds each thing that it is there to find, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nfs.campaign.history import Event, Fault, Verdict, judge, on_the_hosts_clock, waits
from nfs.campaign.picture import draw
from nfs.filesystems import table

LEASE = 6.0
ERROR = 0.001


class Story:
    """What happened, told in a few words."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.faults: list[Fault] = []

    def say(self, who: str, event: str, at: float, **more: Any) -> Story:
        self.events.append(Event(who, event, at, ERROR, more))
        return self

    def hold(
        self, who: str, mode: str, begin: float, end: float | None, number: int | None = 1, lock: int = 0, **more: Any
    ) -> Story:
        until = more.pop("until", begin + LEASE)
        more = {"lock": lock, "mode": mode, "generation": number, "until": until, "lease": LEASE, **more}
        self.say(who, "granted", begin, **more)
        if end is not None:
            self.say(who, "release", end).say(who, "released", end + 0.01)
        return self

    def fault(self, kind: str, target: str, began: float, ended: float) -> Story:
        self.faults.append(Fault(kind, target, began, ended))
        return self

    def verdict(self) -> Verdict:
        return judge(self.events, self.faults)

    def found(self) -> list[str]:
        return [violation.what for violation in self.verdict().violations]


def test_readers_share_and_writers_follow_each_other():
    story = Story().hold("n1.0", "read", 0, 3, 0).hold("n2.0", "read", 1, 4, 0).hold("n1.1", "write", 4.1, 5, 1)
    story.hold("n2.1", "write", 5.1, 6, 2).hold("n3.0", "read", 6.1, 7, 2)
    assert not story.found()
    assert story.verdict().count("write") == 2
    assert story.verdict().count("read") == 3


@pytest.mark.parametrize("modes", [("write", "write"), ("read", "write"), ("write", "read")])
def test_two_conflicting_holds_at_one_moment(modes):
    story = Story().hold("n1.0", modes[0], 0, 3, 1).hold("n2.0", modes[1], 2.9, 5, 2)
    assert [text for text in story.found() if "together" in text]


def test_more_holds_than_their_limit():
    story = Story().hold("n1.0", "read", 0, 3, 1, limit=2).hold("n2.0", "read", 1, 4, 1)
    story.hold("n3.0", "read", 2, 5, 1, limit=2)
    assert not story.hold("n1.1", "read", 3, 4, 1, limit=2).found()
    assert story.hold("n2.1", "read", 3.5, 4, 1, limit=2).found() == [
        "n3.0 and n1.1 and n2.1 hold lock 0 together, of which at most 2 may"
    ]


def test_a_permit_that_is_free_for_longer_than_a_lease_while_somebody_waits():
    def told(asked: float, granted: float, *faults: tuple[str, str, float, float]) -> Verdict:
        story = Story()
        story.hold("n1.0", "read", 0, 1, None, limit=2).hold("n1.1", "read", 0, 30, None, limit=2, until=40)
        story.say("n2.0", "ask", asked).hold("n2.0", "read", granted, granted + 1, None, limit=2)
        for fault in faults:
            story.fault(*fault)
        return judge(story.events, story.faults, permits_only=True)

    assert not told(0.5, 12.5).violations, "free since 1, for 11.5 s of at most 12"
    (violation,) = told(0.5, 13.5).violations
    assert violation.what == "a permit of lock 0 was free for 12.5 s while n2.0 waited for it"
    assert not told(4, 13.5).violations, "nobody waited before 4"
    assert not told(0.5, 13.5, ("pause", "n2", 1, 2)).violations, "the one who waited was stopped"
    assert told(0.5, 13.5, ("pause", "n1", 1, 2)).violations


def test_who_came_later_and_was_granted_before():
    story = Story().hold("n1.0", "read", 0, 3, None, limit=1)
    for who, asked, granted in (("n2.0", 0.5, 9), ("n2.1", 1, 4), ("n2.2", 0.4, 5), ("n2.1", 6, 7)):
        story.say(who, "ask", asked).hold(who, "read", granted, granted + 0.5, None, limit=1)
    story.events.sort(key=lambda event: event.at)
    assert waits(story.verdict().holds, ()).overtaken == 2, "n2.0, by n2.1"


def test_two_conflicting_holds_of_different_locks():
    assert not Story().hold("n1.0", "write", 0, 3, 1, lock=0).hold("n2.0", "write", 1, 2, 1, lock=1).found()


def test_what_the_clocks_cannot_tell_apart_is_no_conflict():
    assert not Story().hold("n1.0", "write", 0, 3, 1).hold("n2.0", "write", 3 - ERROR, 5, 2).found()


def test_a_grant_before_the_lease_of_one_who_lost_power_has_run_out():
    story = Story().hold("n1.0", "write", 0, None, 1).say("n1.0", "beat", 2, until=8).fault("power cut", "n1", 3, 4)
    assert not story.hold("n2.0", "write", 8.1, 9, 2).found()
    story.events = story.events[:2]
    assert [text for text in story.hold("n2.0", "write", 7.5, 9, 2).found() if "together" in text]


def test_a_grant_before_the_lease_of_one_who_was_paused_has_run_out():
    story = Story().hold("n1.0", "write", 0, None).fault("pause", "n1", 1, 20)
    story.hold("n2.0", "write", 5.5, 8, 2)
    story.say("n1.0", "suspect", 20).say("n1.0", "lost", 20.1).say("n1.0", "release", 20.2)
    assert [text for text in story.found() if "together" in text]


def test_one_who_lost_its_hold_when_it_was_away_for_long():
    story = Story().hold("n1.0", "write", 0, None).fault("pause", "n1", 1, 20).hold("n2.0", "write", 6.5, 8, 2)
    story.say("n1.0", "suspect", 20).say("n1.0", "lost", 20.1).say("n1.0", "release", 20.2)
    assert not story.found()
    assert story.verdict().holds[0].ending == "lost"


def test_a_killed_process_holds_nothing_any_more():
    story = Story().hold("n1.0", "write", 0, None).fault("kill", "n1.0", 1, 1.2).hold("n1.1", "write", 1.3, 2, 2)
    assert not story.found()


def test_a_loss_that_nobody_caused():
    story = Story().hold("n1.0", "read", 0, None).fault("server crash", "srv", 1, 9).fault("pause", "n2", 1, 9)
    story.say("n1.0", "lost", 10).say("n1.0", "release", 11)
    assert story.found() == ["n1.0 lost its hold, and nobody had touched it"]


def test_a_hold_that_never_ended():
    assert Story().hold("n1.0", "read", 0, None).found() == ["n1.0 never gave back what it was granted"]


@pytest.mark.parametrize("number", [5, 4])
def test_numbers_that_do_not_rise(number):
    found = Story().hold("n1.0", "write", 0, 1, 5).hold("n2.0", "write", 2, 3, number).found()
    assert found == [f"n2.0 (write) knows number {number} after 5"]


def test_a_reader_that_knows_an_old_number():
    assert not Story().hold("n1.0", "write", 0, 1, 5).hold("n2.0", "read", 2, 3, 5).found()
    assert Story().hold("n1.0", "write", 0, 1, 5).hold("n2.0", "read", 2, 3, 4).found()
    assert not Story().hold("n1.0", "write", 0, 1, 5).hold("n2.0", "read", 2, 3, None).found(), "it could not ask"


def test_a_writer_whose_number_a_reader_knew_before():
    assert not Story().hold("n1.0", "read", 0, 1, 5).hold("n2.0", "write", 2, 3, 6).found()
    found = Story().hold("n1.0", "read", 0, 1, 5).hold("n2.0", "write", 2, 3, 5).found()
    assert found == ["n2.0 (write) knows number 5 after 5"]
    late = Story().hold("n1.0", "read", 0, 1, 5, until=-1).hold("n2.0", "write", 0.5, 3, 5)
    assert not [text for text in late.found() if "knows" in text], "its hold was over when it asked"


def test_a_hold_counts_from_when_it_was_had_not_from_when_its_number_was_known():
    story = Story().hold("n1.0", "write", 0, 3, 1)
    story.say("n2.0", "granted", 9, lock=0, mode="read", generation=None, until=7, since=2, lease=LEASE).fault(
        "pause", "n2", 2, 9
    )
    story.say("n2.0", "lost", 10).say("n2.0", "release", 10.1)
    assert [text for text in story.found() if "together" in text]


def test_a_loss_that_nobody_caused_and_whose_user_was_killed_then():
    story = Story().hold("n1.0", "read", 0, None).say("n1.0", "lost", 10).fault("kill", "n1.0", 10.5, 10.6)
    assert story.found() == ["n1.0 lost its hold, and nobody had touched it"]


def test_a_hold_given_back_while_in_doubt_lasted_until_its_lease_had_run_out():
    story = Story().hold("n1.0", "write", 0, None).say("n1.0", "suspect", 6).say("n1.0", "release", 9)
    assert not story.hold("n2.0", "write", 6.1, 8, 2).found()


def test_a_hold_restored_had_never_ended():
    story = Story().hold("n1.0", "write", 0, None).say("n1.0", "suspect", 6).say("n1.0", "restored", 7)
    story.hold("n2.0", "write", 6.1, 8, 2).say("n1.0", "release", 9)
    assert [text for text in story.found() if "together" in text]


def test_a_machines_clock_is_taken_into_account():
    more = {"until": 111.0, "since": 104.0, "lock": 1}
    event = on_the_hosts_clock(Event("n1.0", "granted", 105.0, ERROR, more), 100.0)
    assert (event.at, event.more) == (5.0, {"until": 11.0, "since": 4.0, "lock": 1})


def test_the_picture_shows_who_held_what_and_what_was_done():
    story = Story().hold("n1.0", "write", 0, 3, 1).hold("n2.0", "read", 2, 4, 1).fault("pause", "n2", 1, 2)
    verdict = story.verdict()
    picture = draw(verdict.holds, story.faults, verdict.violations, begin=0, end=10, title="<x>")
    assert "n1.0: write of lock 0, number 1, released, 3.00 s from 0.00 s on" in picture
    assert "pause of n2, 1.00 s" in picture
    assert "hold lock 0 together" in picture
    assert "&lt;x&gt;" in picture


def test_the_last_words_of_a_machine_are_lost_with_its_power():
    cut = Story().hold("n1.0", "write", 0, None, 1).fault("power cut", "n1", 0.1, 3).hold("n2.0", "write", 1, 2, 2)
    assert not cut.found(), "it may have given the lock back, and nobody heard of it"
    cut = Story().hold("n1.0", "write", 0, None, 1).fault("power cut", "n1", 0.5, 3).hold("n2.0", "write", 1, 2, 2)
    assert [text for text in cut.found() if "together" in text]


def test_numbers_of_grants_whose_order_the_clocks_cannot_tell_are_in_no_order():
    story = Story().hold("n1.0", "write", 1.0000, 1.0001, 2).hold("n2.0", "write", 1.0005, 1.0006, 1)
    assert not story.found()
    assert Story().hold("n1.0", "write", 1, 1.1, 2).hold("n2.0", "write", 1.2, 1.3, 1).found()


def test_figures_name_no_directory_of_the_machine_that_made_them() -> None:
    trace = 'File "/opt/some.where/lib/python3.11/runners.py", line 118, in run\nFileNotFoundError: /mnt/it/x.rwlock'
    (said,) = json.loads(table.as_figures({"lane": {"error": trace}}))["lane"].values()
    assert said == 'File "runners.py", line 118, in run\nFileNotFoundError: /mnt/it/x.rwlock'
