"""Watched time (PROTOCOL.md section 3, the observer's rule): measured by the watcher alone, anew after a gap."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfsrwlock_core.protocol.watch import Watch

LEASE = 90.0
PEER = "read.somebody"


def looking(*looks, watch=None, lease=LEASE):
    """Return a watch that looked at the peer at these moments and saw these beats."""
    watch = Watch() if watch is None else watch
    for moment, beat in looks:
        watch.look(PEER, beat, lease=lease, now=moment)
    return watch


def test_nothing_is_known_of_a_peer_that_was_not_looked_at():
    """Section 3: only successful looks are watching; being listed says nothing about the heartbeat."""
    watch = Watch()
    assert watch.watched(PEER) == 0.0
    assert watch.last_look(PEER) is None
    assert watch.beat(PEER) is None
    assert watch.meet(PEER, 5.0) == 5.0
    assert watch.meet(PEER, 50.0) == 5.0, "it was first met at 5"
    assert watch.watched(PEER) == 0.0
    assert watch.last_look(PEER) is None


def test_the_first_look_begins_the_count():
    """Section 3: the time before our first look was not watched, however long the peer had been listed."""
    watch = Watch()
    watch.meet(PEER, 0.0)
    watch.look(PEER, None, lease=LEASE, now=1000.0)
    assert watch.watched(PEER) == 0.0
    assert watch.last_look(PEER) == 1000.0


@pytest.mark.parametrize("beat", [None, 0, 7])
def test_watched_time_adds_up_while_the_beat_stays_the_same(beat):
    """Section 3: a token whose (announcement, beat name) has not changed during ttl of watched time."""
    watch = looking((100, beat), (120, beat), (140, beat), (165, beat))
    assert watch.watched(PEER) == 65.0
    assert watch.beat(PEER) == beat


@pytest.mark.parametrize(("before", "after"), [(None, 0), (3, 4), (3, 9), (3, None)])
def test_another_beat_begins_a_new_count(before, after):
    """Section 3: the heartbeat name has changed, in whatever way: the peer is not silent."""
    watch = looking((100, before), (120, before), (140, after))
    assert watch.watched(PEER) == 0.0
    assert looking((150, after), watch=watch).watched(PEER) == 10.0


def test_a_look_that_shows_an_earlier_beat_is_an_old_look():
    """Sections 3 and 6: beats only grow, and a listing may be old: the peer has not moved back."""
    watch = looking((100, 3), (120, 4), (140, 3), (160, 3))
    assert watch.beat(PEER) == 4
    assert watch.watched(PEER) == 40.0


def test_what_others_watched_of_an_earlier_beat_does_not_count_for_the_latest():
    """Section 5: a note is about one beat; an old look that shows that beat once more does not make it the latest."""
    watch = looking((100, 4))
    watch.look(PEER, 3, lease=LEASE, now=110.0, credit=80.0)
    assert watch.beat(PEER) == 4
    assert watch.watched(PEER) == 10.0


def test_two_looks_a_third_of_the_lease_apart_still_count():
    """Section 3: watched time starts anew when they lie *further* apart than ttl/3."""
    assert looking((100, 1), (130, 1), (160, 1)).watched(PEER) == 60.0


def test_a_longer_gap_was_not_watched_and_begins_a_new_count():
    """Section 3: after a server outage that froze everybody, nobody is evicted for silence."""
    watch = looking((100, 1), (130, 1), (160.5, 1))
    assert watch.watched(PEER) == 0.0
    assert looking((170, 1), watch=watch).watched(PEER) == 9.5


def connected(watch, connection, now, standstill=0.0):
    watch.connected(connection, now=now, standstill=standstill)
    return watch


def test_a_new_connection_to_the_server_begins_a_new_count():
    """Section 3: the server may have been restarted, and then the peer could not beat."""
    watch = connected(Watch(), "first", 99)
    looking((100, 3), (120, 3), watch=watch)
    connected(watch, "first", 139)
    assert looking((140, 3), watch=watch).watched(PEER) == 40.0, "the same connection"
    connected(watch, "second", 149)
    assert looking((150, 3), watch=watch).watched(PEER) == 0.0
    assert looking((160, 3), watch=watch).watched(PEER) == 10.0, "once"


@pytest.mark.parametrize("first", [None, "first"])
def test_the_first_connection_that_is_seen_is_not_a_new_one(first):
    watch = connected(looking((100, 3), (120, 3)), first, 121, standstill=1000)
    assert looking((140, 3), watch=watch).watched(PEER) == 40.0


@pytest.mark.parametrize(("standstill", "needed"), [(20, LEASE), (LEASE, LEASE), (107, 107), (500, 500)])
def test_others_may_stand_still_for_a_while_after_a_new_connection(standstill, needed):
    """Section 3: not before both a lease and the time are over in which others may be unable to beat."""
    watch = connected(connected(Watch(), "first", 0), "second", 100, standstill)
    moment, first = 100.0, 100.0
    looking((moment, 3), watch=watch)
    while watch.watched(PEER) < LEASE:
        assert watch.silence(PEER, moment) == moment - first, "for people: what it is, not what it counts"
        moment += 1
        looking((moment, 3), watch=watch)
    assert moment - first == needed


def test_what_others_watched_does_not_shorten_a_standstill():
    watch = connected(connected(Watch(), "first", 0), "second", 100, standstill=107)
    watch.look(PEER, 3, lease=LEASE, now=100, credit=80)
    assert watch.watched(PEER) == LEASE - 107
    watch.look(PEER, 3, lease=LEASE, now=110, credit=80)
    assert watch.watched(PEER) == LEASE - 97


def test_the_gap_is_measured_by_the_lease_of_the_peer():
    """Section 3: peers use the holder's own value."""
    assert looking((0, 1), (10, 1), lease=30.0).watched(PEER) == 10.0
    assert looking((0, 1), (10.5, 1), lease=30.0).watched(PEER) == 0.0
    assert looking((0, 1), (10.5, 1), lease=300.0).watched(PEER) == 10.5


def test_what_others_watched_before_us_is_added_at_the_first_look():
    """Section 3: the next caller adds its own watching to what the note says."""
    watch = Watch()
    watch.look(PEER, 3, lease=LEASE, now=100.0, credit=40.0)
    assert watch.watched(PEER) == 40.0
    assert looking((110, 3), watch=watch).watched(PEER) == 50.0


def test_what_others_watched_is_void_with_another_beat_and_after_a_gap():
    """Section 3: a note is void as soon as the beat differs."""
    watch = Watch()
    watch.look(PEER, 3, lease=LEASE, now=100.0, credit=80.0)
    assert looking((110, 4), watch=watch).watched(PEER) == 0.0
    watch = Watch()
    watch.look(PEER, 3, lease=LEASE, now=100.0, credit=80.0)
    assert looking((140, 3), watch=watch).watched(PEER) == 0.0


@pytest.mark.parametrize(("credit", "expected"), [(5.0, 20.0), (20.0, 20.0), (50.0, 50.0)])
def test_time_that_others_watched_beside_us_counts_as_the_longer_never_as_the_sum(credit, expected):
    """Section 3: a watch may outlive an acquisition, and then a note may tell of the same seconds."""
    watch = looking((100, 3))
    watch.look(PEER, 3, lease=LEASE, now=120.0, credit=credit)
    assert watch.watched(PEER) == expected


def test_silence_for_people_counts_from_when_the_peer_was_first_met_or_last_changed():
    """Section 3: the message of a time-out says how long it has been silent, also if no look was due yet."""
    watch = Watch()
    assert watch.silence(PEER, 5.0) == 0.0
    watch.meet(PEER, 5.0)
    assert watch.silence(PEER, 8.0) == 3.0
    assert watch.watched(PEER) == 0.0, "which is not watching"
    watch.look(PEER, 3, lease=LEASE, now=10.0, credit=40.0)
    assert watch.silence(PEER, 20.0) == 50.0
    watch.look(PEER, 4, lease=LEASE, now=30.0)
    assert watch.silence(PEER, 31.0) == 1.0


def test_a_peer_that_is_not_listed_any_more_is_forgotten():
    """Sections 2 and 3: a name that is gone never comes back, so what is known of it would only pile up."""
    watch = looking((100, 3), (120, 3))
    watch.look("read.other", 1, lease=LEASE, now=120.0)
    assert watch.known() == {PEER, "read.other"}
    watch.forget({PEER, "read.never met"})
    assert watch.last_look(PEER) is None
    assert watch.watched(PEER) == 0.0
    assert watch.last_look("read.other") == 120.0


def test_peers_are_watched_apart():
    """Section 3: silence is a matter of one token."""
    watch = looking((100, 3), (120, 3))
    watch.look("read.other", 1, lease=LEASE, now=120.0)
    assert watch.watched(PEER) == 20.0
    assert watch.watched("read.other") == 0.0


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.floats(0.01, 60), st.booleans()), max_size=40), st.floats(1, 200))
def test_watched_time_is_never_more_than_the_time_since_the_peer_last_beat(story, lease):
    """Section 3, the one thing that must never fail: nobody is called silent for longer than it was."""
    watch = Watch()
    now, beat, last_beat = 1000.0, 0, 1000.0
    for seconds, beats in story:
        now += seconds
        if beats:
            beat, last_beat = beat + 1, now - seconds / 2  # it beat between the two looks
        watch.look(PEER, beat, lease=lease, now=now)
        assert watch.watched(PEER) <= now - last_beat + 1e-6
