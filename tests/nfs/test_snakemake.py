"""Snakemake workflows on two kernels that share files over NFS."""

from __future__ import annotations

import time

import pytest

from actors import wait_until
from nfs.lab import Node
from nfs.scene import BOUND_S, LEASE_S, Remote, Scene, on_server, wait_until_announced

pytest.importorskip("snakemake")
pytestmark = pytest.mark.nfs

#: How long a workflow takes, at most, on a machine that has other things to do.
PATIENCE_S = 90.0


class Workflow:
    """A workflow on a client, in a directory of its own on the server."""

    def __init__(self, scene: Scene, client: Remote, name: str, snakefile: str, *arguments: str) -> None:
        self._client = client
        self._name = name
        self.directory = scene.path(file=name)
        environment = {
            "NFSRWLOCK_STALE_THRESHOLD": str(LEASE_S),
            "SNAKEMAKE_OUTPUT_CACHE": scene.path(file="cache"),
        }
        self._pid = client.do(f"start({self.directory!r}, {snakefile!r}, *{arguments!r}, **{environment!r})")

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._client.node.check(["cat", f"/tmp/{self._name}.log"])

    def wait_for(self, text: str) -> None:
        """Wait until it has written this."""
        end = time.monotonic() + PATIENCE_S
        while text not in (log := self.log):
            assert time.monotonic() < end, log[-3000:]
            time.sleep(0.1)

    def end(self, code: int) -> None:
        """Wait for its end; the exit code must be ``code``."""
        assert self._client.do(f"end({self._pid})", PATIENCE_S) == code, self.log[-5000:]


def snakemakes(scene: Scene, *nodes: Node) -> list[Remote]:
    """Start a process on each of ``nodes`` that can run workflows."""
    clients = [scene.process(node) for node in nodes]
    for client in clients:
        client.tell("from nfs.snakemake_client import *")
    for client in clients:
        client.answer(PATIENCE_S)
    return clients


def words(scene: Scene, command: str) -> list[str]:
    """What a command writes on the server, in the scene's directory."""
    return scene.server.check(["sh", "-c", f"cd {on_server(scene.path(file=''))} && {command}"]).split()


SHARING = """
rule all:
    input: "one.txt", "dir", "a.idx", "b.idx"
rule index:
    output: exclusive("../ref/idx", once=True)
    shell: "mkdir -p ../did; touch ../did/index.$(hostname).$$; sleep 0.5; echo data > {output}"
lock_cache()
rule one:
    input: ancient(shared_read("../ref/idx"))
    output: "one.txt"
    cache: True
    shell: "touch ../did/one.$(hostname).$$; sleep 0.5; cp {input} {output}"
rule directory:
    input: ancient(shared_read("../ref/idx"))
    output: directory("dir")
    cache: True
    shell: "touch ../did/dir.$(hostname).$$; sleep 0.5; mkdir {output}; cp {input} {output}/x"
rule several:
    input: ancient(shared_read("../ref/idx"))
    output: multiext("", "a.idx", "b.idx")
    cache: True
    shell: "touch ../did/several.$(hostname).$$; for f in {output}; do echo $f > $f; sleep 0.3; done"
"""


def test_five_workflows_on_two_clients_build_an_index_and_each_cached_output_once(scene: Scene) -> None:
    one, other = snakemakes(scene, scene.n1, scene.n2)
    one.do(f"[os.makedirs(path) for path in ({scene.path(file='cache')!r}, {scene.path(file='ref')!r})]")
    index = scene.path(file="ref/idx")
    holder = scene.locker(scene.n2, index)
    holder.do("lock.acquire_write()")  # until all have found that there is no index
    workflows = [
        Workflow(scene, client, f"w{number}", SHARING, "--cache")
        for number, client in enumerate([one, other, one, other, one])
    ]
    wait_until_announced(scene, index, 6, PATIENCE_S)
    holder.do("lock.release()")
    for workflow in workflows:
        workflow.end(0)
    assert sorted(name.partition(".")[0] for name in words(scene, "ls did")) == ["dir", "index", "one", "several"]
    assert sum("has nothing to do" in workflow.log for workflow in workflows) == 4
    for workflow in workflows:
        assert other.do(
            f"[open({workflow.directory!r} + name).read() for name in ('/one.txt', '/dir/x', '/b.idx')]"
        ) == [
            "data\n",
            "data\n",
            "b.idx\n",
        ]
    # Each entry is a file or directory of its own: none is nested in another, none is left half made.
    entries = [path for path in words(scene, "find cache -not -path '*.rwlock*'") if path != "cache"]
    assert sum(entry.count("/") == 1 for entry in entries) == 4, entries
    assert [entry.rpartition("/")[2] for entry in entries if entry.count("/") > 1] == ["x"], entries
    assert not scene.announcements(index)


#: One of them never ends by itself; it says when it is at work where the file server has no part in it.
WRITER = """
rule write:
    output: exclusive("../set")
    shell:
        "echo $EPOCHREALTIME > began; for i in 1 2 3; do echo {version} >> {output}; done; "
        "if [ {version} = half ]; then while :; do echo $EPOCHREALTIME >> /tmp/ticks; sleep 0.1; done; fi; "
        "for i in 4 5; do echo {version} >> {output}; done"
"""
READER = """
rule read:
    input: ancient(shared_read("../set"))
    output: "read"
    shell: "cp {input} {output}"
"""


@pytest.mark.parametrize("fault", ["network", "power"])
def test_who_waits_goes_on_after_the_lease_of_a_lost_client_and_reads_nothing_half_written(
    scene: Scene, fault: str
) -> None:
    lost, other = snakemakes(scene, scene.n1, scene.n2)
    path = scene.path(file="set")
    other.do(f"open({path!r}, 'w').write('old\\n' * 5)")
    writer = Workflow(scene, lost, "half", WRITER.replace("{version}", "half"), "-F")
    wait_until_announced(scene, path, 1, PATIENCE_S)
    reader = Workflow(scene, other, "reader", READER)
    next_writer = Workflow(scene, other, "whole", WRITER.replace("{version}", "whole"), "-F")
    reader.wait_for("waits to read")
    next_writer.wait_for("waits to write")
    # Half of it is there, beside its place.
    wait_until(lambda: len(words(scene, "cat .set.nfsrwlock/*/set || true")) == 3, PATIENCE_S)
    (scene.n1.cut if fault == "network" else scene.n1.kill)()
    asked = time.time()
    reader.end(0)
    next_writer.end(0)
    (began,) = map(float, words(scene, "cat whole/began"))
    took = began - scene.n2.clock()[0] - asked
    print(f"{fault}: the next job began after {took:.2f} s with a lease of {LEASE_S:.0f} s")
    assert LEASE_S * 0.6 < took < LEASE_S + BOUND_S
    assert words(scene, "cat reader/read") in (["old"] * 5, ["whole"] * 5)
    assert words(scene, "cat set") == ["whole"] * 5
    if fault == "power":
        assert "removing what an earlier run left unfinished" in next_writer.log
        return
    last_tick = max(map(float, scene.n1.check(["cat", "/tmp/ticks"]).split()))
    assert last_tick - scene.n1.clock()[0] < began - scene.n2.clock()[0], "it was stopped before another one began"
    scene.n1.heal()
    writer.end(1)
    assert "was stopped and its result is void: The lock on" in writer.log
    assert "was lost" in writer.log
    assert words(scene, "cat set") == ["whole"] * 5
    assert not scene.announcements(path)
    assert words(scene, "ls -d .*.nfsrwlock || true") == []
