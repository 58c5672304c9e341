"""Every kind of rule, on Slurm: the job holds its locks on the node where it runs, while it runs, and only then."""

from __future__ import annotations

from adapters.snakemake_kinds import EXPECTED, assert_all_was_locked, holders, set_up
from slurm.scene import SlurmScene


def test_each_kind_of_rule_holds_its_locks_on_its_node(scene: SlurmScene) -> None:
    set_up(scene)
    scene.start().end(0)
    who = assert_all_was_locked(scene)
    assert {host for host, _ in who} == {"node1", "node2"}
    at_once = ("group_2", "drink", "benchmark_1", "retried_2")  # each runs where another one has run
    assert len(who) == len(EXPECTED) - len(at_once), "each job's lock is held by the process that runs it"
    for name in set(EXPECTED) - {"pour"}:  # which writes to a pipe
        (writer,) = holders(scene, name, "write")
        assert writer in holders(scene, name, "read"), f"{name}: one process holds them all"
