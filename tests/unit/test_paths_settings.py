"""Where a lock lives: the same path, the same lock, on every host. And what its settings may be."""

from __future__ import annotations

import math
import os
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nfsrwlock import AsyncSoftReadWriteLock, SoftReadWriteLock
from nfsrwlock_core.settings import Settings, checked
from nfsrwlock_core.system.paths import canonical, lock_path_of

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
components = st.binary(min_size=1, max_size=40).filter(
    lambda raw: not set(raw) & {0, 0x2F} and raw not in (b".", b"..")
)


@pytest.fixture(autouse=True)
def _no_default_lock_dir(monkeypatch):
    monkeypatch.delenv("NFSRWLOCK_DIR", raising=False)


def stated(lock_file="data", **changes) -> Settings:
    """The settings of a lock, the defaults but for some."""
    defaults = {
        "timeout": -1,
        "blocking": True,
        "is_singleton": True,
        "heartbeat_interval": 30.0,
        "stale_threshold": None,
        "poll_interval": 0.25,
        "on_compromise": None,
        "heartbeat": "thread",
        "share": "user",
        "lock_dir": None,
        "linger": 0.0,
        "numbered": True,
    }
    return checked(lock_file, **{**defaults, **changes})


# -- the path ----------------------------------------------------------------------------------------------------------


def test_a_lock_lives_beside_its_data(tmp_path):
    """PROTOCOL.md section 1: for a lock on path P everything lives in P.rwlock/."""
    assert lock_path_of(tmp_path / "data.bin") == str(tmp_path / "data.bin.rwlock")


def test_equal_spellings_give_one_lock(tmp_path, monkeypatch):
    """A lock that depended on how its path was written would guard nothing."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    spellings = [
        "sub/data",
        b"sub/data",
        Path("sub/data"),
        "./sub/data",
        "sub//data",
        "sub/../sub/data",
        "link/data",
        "link/./data",
        "sub/data/",
        tmp_path / "sub" / "data",
        str(tmp_path) + "/link/data",
    ]
    assert {lock_path_of(spelling) for spelling in spellings} == {str(tmp_path / "sub" / "data.rwlock")}


def test_a_symbolic_link_has_a_lock_of_its_own(tmp_path):
    """The lock is named by the last component, which may be replaced under the lock; the same rule as filelock's."""
    (tmp_path / "current").symlink_to("version-1")
    assert lock_path_of(tmp_path / "current") == str(tmp_path / "current.rwlock")


def test_a_directory_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lock_path_of(tmp_path) == f"{tmp_path}.rwlock"
    assert lock_path_of(".") == f"{tmp_path}.rwlock"
    assert lock_path_of(f"{tmp_path}/") == f"{tmp_path}.rwlock"
    (tmp_path / "sub").mkdir()
    assert lock_path_of("sub/..") == f"{tmp_path}.rwlock"
    with pytest.raises(ValueError, match="root of all"):
        lock_path_of("/")  # more likely an empty variable in "$DIR/" than a wish


def test_a_path_that_does_not_exist_has_a_lock(tmp_path):
    """What the lock protects may yet have to be made."""
    assert lock_path_of(tmp_path / "not" / "yet") == str(tmp_path / "not" / "yet.rwlock")


@patient
@given(st.lists(components, min_size=1, max_size=3))
def test_bytes_and_text_name_the_same_lock(parts):
    """Any bytes but NUL and "/" are a name."""
    raw = b"/nowhere/" + b"/".join(parts)
    assert os.fsencode(lock_path_of(raw)) == raw + b".rwlock"
    assert lock_path_of(os.fsdecode(raw)) == lock_path_of(raw)
    assert canonical(canonical(raw)) == canonical(raw)


def test_a_lock_dir_keeps_locks_away_from_the_data(tmp_path):
    """For data in directories that cannot be written."""
    lock_path = Path(lock_path_of("/data/genome.fa", tmp_path / "locks"))
    assert lock_path.parent == tmp_path / "locks"
    assert lock_path.name.startswith("genome.fa-")
    assert lock_path.name.endswith(".rwlock")


def test_the_environment_gives_the_default_lock_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NFSRWLOCK_DIR", str(tmp_path / "locks"))
    assert lock_path_of("/data/genome.fa") == lock_path_of("/data/genome.fa", tmp_path / "locks")
    assert Path(lock_path_of("/data/genome.fa", tmp_path / "other")).parent == tmp_path / "other"
    assert lock_path_of("/data/genome.fa", "") == "/data/genome.fa.rwlock", "told to keep it beside the data"
    monkeypatch.setenv("NFSRWLOCK_DIR", "")
    assert lock_path_of("/data/genome.fa") == "/data/genome.fa.rwlock"


def test_the_lock_below_a_lock_dir_is_the_same_on_every_host_and_in_every_version():
    """The name is made of the path alone, so it may never change."""
    assert os.path.basename(lock_path_of("/data/genome.fa", "/locks")) == (
        "genome.fa-51a3bcd14d787722ab25eab7631a9206.rwlock"
    )


@pytest.mark.parametrize("lock_dir", ["locks", "./locks", "../locks", "~/locks", "~", b"locks", Path("locks"), "."])
def test_a_relative_lock_dir_is_refused(monkeypatch, lock_dir):
    """In each current directory it would be another one, and one path would have many locks."""
    for ask in (lock_path_of, lambda path, where: stated(path, lock_dir=where)):
        with pytest.raises(ValueError, match="lock_dir must be an absolute path"):
            ask("/data/genome.fa", lock_dir)
    monkeypatch.setenv("NFSRWLOCK_DIR", os.fsdecode(lock_dir))
    with pytest.raises(ValueError, match="NFSRWLOCK_DIR must be an absolute path"):
        lock_path_of("/data/genome.fa")
    assert lock_path_of("/data/genome.fa", "") == "/data/genome.fa.rwlock", "the environment does not matter then"


def test_equal_spellings_give_one_lock_below_a_lock_dir_too(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    found = {
        lock_path_of(path, where)
        for path in ("data", "./data", tmp_path / "link" / "data")
        for where in (tmp_path / "locks", f"{tmp_path}/link/./locks/")
    }
    assert len(found) == 1


@patient
@given(components, components, components)
def test_different_paths_never_share_a_lock_below_a_lock_dir(folder, one, other):
    """The readable part of the name may be the same; the digest is not."""
    assume(folder + b"/" + one != other)
    paths = {b"/" + folder + b"/" + one, b"/" + folder + b"/" + other, b"/" + one, b"/" + other}
    names = {os.path.basename(lock_path_of(path, "/locks")) for path in paths}
    assert len(names) == len(paths)
    assert all(name.isascii() and name.isprintable() and len(name) <= 255 and "/" not in name for name in names)


def test_names_of_any_length_fit_below_a_lock_dir():
    assert len(os.path.basename(lock_path_of("/data/" + "x" * 255, "/locks"))) < 200


# -- the settings ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_filelock():
    """PROTOCOL.md section 3: 30 s between heartbeats, any host may evict after 90 s."""
    found = stated()
    assert (found.heartbeat_interval, found.stale_threshold, found.poll_interval) == (30.0, 90.0, 0.25)
    assert found.timeout == -1.0


@pytest.mark.parametrize(("interval", "lease"), [(30, 90), (2, 6), (0.5, 1.5)])
def test_the_lease_is_three_intervals_by_default(interval, lease):
    assert stated(heartbeat_interval=interval).stale_threshold == lease


@pytest.mark.parametrize(("interval", "lease", "expected"), [(30, 90, 30), (30, 31, 31 / 3), (1, 90, 1), (20, 60, 20)])
def test_a_holder_beats_at_least_three_times_in_a_lease(interval, lease, expected):
    """PROTOCOL.md section 3: every ttl/3, so that two beats may fail before the lease runs out."""
    assert stated(heartbeat_interval=interval, stale_threshold=lease).beat_interval == pytest.approx(expected)


@pytest.mark.parametrize("name", ["heartbeat_interval", "stale_threshold", "poll_interval"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, 1e300])
def test_durations_are_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=name):
        stated(**{name: value})


@pytest.mark.parametrize("name", ["heartbeat_interval", "stale_threshold", "poll_interval", "timeout"])
@pytest.mark.parametrize("value", ["30", True, [1], 1j])
def test_durations_are_numbers(name, value):
    with pytest.raises(TypeError, match=name):
        stated(**{name: value})


@pytest.mark.parametrize("value", [Decimal("1.5"), Fraction(3, 2), 1.5])
def test_any_real_number_is_a_duration(value):
    assert stated(heartbeat_interval=value).heartbeat_interval == 1.5


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"heartbeat_interval": 30, "stale_threshold": 30}, "stale_threshold"),
        ({"heartbeat_interval": 30, "stale_threshold": 29}, "stale_threshold"),
        ({"poll_interval": 90}, "poll_interval"),
        ({"heartbeat_interval": 0.1, "poll_interval": 0.4}, "poll_interval"),
        ({"heartbeat_interval": 1, "stale_threshold": 10_000_001}, "stale_threshold"),
        ({"heartbeat_interval": 0.0001, "stale_threshold": 0.0009, "poll_interval": 0.0001}, "stale_threshold"),
        ({"heartbeat": "process "}, "heartbeat"),
        ({"heartbeat": None}, "heartbeat"),
        ({"share": "all"}, "share"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, name):
    with pytest.raises(ValueError, match=name) as caught:
        stated(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["blocking", "is_singleton"])
@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_switch_is_true_or_false(name, value):
    """A string such as "false" would count as true."""
    with pytest.raises(TypeError, match=name):
        stated(**{name: value})


def test_equal_settings_are_equal_however_the_path_is_spelt(tmp_path, monkeypatch):
    """Issue: equal settings compare and hash equal."""
    monkeypatch.chdir(tmp_path)
    one, two = stated("data"), stated(tmp_path / "data")
    assert one == two
    assert hash(one) == hash(two)
    assert one != stated("data", poll_interval=0.5)
    assert one != stated("data", lock_dir=tmp_path / "locks")


def limit_of(timeout, *, blocking):
    return SoftReadWriteLock("/nowhere", is_singleton=False)._limit_of_call(timeout, blocking)


@pytest.mark.parametrize(
    ("timeout", "blocking", "expected"),
    [
        (5, True, 5.0),
        (0, True, 0.0),
        (-1, True, -1.0),
        (math.inf, True, -1.0),
        (1e10, True, -1.0),
        (5, False, 0.0),
        (-1, False, 0.0),
    ],
)
def test_a_timeout_is_seconds_or_no_limit(timeout, blocking, expected):
    assert limit_of(timeout, blocking=blocking) == expected
    lock = SoftReadWriteLock("/nowhere", timeout, blocking=blocking, is_singleton=False)
    assert lock._limit_of_call(None, None) == expected


@pytest.mark.parametrize("timeout", [-2, -0.1, -math.inf, math.nan])
def test_a_timeout_that_is_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout"):
        limit_of(timeout, blocking=True)


@pytest.mark.parametrize("timeout", ["5", True, b"5", 1j, [5], object()])
def test_a_timeout_that_is_no_number_is_refused(timeout):
    with pytest.raises(TypeError, match="timeout"):
        limit_of(timeout, blocking=True)


def test_a_number_that_is_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="too large"):
        limit_of(10**400, blocking=True)


@pytest.mark.parametrize("kind", [SoftReadWriteLock, AsyncSoftReadWriteLock])
def test_a_lock_can_be_made_under_a_debugger(tmp_path, kind):
    def trace(frame, event, arg):
        _ = frame.f_locals  # before Python 3.13 this changes what locals() has returned
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        lock = kind(tmp_path / "data", 5, is_singleton=False)
    finally:
        sys.settrace(before)
    assert lock.timeout == 5
