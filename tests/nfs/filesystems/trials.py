"""
What is tried on each file system, with what comes of it as figures for the table.

The demands of section 6 of the protocol are raced by ``nfsrwlock doctor --peer`` itself, whose judge
``tests/adapters/test_doctor_findings.py`` tests with file systems that lie; storms and campaigns have judges of their
own, who know nothing of the protocol.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actors import Raised
from nfs.campaign.history import conflicts, disorder
from nfs.campaign.run import Campaign, document
from nfs.filesystems import table
from nfs.filesystems.changes import states
from nfs.filesystems.descriptions import FileSystem
from nfs.full_disk import empty, fill
from nfs.lab import Job, Lab, LabError
from nfs.lab.node import MOUNTPOINT
from nfs.lanes import Lane
from nfs.scene import TESTS, Remote
from nfs.storms import storm

#: What may go wrong in a campaign; the server is the business of :func:`crashes`.
_FAULTS: Final = {"pause": 6, "kill": 4, "helper kill": 3, "power cut": 2, "network cut": 2, "clock": 2}
_LEASE_S: Final = 4.0
#: Rounds of a batch of races, and of the first one, which tells how long they take.
_BATCH: Final = 100
_FIRST_BATCH: Final = 20
#: So much of the time that is left the next batch may take, by the time that the one before took.
_CAUTION: Final = 0.8
_NAMES: Final = 10
#: Of what ``doctor`` finds, the worst last.
_LEVELS: Final = ("ok", "note", "warning", "unfit")
#: Of a cache of joblib's that both clients fill.
_KEYS: Final = 100
_CHANGES: Final = str(Path(__file__).with_name("changes.py"))


@dataclass(frozen=True)
class Extent:
    """How much is tried."""

    rounds: int
    storm_s: float
    campaign_s: float
    crashes: int
    #: After so long no further batch of rounds begins, and no further crash, seconds.
    share_s: float = math.inf
    #: Of processes on each client, in storms, races and crashes.
    processes: int = 2


FULL: Final = Extent(rounds=2000, storm_s=20.0, campaign_s=45.0, crashes=3)
QUICK: Final = Extent(rounds=100, storm_s=4.0, campaign_s=15.0, crashes=1)


def demands(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Let ``doctor`` race the demands between the clients; return what it found, by check."""
    lab.clients[0].check(["mkdir", f"{MOUNTPOINT}/doctor"])
    return in_batches(lambda rounds: _doctor(lab, rounds, extent.processes), extent.rounds, extent.share_s)


def in_batches(race: Callable[[int], dict[str, Any]], rounds: int, share_s: float) -> dict[str, Any]:
    """
    Race so many rounds, or as many as there is time for; return what was found.

    Not at one go, for two reasons: what was reached counts when time runs out, and players who have fallen behind begin
    the next batch together.
    """
    found: dict[str, Any] = {}
    done, batch, began = 0, min(_FIRST_BATCH, rounds), time.monotonic()
    while batch >= min(_FIRST_BATCH, max(rounds - done, 1)):
        since = time.monotonic()
        try:
            found = add(found, race(batch))
        except LabError as error:
            return {**found, "error": f"after {done} rounds: {error}"[-1500:]}
        done += batch
        now = time.monotonic()
        batch = int(min(_BATCH, rounds - done, _CAUTION * batch * (began + share_s - now) / (now - since)))
    return found


def add(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """
    Return what two runs of ``doctor`` found together.

    Counts are added. Half of all rounds began within the longer of both medians, so that stays. Whatever else a check
    says is as the worse of the two has it, or else the later.
    """
    if not one:
        return other
    checks = {}
    for name, later in other["checks"].items():
        earlier = one["checks"].get(name, later)
        worse = earlier if _LEVELS.index(earlier["level"]) > _LEVELS.index(later["level"]) else later
        checks[name] = dict(worse)
        if name in one["checks"]:
            counted = [fact for fact in table.COUNTED & earlier.keys() if isinstance(earlier[fact], int)]
            checks[name] |= {fact: earlier[fact] + later[fact] for fact in counted}
            checks[name] |= {fact: max(earlier[fact], later[fact]) for fact in {"median_apart_ms"} & earlier.keys()}
    worst = max(other, one, key=lambda run: _LEVELS.index(run["level"]))
    return {"level": worst["level"], "verdict": worst["verdict"], "checks": {**one["checks"], **checks}}


def _doctor(lab: Lab, rounds: int, processes: int) -> dict[str, Any]:
    n1, n2 = lab.clients
    directory = f"{MOUNTPOINT}/doctor"
    command = [sys.executable, "-m", "nfsrwlock", "doctor"]
    extent = ["--rounds", str(rounds), "--processes", str(processes)]
    first = n1.popen([*command, "--peer", "--json", *extent, directory])
    try:
        first.wait_until(lambda: b"--join" in first.err and first.err.endswith(b"\n"), 60)
        token = re.search(rb"--join (\w+)", first.err)
        if token is None:
            raise LabError(f"doctor: {(first.out + first.err).decode(errors='replace')}")
        second = n2.popen([*command, "--join", token[1].decode(), directory])
        ended = first.wait()
        second.kill()
    finally:
        first.kill()
    if not ended.stdout:
        raise LabError(f"doctor: {ended.stderr.decode(errors='replace')}")
    (report,) = json.loads(ended.stdout)
    checks = {check["name"]: {"level": check["level"], "text": check["text"], **check["facts"]}
              for check in report["checks"]}  # fmt: skip
    return {"level": report["level"], "verdict": report["verdict"], "checks": checks}


def exclusion(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Storm one lock from both clients."""
    path = f"{MOUNTPOINT}/stormed"
    lab.clients[0].check(["sh", "-c", ': >"$1"', "sh", path])
    with _processes(lab, extent.processes) as processes:
        found = storm(processes, {node.name: path for node in lab.clients}, extent.storm_s)
    old = [(who, one) for who, one in found.said if one["mode"] == "read" and one["seen"] < one["generation"]]
    overlaps, wrong_numbers = list(conflicts(found.holds)), list(disorder(found.holds))
    lines = lab.clients[0].check(["cat", path]).split()
    return {
        "holds": len(found.holds),
        "writes": len(found.writes),
        "overlaps": len(overlaps),
        "disorder": len(wrong_numbers),
        "old reads": len(old),
        "examples": [*(f"{one.at:.4f}: {one.what}" for one in (*overlaps, *wrong_numbers)[:4]), *map(str, old[:2])],
        "lost updates": len(found.writes) - len(lines),
        "clock error, ms": round(found.error_s * 1e3, 2),
    }


def churn(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """
    Let listings meet changes: demand (b) again, for names that stay while others come and go.

    ``doctor`` never removes a name while it races, since its players do not wait for each other.
    """
    path = f"{MOUNTPOINT}/churn"
    with _processes(lab, extent.processes) as processes:
        processes[0].do(f"churned = LockDirectory({path!r}); churned.open(); churned.mkdir('stay.0')")
        for number, process in enumerate(processes):
            process.tell(f"churn({path!r}, 'p{number}', {extent.storm_s})")
        found = [process.answer(extent.storm_s + 75) for process in processes]
    counts = {name: sum(one[name] for one in found) for name in ("rounds", "missed")}
    return {**counts, "examples": [text for one in found for text in one["examples"]][:4]}


def names(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Make what another client has looked for in vain: a directory, and that of a lock."""
    failed = {"unseen": 0, "unlocked": 0}
    with _processes(lab, 1) as (seeker, maker):
        for number in range(_NAMES):
            for what, name, look in (("unseen", "it", "is_seen"), ("unlocked", "it.rwlock", "is_locked_in")):
                directory = f"{MOUNTPOINT}/{what}-{number}"
                maker.do(f"os.mkdir({directory!r})")
                assert not seeker.do(f"os.path.exists('{directory}/{name}')")
                maker.do(f"os.mkdir('{directory}/{name}', 0o700)")
                failed[what] += not seeker.do(f"{look}('{directory}/it')")
    return {"names": _NAMES, **failed}


def faults(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Take locks at random while clients stand still, are cut off or lose their power, and processes die."""
    actors = ("thread", "tasks", "user", "process") if kind.lets_all_users_in else ("thread", "tasks", "process")
    lab.clients[0].check(["mkdir", f"{MOUNTPOINT}/campaign"])
    campaign = Campaign(
        *(lab, "campaign"), seed=1, processes=4, locks=4, lease_s=_LEASE_S,
        lanes={"it": Lane("", "", MOUNTPOINT)}, actors=actors, faults=_FAULTS,
    )  # fmt: skip
    verdict = campaign.run(extent.campaign_s)
    figures = document(campaign, verdict, extent.campaign_s)
    # A client that serves others late is no danger: losses and what did not end well are told apart from overlaps.
    grave = [what for what in figures["violations"] if "lost its hold" not in what]
    return {
        "for, s": extent.campaign_s,
        "holds": len(verdict.holds),
        "faults": figures["faults"],
        "endings": figures["endings"],
        "overlaps": len(grave),
        "violations": figures["violations"][:5],
        "errors": [error[-600:] for error in figures["errors"][:3]],
    }


def full(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Take all space on the server's disk: a hold stays and can be released; whoever wants one is told the reason."""
    path = f"{MOUNTPOINT}/full"
    settings = f"heartbeat_interval={_LEASE_S / 3}, stale_threshold={_LEASE_S}, poll_interval=0.1"
    if kind.in_memory:
        return {}
    disk = (lab.clients[1], MOUNTPOINT) if kind.shared_mib else (lab.server,)
    found: dict[str, Any] = {"kept": False, "released": False, "refused": ""}
    with _processes(lab, 1) as (holder, other):
        for process in (holder, other):
            process.do(f"lock = SoftReadWriteLock({path!r}, {settings})")
        holder.do("lock.acquire_write()")
        try:
            fill(*disk)
            time.sleep(1.5 * _LEASE_S)
            found["kept"] = holder.do("check_of(lock)") == ""
            holder.do("lock.release()")
            found["released"] = not other.do(f"[name for name in os.listdir('{path}.rwlock') if 'write.' in name]")
            found["full"] = fill(*disk)  # the release may have freed a block
            try:
                other.do("lock.acquire_write(timeout=10)")
            except Raised as error:
                found["refused"] = f"{error.names[0]}: {error.message}"
        finally:
            empty(*disk)
    return found


def adapters(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """Let joblib compute each value once for both clients, and Snakemake publish an index that both use."""
    return _joblib(lab) | _snakemake(lab)


def _joblib(lab: Lab) -> dict[str, Any]:
    clients = [Remote(node, "from nfs.joblib_client import *") for node in lab.clients]
    try:
        for seed, client in enumerate(clients):
            client.tell(f"call_all({MOUNTPOINT + '/joblib'!r}, {_KEYS}, {seed})")
        computed = [key for client in clients for key in client.answer(300)]
    finally:
        for client in clients:
            client.end()
    return {"values": _KEYS, "computed": len(computed)}


#: Each build leaves a file of its own; who uses the index copies it.
_WORKFLOW: Final = """
rule use:
    input: ancient(shared_read("../index"))
    output: "used"
    shell: "cp {input} {output}"
rule index:
    output: exclusive("../index", once=True)
    shell: "mkdir -p ../built; echo {config[version]} > ../built/$(hostname).$$; "
        "for n in 1 2 3 4 5; do echo {config[version]} >> {output}; sleep 0.1; done"
"""


#: Who builds each version: both, of whom one finds it built; then one alone, after both have read the one before.
_VERSIONS: Final = {"one": [0, 1], "two": [1], "three": [0]}


def _snakemake(lab: Lab) -> dict[str, Any]:
    directory = f"{MOUNTPOINT}/snakemake"
    lab.clients[0].check(["mkdir", directory])
    clients = [Remote(node) for node in lab.clients]
    wrong, examples = 0, []
    try:
        for client in clients:
            client.tell("from nfs.snakemake_client import *")
        for client in clients:
            client.answer(200)
        for version, builders in _VERSIONS.items():
            for part, at_work in ((["index"], builders), (["use"], [0, 1])):
                force = ["--forcerun", "index"] if part == ["index"] and version != "one" else []
                arguments = [*part, *force, "--config", f"version={version}"]
                names = {number: f"{version}-{number}-{part[0]}" for number in at_work}
                runs = {
                    number: clients[number].do(f"start('{directory}/{name}', {_WORKFLOW!r}, *{arguments!r})")
                    for number, name in names.items()
                }
                for number, pid in runs.items():
                    if (code := clients[number].do(f"end({pid})", 200)) != 0:
                        log = clients[number].node.check(["cat", f"/tmp/{names[number]}.log"])
                        raise LabError(f"Snakemake ended with {code}: {log}")
            for number in (0, 1):
                seen = clients[number].do(f"open('{directory}/{version}-{number}-use/used').read().split()")
                if seen != [version] * 5:
                    wrong += 1
                    examples.append(f"{seen} and not {version}")
        builds = len(clients[0].do(f"os.listdir('{directory}/built')"))
    finally:
        for client in clients:
            client.end()
    return {
        "versions": len(_VERSIONS),
        "builds": builds,
        "uses": 2 * len(_VERSIONS),
        "wrong": wrong,
        "examples": examples,
    }


def crashes(lab: Lab, kind: FileSystem, extent: Extent) -> dict[str, Any]:
    """
    Cut the power while clients make changes; count those that were acknowledged and are undone.

    The server's power; where there is none, that of a client, which has acknowledged them itself.
    """
    victim, others = (lab.clients[0], []) if kind.shared_mib else (lab.server, lab.clients)
    chance = random.Random(1)
    acknowledged = undone = 0
    examples: list[str] = []
    began, made = time.monotonic(), 0
    while made < extent.crashes and (not made or (time.monotonic() - began) * (made + 1) / made < extent.share_s):
        directory = f"{MOUNTPOINT}/crash-{made}"
        jobs: dict[str, Job] = {}
        for node in others or [victim]:
            for number in range(extent.processes):
                name = f"{node.name}-{number}"
                jobs[name] = node.popen([sys.executable, _CHANGES, directory, name], env={"PYTHONPATH": str(TESTS)})
        try:
            for name, job in jobs.items():
                if not job.wait_until(lambda job=job: job.out.count(b"\n") > 50, 60):  # type: ignore[misc]
                    raise LabError(f"{name}: {job.err.decode(errors='replace') or 'no change was acknowledged'}")
            time.sleep(chance.uniform(0, 1.0))
            victim.kill()
            _until_silent(list(jobs.values()))
            counts = {name: job.out.count(b"\n") for name, job in jobs.items()}
        finally:
            for job in jobs.values():
                job.kill()
        victim.start()
        for node in others:
            node.run(["umount", "-l", "-i", MOUNTPOINT], timeout=60)
            node.remount()
        there = set(lab.clients[0].check(["sh", "-c", '! cd "$1" || find . -mindepth 1', "sh", directory]).split())
        for name, count in counts.items():
            wanted, unsure = states(name, count)
            wrong = [what for what, is_there in wanted.items()
                     if what not in unsure and not any(one.startswith(f"{what}/") for one in unsure)
                     and (f"./{what}" in there) != is_there]  # fmt: skip
            acknowledged += count
            undone += len(wrong)
            examples += wrong[:2]
        made += 1
    return {"crashes": made, "changes": acknowledged, "undone": undone, "examples": examples[:6]}


#: In this order: the last one takes the server's power away.
TRIALS: Final[dict[str, Callable[[Lab, FileSystem, Extent], dict[str, Any]]]] = {
    "exclusion": exclusion,
    "churn": churn,
    "names": names,
    "demands": demands,
    "faults": faults,
    "full": full,
    "adapters": adapters,
    "crashes": crashes,
}


def describe(lab: Lab, kind: FileSystem) -> dict[str, Any]:
    """What is mounted, and in which versions."""
    first = kind.packages.split()[0]
    version = lab.server.check(["dpkg-query", "-W", "-f", "${Version}", first])
    mounted = [line.split() for line in lab.clients[0].check(["cat", "/proc/mounts"]).splitlines()]
    options = next(line[2:4] for line in mounted if line[1] == MOUNTPOINT)
    return {
        "package": f"{first} {version}",
        "kernel": lab.clients[0].check(["uname", "-r"]).strip(),
        "type": options[0],
        "mounted with": options[1],
    }


@contextlib.contextmanager
def _processes(lab: Lab, number: int) -> Iterator[list[Remote]]:
    made: list[Remote] = []
    try:
        for _ in range(number):
            made += [Remote(node) for node in lab.clients]
        yield made
    finally:
        for process in made:
            process.end()


def _until_silent(jobs: list[Job], quiet_s: float = 1.0, most_s: float = 20.0) -> None:
    """Wait until nothing more is heard: what a client was told before the crash, it says now."""
    heard, since, end = -1, time.monotonic(), time.monotonic() + most_s
    while time.monotonic() < min(since + quiet_s, end):
        if (now := sum(len(job.out) for job in jobs)) != heard:
            heard, since = now, time.monotonic()
        time.sleep(0.05)


def prepare(lab: Lab, kind: FileSystem, bind: list[Path]) -> None:
    """Bring it up, with two clients."""
    lab.down()
    os.environ["NFSRWLOCK_UNFIT"] = "1"  # what locks refuse is tried all the same
    lab.up(clients=2, serve=kind.serve, mount=kind.mounting, disk=kind.disk, shared_mib=kind.shared_mib,
           mem_mib=kind.mem_mib, bind=bind, lease_s=10, grace_s=10)  # fmt: skip
