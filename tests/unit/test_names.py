"""Entry names (PROTOCOL.md section 1): one listing is the whole state, and no name is too hostile to be read."""

from __future__ import annotations

import os
import string
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfsrwlock_core.names import (
    DEFAULT_LEASE_MS,
    LEASE_MAX_MS,
    NAME_MAX_BYTES,
    Identity,
    Mode,
    announcement_name,
    beat_name,
    generation_name,
    gone_name,
    note_name,
    parse_announcement,
    parse_beats,
    parse_listing,
)

#: No deadline for one example: a machine that is busy with other tests is slow at times.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TOKEN = "0123456789abcdef" * 2
WHO = Identity(pid=4711, start=123456, kernel="00c0ffee00c0ffee", uid=1000, host="node7.example.org")


def damaged(stated, at, junk, drop):
    """Return an announcement's name with something else at one place."""
    name = announcement_name(**stated)
    at %= len(name)
    return name[:at] + junk + name[at + drop :]


tokens = st.text("0123456789abcdef", min_size=32, max_size=32)
hosts = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)
identities = st.builds(
    Identity,
    pid=st.integers(0, 2**22),
    start=st.integers(0, 2**62),
    kernel=st.one_of(st.just("0"), st.text("0123456789abcdef", min_size=16, max_size=16)),
    uid=st.integers(0, 2**32 - 1),
    host=hosts,
)
announcements = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(Mode),
        "token": tokens,
        "ticket": st.integers(0, 2**64 - 1),
        "lease_ms": st.integers(1, LEASE_MAX_MS),
        "who": identities,
        "since_ms": st.integers(0, 10**15),
    }
)
#: What a directory can show: any bytes but "/" and NUL, the way Python shows them.
entry_names = st.binary(min_size=1, max_size=300).map(
    lambda raw: raw.replace(b"/", b"-").replace(b"\0", b"-").decode("utf-8", "surrogateescape")
)
#: Names that almost are ours: damaged at one place.
near_misses = st.builds(damaged, announcements, st.integers(0, 300), st.text(max_size=3), st.integers(0, 3))
shaped = st.builds(str.__add__, st.sampled_from(["read.", "write.", "gen.", "seen.", "gone.", "beat."]), entry_names)


# -- what is written can be read ---------------------------------------------------------------------------------------


@patient
@given(announcements)
def test_an_announcement_is_read_back_as_it_was_written(stated):
    """Section 1: an announcement's name describes itself."""
    found = parse_announcement(announcement_name(**stated))
    assert found is not None
    assert found.understood
    assert (found.mode, found.token, found.lease_ms, found.since_ms) == (
        stated["mode"],
        stated["token"],
        stated["lease_ms"],
        stated["since_ms"],
    )
    assert found.ticket == (stated["ticket"] if stated["mode"] is Mode.WRITE else 0)
    who, stated = stated["who"], found.who
    assert stated is not None
    assert (stated.pid, stated.start, stated.kernel, stated.uid) == (who.pid, who.start, who.kernel, who.uid)
    assert who.host.startswith(stated.host), "a long host name may lose its end, nothing else"


@patient
@given(announcements)
def test_an_announcement_is_a_name_that_every_file_system_takes(stated):
    """Section 1: the host name is encoded and bounded."""
    name = announcement_name(**stated)
    assert len(name.encode()) <= NAME_MAX_BYTES
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\0 ")


@pytest.mark.parametrize("host", ["", "node7", "knoten-größe", "a b\nc/d", "\udcff\udc80", "%41", "x" * 300, "é" * 300])
def test_a_host_name_of_any_kind_gives_an_understood_announcement(host):
    """Section 1: a host that calls itself something odd must not lock out its peers."""
    name = announcement_name(
        Mode.READ,
        token=TOKEN,
        ticket=0,
        lease_ms=1,
        since_ms=0,
        who=Identity(pid=1, start=1, kernel="0", uid=0, host=host),
    )
    found = parse_announcement(name)
    assert found is not None
    assert found.understood
    assert len(name) <= NAME_MAX_BYTES


def test_the_format_on_disk_is_what_older_and_newer_hosts_expect():
    """Section 1: hosts with different versions of this package share a lock, so these names may never change."""
    stated = {"token": TOKEN, "ticket": 0x1234, "lease_ms": 90_000, "who": WHO, "since_ms": 1_700_000_000_000}
    tail = f"{TOKEN}.90000.4711.123456.00c0ffee00c0ffee.1000.1700000000000.node7.example.org"
    assert announcement_name(Mode.READ, **stated) == f"read.{tail}"
    assert announcement_name(Mode.WRITE, **stated) == f"write.0000000000001234.{tail}"
    assert generation_name(12) == "gen.12"
    assert beat_name(0) == "beat.0"
    assert note_name(TOKEN, 3, 4500) == f"seen.{TOKEN}.3.4500"
    assert note_name(TOKEN, None, 4500) == f"seen.{TOKEN}.new.4500"
    assert gone_name(TOKEN) == f"gone.{TOKEN}"


@patient
@given(tokens, st.one_of(st.none(), st.integers(0, 10**9)), st.integers(0, 10**10))
def test_a_note_is_read_back_as_it_was_written(token, beat, watched_ms):
    """Sections 1 and 3: a note states whose beat was watched, which one, and for how long."""
    name = note_name(token, beat, watched_ms)
    (note,) = parse_listing([name]).notes
    assert (note.name, note.token, note.beat, note.watched_ms) == (name, token, beat, watched_ms)


@patient
@given(st.lists(st.integers(0, 10**12), unique=True))
def test_the_highest_number_of_a_listing_is_the_latest_grant(numbers):
    """Section 1: gen.<N> is the number of the latest granted write; there may be older ones."""
    listing = parse_listing([generation_name(number) for number in numbers])
    assert sorted(listing.generations) == sorted(numbers)
    assert listing.highest_generation == max(numbers, default=0)


@patient
@given(st.lists(st.integers(0, 10**12), unique=True), st.lists(entry_names))
def test_the_highest_beat_counts_and_foreign_entries_do_not(beats, foreign):
    """Section 1: beat.<k> inside an announcement is its holder's k-th heartbeat."""
    names = [beat_name(beat) for beat in beats] + [name for name in foreign if not name.startswith("beat.")]
    assert parse_beats(names) == max(beats, default=None)


def test_one_listing_is_sorted_into_its_kinds():
    """Section 1: one listing is the whole state of the lock."""
    stated = {"ticket": 1, "lease_ms": 1000, "who": WHO, "since_ms": 0}
    reader = announcement_name(Mode.READ, token="a" * 32, **stated)
    writer = announcement_name(Mode.WRITE, token="b" * 32, **stated)
    names = [reader, writer, "gen.4", "gen.5", note_name("a" * 32, None, 7), gone_name("c" * 32), "README", ".nfs0001"]
    listing = parse_listing(names)
    assert set(listing.announcements) == {reader, writer}
    assert listing.highest_generation == 5
    assert [note.watched_ms for note in listing.notes] == [7]
    assert listing.gone == (gone_name("c" * 32),)


def test_writers_are_ranked_by_ticket_and_then_by_token():
    """Section 2: the smaller (ticket, token) goes first."""

    def rank(ticket, token):
        name = announcement_name(Mode.WRITE, token=token * 32, ticket=ticket, lease_ms=1000, who=WHO, since_ms=0)
        return parse_announcement(name).rank

    assert rank(1, "f") < rank(2, "0")
    assert rank(2, "0") < rank(2, "1")


# -- the parser is total and bounded -----------------------------------------------------------------------------------


@patient
@given(st.one_of(entry_names, near_misses, shaped))
def test_any_name_gives_a_value_or_not_mine(name):
    """Section 1: a parser for these names is bounded and total."""
    found = parse_announcement(name)
    assert found is None or found.name == name
    assert parse_beats([name]) is None or name.startswith("beat.")
    parse_listing([name])


@patient
@given(st.one_of(near_misses, shaped))
def test_whatever_has_the_shape_of_an_announcement_counts(name):
    """Section 1: a name of our shape that does not parse counts as a live conflicting holder."""
    listing = parse_listing([name])
    if name.startswith(("read.", "write.")) and len(name) <= NAME_MAX_BYTES:
        assert name in listing.announcements
        if not listing.announcements[name].understood:
            assert listing.announcements[name].is_writer
    else:
        assert not listing.announcements


@patient
@given(st.lists(st.one_of(entry_names, near_misses, shaped), unique=True))
def test_no_name_is_sorted_into_two_kinds(names):
    """Section 1."""
    listing = parse_listing(names)
    found = [*listing.announcements, *(note.name for note in listing.notes), *listing.gone]
    found += [generation_name(number) for number in listing.generations]
    assert len(found) == len(set(found))
    assert set(found) <= set(names)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 4096,
        "read." + "a" * 4096,
        "write." + "0" * 1_000_000,
        "write." + "." * 1_000_000,
        "seen." + "1" * 1_000_000,
        "gone." + "f" * 1_000_000,
        "gen." + "9" * 1_000_000,
        "read." + "%" * 250,
    ],
    ids=lambda name: f"{name[:8]}-{len(name)}",
)
def test_junk_of_any_length_is_read_at_once(name):
    """Section 1: bounded. A regular expression that backtracks, or int() of a million digits, would take minutes."""
    began = time.process_time()  # not time that passes, because the machine may be busy
    for _ in range(100):
        parse_listing([name])
        parse_beats([name])
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    "name",
    [
        f"junk-{'x' * 200}-{{:06d}}",
        f"read.{'x' * 200}{{:06d}}",
        f"write.{'0' * 16}.{{:032x}}.90000.1.2.ab.3.4.{'h' * 60}!",
        f"write.{'0' * 16}.{{:032x}}.90000.1.2.ab.3.4.{'%41' * 50}",
        "seen.{:032x}.3.4!",
    ],
    ids=lambda name: name[:5],
)
def test_a_hundred_thousand_hostile_names_are_read_about_as_fast_as_they_are_listed(tmp_path, monkeypatch, name):
    """Section 1: bounded. Both take CPU time of one process; the bound is several times what is measured."""
    monkeypatch.chdir(tmp_path)  # short paths: a hundred thousand names are made in a third of the time
    # Links of few files: after as many were removed, ext4 takes up to a millisecond to make a file, in all other tests.
    for number in range(100_000):
        if number % 50_000 == 0:  # a file of ext4 has 65,000 links at most
            Path("source").unlink(missing_ok=True)
            Path("source").touch()
        os.link("source", name.format(number))

    def took(what):
        began = time.process_time()
        return what(), time.process_time() - began

    names, listing_s = took(lambda: os.listdir(tmp_path))
    reading_s = min(took(lambda: parse_listing(names))[1] for _ in range(3))
    assert reading_s < 15 * listing_s


@pytest.mark.parametrize("tail", ["", "v2", "v2." + TOKEN, TOKEN, "x" * 249, "\n", "\udcff" * 9, "a b"])
@pytest.mark.parametrize("head", ["read.", "write."])
def test_a_newer_format_counts_as_a_holder_in_conflict_with_everybody(head, tail):
    """Section 1: it counts as live and conflicting, with a lease that lets it age out."""
    found = parse_announcement(head + tail)
    assert found is not None
    assert not found.understood
    assert found.is_writer
    assert found.who is None
    assert found.lease_ms == DEFAULT_LEASE_MS


@pytest.mark.parametrize(
    "damage",
    [
        lambda name: name.replace("90000", "090000"),
        lambda name: name.replace("90000", "0"),
        lambda name: name.replace("90000", "-90000"),
        lambda name: name.replace("90000", "10000000000"),
        lambda name: name.replace("90000", "9e4"),
        lambda name: name.replace("90000", "٩٠٠٠٠"),
        lambda name: name.replace(TOKEN, TOKEN.upper()),
        lambda name: name.replace(TOKEN, TOKEN[1:]),
        lambda name: name.replace("4711", ""),
        lambda name: name.replace("4711", "4" * 20),
        lambda name: name.replace("node7", "node7%4"),
        lambda name: name.replace("node7", "node7%zz"),
        lambda name: name + "\n",
        lambda name: name[:60],
    ],
)
def test_a_damaged_name_is_not_understood_and_counts(damage):
    """Section 1: damage counts as a holder; a number that is nearly right is not guessed at."""
    name = damage(announcement_name(Mode.WRITE, token=TOKEN, ticket=1, lease_ms=90_000, who=WHO, since_ms=0))
    found = parse_announcement(name)
    assert found is not None
    assert not found.understood


def test_what_is_not_understood_can_still_be_named_in_a_note():
    """Sections 1 and 3: callers with short time-outs must be able to age it out together, on whatever host they are."""
    found = parse_announcement("write.v2.something")
    (note,) = parse_listing([note_name(found.token, None, 5)]).notes
    assert note.token == found.token == "bd40b729ac525592x"


@patient
@given(st.text(string.printable, max_size=40), tokens)
def test_a_stand_in_for_a_token_is_no_token_of_anybody(tail, token):
    """Section 1: a note on what is not understood must not count for an announcement that is."""
    found = parse_announcement(f"write.{tail}")
    assert found.understood or found.token != token
    assert found.understood or len(found.token) != len(token)


@pytest.mark.parametrize("name", ["gen.", "gen.-1", "gen.007", "gen.1x", "gen.1\n", "gen.٣", "Gen.1", "gen1", " gen.1"])
def test_a_number_that_is_not_exactly_ours_numbers_nothing(name):
    """Section 1."""
    assert parse_listing([name]).generations == ()
