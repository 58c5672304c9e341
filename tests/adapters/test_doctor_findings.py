"""What ``nfsrwlock doctor`` concludes: from what two sides saw, and from what is mounted. No file system involved."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nfsrwlock.doctor.examination import _space
from nfsrwlock.doctor.filesystems import explain, explain_other, scope_of
from nfsrwlock.doctor.races import RACES, Plan, Record, Round, judge, prepare, race
from nfsrwlock.doctor.rendezvous import judge_sights
from nfsrwlock.doctor.report import Check, Level, Report
from nfsrwlock.doctor.scratch import Scratch
from nfsrwlock_core.system import mounts
from nfsrwlock_core.system.mounts import Mount, mount_of, parse_mountinfo, requests_of

ROUNDS = 24


def record(player: int) -> Record:
    """A player that saw everything, and won every race as the first one or lost it."""
    outcomes = {
        "mkdir": ["done", "EEXIST"],
        "list": ["done", "done"],
        "unlink": ["done", "ENOENT"],
        "create": ["done", "ENOTEMPTY"],
        "rmdir": ["done", "ENOENT"],
        "rename": ["done", "ENOENT"],
        "nonempty": ["ENOTEMPTY", "ENOTEMPTY"],
    }
    return {
        race.name: [
            Round(outcomes[race.name][player], number, number + 0.001, listing(number)) for number in range(ROUNDS)
        ]
        for race in RACES
    }


def listing(number: int) -> list[str]:
    """Of the names that two players make in a directory, those that are there after a round."""
    return [f"{who}.{earlier}" for who in range(2) for earlier in range(number // 20 * 20, number + 1)]


def end(seen: Record, race: str, number: int, outcome: str) -> None:
    """Let a player's call have ended so."""
    seen[race][number] = seen[race][number]._replace(outcome=outcome)


@dataclass
class Seen:
    """What two players of a sound file system saw."""

    lead: Record
    join: Record
    sights: list[dict[str, Any]]


def result(two_hosts: bool = True) -> Seen:
    sights = [{"old": 0, "delay": 0.01} for _ in range(2)] if two_hosts else []
    return Seen(record(0), record(1), sights)


def judged(seen: Seen) -> dict[str, Check]:
    checks = [*judge(Plan(ROUNDS, 0.001, players=2), [seen.lead, seen.join], clocks=0.001 if seen.sights else None)]
    if seen.sights:
        checks += judge_sights(seen.sights)
    return {check.name: check for check in checks}


def test_a_sound_file_system_passes() -> None:
    checks = judged(result())
    assert set(checks) == {"mkdir", "listing", "removal", "freshness", "data"}
    assert {check.level for check in checks.values()} == {Level.OK}
    facts = checks["mkdir"].facts
    assert (facts["overlapping"], facts["median_apart_ms"]) == (ROUNDS, 0.0)


def test_times_are_seconds_from_the_start(tmp_path: Path) -> None:
    plan = Plan(10, call=0.0001, players=2)
    scratch = Scratch.make(str(tmp_path))
    prepare(scratch, plan)
    start = time.monotonic() - 1000
    seen = race(scratch.root, 0, plan, start, lambda: None)
    scratch.close()
    for rounds in seen.values():
        for one in rounds:
            assert 1000 <= one.began <= one.ended <= time.monotonic() - start


def test_one_host_is_asked_only_what_it_can_answer() -> None:
    assert set(judged(result(two_hosts=False))) == {"mkdir", "listing", "removal"}


def test_one_name_that_both_made_is_unfit_and_one_that_neither_made_is_not() -> None:
    seen = result()
    end(seen.join, "mkdir", 5, "done")
    assert judged(seen)["mkdir"].level is Level.UNFIT
    seen = result()
    end(seen.lead, "mkdir", 5, "EEXIST")
    assert judged(seen)["mkdir"].level is Level.NOTE


def test_two_listings_that_miss_each_other_are_unfit_and_one_alone_is_not() -> None:
    seen = result()
    seen.lead["list"][7].listing.remove("1.7")
    assert judged(seen)["listing"].level is Level.OK, "its listing may have been first"
    seen.join["list"][7].listing.remove("0.7")
    assert judged(seen)["listing"].level is Level.UNFIT


def test_a_listing_that_misses_an_earlier_round_is_unfit() -> None:
    seen = result()
    seen.lead["list"][7].listing.remove("1.3")
    check = judged(seen)["listing"]
    assert (check.level, check.facts["missed"]) == (Level.UNFIT, 1)


def test_a_name_that_was_not_made_is_not_missed() -> None:
    seen = result()
    end(seen.lead, "list", 7, "EIO")
    seen.lead["list"][7].listing.remove("0.7")
    for one in (*seen.lead["list"], *seen.join["list"]):
        one.listing[:] = [name for name in one.listing if name != "0.7"]
    check = judged(seen)["listing"]
    assert (check.level, check.facts["missed"], check.facts["own_missed"]) == (Level.WARNING, 0, 0)
    assert "EIO 1 times" in check.text


@pytest.mark.parametrize(
    ("race", "fact"),
    [
        *(("unlink", "moved_and_removed"), ("create", "filled_and_removed")),
        *(("rmdir", "renamed_and_removed"), ("rename", "renamed_twice")),
    ],
)
def test_a_beat_that_both_got_is_unfit(race: str, fact: str) -> None:
    seen = result()
    end(seen.join, race, 4, "done")
    check = judged(seen)["removal"]
    assert (check.level, check.facts[fact]) == (Level.UNFIT, 1)


@pytest.mark.parametrize(("race", "number"), [("create", 4), ("rmdir", 4), ("unlink", 4)])
def test_what_two_others_were_both_told_they_removed_is_no_harm_to_the_holder(race: str, number: int) -> None:
    """Seen on GlusterFS: two clients were told that they had removed one directory; the holder was told it is gone."""
    players = [record(1) for _ in range(4)]
    for other in (1, 3):
        end(players[other], race, number, "done")
    (check,) = (one for one in judge(Plan(ROUNDS, 0.001, players=4), players) if one.name == "removal")
    assert check.level is Level.NOTE, "in the other rounds nobody succeeded"
    end(players[number % 4], race, number, "done")
    (check,) = (one for one in judge(Plan(ROUNDS, 0.001, players=4), players) if one.name == "removal")
    assert check.level is Level.UNFIT


def test_a_beat_that_neither_got_is_a_note() -> None:
    seen = result()
    end(seen.lead, "unlink", 4, "ENOENT")
    assert judged(seen)["removal"].level is Level.NOTE


def test_a_removed_directory_that_was_not_empty_is_unfit() -> None:
    seen = result()
    end(seen.join, "nonempty", 0, "done")
    assert judged(seen)["removal"].level is Level.UNFIT


@pytest.mark.parametrize(("delay", "level"), [(0.01, "ok"), (2.5, "warning"), (None, "warning")])
def test_a_listing_that_is_late_is_a_warning(delay: float | None, level: str) -> None:
    seen = result()
    seen.sights[0] = {"old": 0, "delay": delay}
    assert judged(seen)["freshness"].level == level


def test_old_data_is_unfit_although_locks_hold() -> None:
    seen = result()
    seen.sights[1]["old"] = 1
    check = judged(seen)["data"]
    assert check.level is Level.UNFIT
    report = Report(path="p", home="/p", two_hosts=True, checks=list(judged(seen).values()))
    assert not report.fit
    assert "locks hold here, but data read under them may be old" in report.verdict


# What is mounted


def mount(fstype: str, options: str = "rw", source: str = "srv:/data") -> Mount:
    found = parse_mountinfo(f"36 35 0:28 / /mnt/data rw,relatime shared:1 - {fstype} {source} {options}")
    assert found is not None
    return found


def levels(found: Mount) -> dict[str, Level]:
    return {check.name: check.level for check in explain(found)}


def test_a_line_of_mountinfo_is_read() -> None:
    found = parse_mountinfo(
        r"35 23 0:27 /sub /mnt/a\040b\134c rw,noatime master:2 - nfs4 srv:/e\040f rw,vers=4.2,hard,timeo=600"
    )
    assert found is not None
    assert (found.type, found.source, found.mountpoint) == ("nfs4", "srv:/e f", "/mnt/a b\\c")
    assert found.options == {"rw": True, "noatime": True, "vers": "4.2", "hard": True, "timeo": "600"}
    assert (found.number("timeo"), found.number("vers"), found.text("hard"), found.is_nfs) == (600, None, None, True)


@pytest.mark.parametrize("line", ["", "36", "36 35 0:28 / /mnt rw - nfs", "a b c d e f g h"])
def test_what_is_no_line_of_mountinfo_is_no_mount(line: str) -> None:
    assert parse_mountinfo(line) is None


def test_a_mount_is_read_only_if_either_the_mount_or_its_file_system_is() -> None:
    line = "36 35 0:28 / /mnt/data {} - ext4 /dev/sda {}"
    for own, super_options in [("ro", "rw"), ("rw", "ro")]:
        found = parse_mountinfo(line.format(own, super_options))
        assert found is not None
        assert levels(found)["option-ro"] is Level.UNFIT


def test_the_mount_of_a_directory_is_found_by_its_descriptor(tmp_path: Path) -> None:
    found, root = mount_of(str(tmp_path)), mount_of("/")
    assert found is not None
    assert root is not None
    assert root.mountpoint == "/"
    assert os.stat(found.mountpoint).st_dev == tmp_path.stat().st_dev


MOUNTSTATS = """\
device /dev/vda mounted on / with fstype ext4
device srv:/ mounted on /mnt/a\\040b with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60,hard
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t     GETATTR: 12 12 0 148 240 0 0 0 0
device srv:/other mounted on /mnt/a\\040b/c with fstype nfs statvers=1.1
\tper-op statistics
\t     GETATTR: 99 99 0 148 240 0 0 0 0
"""


def test_requests_are_counted_for_the_one_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountstats").write_text(MOUNTSTATS)
    monkeypatch.setattr(mounts, "_PROC", tmp_path)
    assert requests_of("/mnt/a b") == {"NULL": 1, "GETATTR": 12}
    assert requests_of("/mnt/a b/c") == {"GETATTR": 99}
    assert requests_of("/") is None
    assert requests_of("/mnt") is None


def test_without_proc_nothing_is_known_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_PROC", tmp_path / "none")
    assert mount_of(str(tmp_path)) is None
    assert requests_of("/") is None
    (check,) = explain(None)
    assert (check.level, scope_of(None)) == (Level.NOTE, "hosts")


@pytest.mark.parametrize(
    ("fstype", "level", "scope"),
    [
        ("ext4", "note", "host"),
        ("overlay", "note", "host"),
        ("nfs4", "ok", "hosts"),
        ("lustre", "ok", "hosts"),
        ("ceph", "ok", "hosts"),
        ("gpfs", "ok", "hosts"),
        ("gfs2", "warning", "hosts"),
        ("ocfs2", "warning", "hosts"),
        ("cifs", "unfit", "hosts"),
        ("fuse.sshfs", "warning", "hosts"),
        ("fuse.whatever", "warning", "hosts"),
        ("fuse.s3fs", "unfit", "hosts"),
        ("9p", "warning", "hosts"),
        ("hostfs", "warning", "hosts"),
        ("fuseblk", "note", "host"),
        ("drvfs", "warning", "hosts"),
        ("never-heard-of", "warning", "hosts"),
    ],
)
def test_a_type_says_what_to_expect(fstype: str, level: str, scope: str) -> None:
    found = mount(fstype)
    (check,) = explain(found)
    assert (check.level, scope_of(found)) == (level, scope)
    tried = ("nfs4", "ceph", "cifs", "gfs2", "ocfs2", "fuse.sshfs", "9p")
    assert check.basis == ("lab" if fstype in tried else "documented")


def test_moosefs_is_known_by_its_source() -> None:
    (check,) = explain(mount("fuse", source="mfs#srv:9421"))
    assert (check.level, check.basis) == (Level.WARNING, "lab")
    (check,) = explain(mount("fuse"))
    assert check.basis == "documented"


NFS4 = "rw,vers=4.2,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60,{},timeo=600,retrans=2,local_lock=none"
NFS3 = NFS4.replace("4.2", "3")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (NFS4.format("hard"), {}),
        (NFS3.format("hard"), {}),
        (NFS4.format("hard,nocto"), {"option-nocto": "warning"}),
        (NFS3.format("hard,nocto"), {"option-nocto": "unfit"}),
        (NFS4.format("hard,nordirplus"), {}),
        (NFS3.format("hard,nordirplus"), {"option-nordirplus": "warning"}),
        (NFS4.format("hard,noac"), {"option-noac": "note"}),
        (NFS4.replace("acdirmax=60", "acdirmax=600").format("hard,lookupcache=none"), {}),
        (NFS4.format("soft"), {"option-soft": "warning"}),
        (NFS4.format("softerr"), {"option-soft": "warning"}),
        (NFS4.replace("local_lock=none", "local_lock=all").format("hard"), {}),
    ],
)
def test_an_option_of_nfs_that_matters_is_explained(options: str, expected: dict[str, str]) -> None:
    said: dict[str, Any] = {**levels(mount("nfs4", options))}
    assert said.pop("file-system") == "ok"
    assert said == expected


def test_a_soft_mount_says_when_calls_fail() -> None:
    (_, slow) = explain(mount("nfs4", NFS4.format("soft")))
    assert (slow.facts["fails_after_s"], "after about 180 s" in slow.text) == (180, True)
    (_, quick) = explain(mount("nfs4", NFS4.replace("timeo=600", "timeo=50").format("soft")))
    assert (quick.facts["fails_after_s"], "after about 15 s" in quick.text) == (15, True)


@pytest.mark.parametrize(
    ("fstype", "options", "expected"),
    [
        ("lustre", "rw,noflock", {}),
        ("9p", "rw,cache=loose", {"option-cache": "warning"}),
        ("fuse.glusterfs", "rw", {"data": "unfit"}),
        ("ext4", "rw,nocto,soft", {}),
    ],
)
def test_options_of_others_are_explained(fstype: str, options: str, expected: dict[str, str]) -> None:
    said: dict[str, Any] = {**levels(mount(fstype, options))}
    del said["file-system"]
    assert said == expected


def test_the_mount_of_the_second_host_is_mentioned_where_it_differs() -> None:
    plain, nocto = mount("nfs4", NFS4.format("hard")), mount("nfs4", NFS4.format("hard,nocto"))
    assert explain_other(Mount(**json.loads(json.dumps(asdict(plain)))), "n2", plain) == []
    elsewhere = replace(plain, source="other:/data", mountpoint="/elsewhere")
    assert explain_other(elsewhere, "n2", plain) == []
    (check,) = explain_other(nocto, "n2", plain)
    assert (check.name, check.level) == ("option-nocto", "warning")
    assert check.text.startswith("On n2: nocto")
    (check,) = explain_other(mount("nfs4", NFS3.format("hard")), "n2", plain)
    assert check.text.startswith("On n2: NFSv3")
    (check,) = explain_other(None, "n2", plain)
    assert check.level is Level.NOTE
    assert explain_other(nocto, "n2", None)[0].text.startswith("On n2: NFSv4.2")


def test_what_is_shared_of_a_mount_names_no_host_user_path_or_address() -> None:
    kept = "vers=4.2,hard,nocto,timeo=600,sec=krb5"
    private = {
        *("addr=10.9.8.7", "clientaddr=10.9.8.6", "mountaddr=fe80::1", "username=ada", "domain=LABOUR", "uid=1077"),
        *(
            "unc=\\\\hal\\vault",
            "ip=10.9.8.5",
            "lowerdir=/vault",
            "workdir=/vault",
            "name=ada",
            "fsc=vault",
            "user_id=1077",
        ),
        *("mds_namespace=vault", "xprtsec=ada", "context=ada", "something-new=ada", "subdir=/vault", "access=1077"),
    }
    found = mount("nfs4", f"rw,{kept},{','.join(private)}", source="hal.example.org:/vault")
    checks = [
        *explain(found),
        *explain_other(mount("nfs4", f"vers=3,nocto,{','.join(private)}", "hal:/vault"), "hal", found),
        Check("permission", Level.NOTE, "ada", "ada", facts={"group": "ada (1077)", "owner": 1077}),
        Check("what-comes-later", Level.NOTE, "ada", "rm -r /vault", facts={"by": "ada"}),
    ]
    full = Report("/vault", "/vault", "/vault/x", file_system=asdict(found), host="hal", peer="hal2", checks=checks)
    shared = json.dumps(full.shareable().to_dict())
    names = ("hal", "vault", "ada", "1077", "10.9.8", "fe80", "LABOUR", "/mnt")
    assert [name for name in names if name not in json.dumps(full.to_dict())] == []
    assert [name for name in names if name in shared] == []
    options = json.loads(shared)["file_system"]["options"]
    assert options == {"rw": True, "vers": "4.2", "hard": True, "nocto": True, "timeo": "600", "sec": "krb5"}


def test_a_verdict_promises_no_more_than_was_tested() -> None:
    assert "as far as one host can tell" in Report(path="p", home="/p").verdict
    assert "two hosts kept all demands" in Report(path="p", home="/p", two_hosts=True).verdict
    assert "for no others" in Report(path="p", home="/p", scope="host").verdict
    bad = Report(path="p", home="/p", two_hosts=True, checks=[Check("listing", Level.UNFIT, "bad", "go away")])
    assert (bad.fit, bad.remedies) == (False, ["go away"])
    assert bad.verdict == "UNFIT: do not rely on locks here (listing)."


@pytest.mark.parametrize(
    ("free", "level", "known"), [(-1, Level.OK, "an unknown number of"), (0, Level.UNFIT, "0"), (7, Level.WARNING, "7")]
)
def test_inodes_that_the_file_system_does_not_count_are_no_reason_to_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level, known: str
) -> None:
    """CephFS says -1."""
    about = list(os.statvfs(tmp_path))
    about[5:8] = 1000, free, free
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(about))
    check = _space(str(tmp_path))
    assert (check.level, f"{known} inodes free" in check.text) == (level, True)
