"""Every kind of rule, on local cores and on a cluster: the right locks are held while the job runs, and only then."""

from __future__ import annotations

import pytest

from adapters.snakemake_kinds import EXPECTED, assert_all_was_locked, holders, set_up
from adapters.snakemake_scene import LONG, Scene, scene

__all__ = ["scene"]

pytestmark = LONG


@pytest.fixture
def workflow(scene: Scene) -> Scene:
    set_up(scene, local=", pour, drink")
    return scene


def test_each_kind_of_rule_holds_its_locks_on_local_cores(workflow: Scene) -> None:
    run = workflow.start("--cores", "4").end(0)
    who = assert_all_was_locked(workflow)
    # All were held by Snakemake's own process, but for the `run:` block, which has one of its own.
    assert run.process.pid in {pid for _, pid in who}
    assert len(who) == 2
    # Nothing is made again because of the flags; not because of their removal either.
    assert "Nothing to be done" in workflow.run()
    for name in ("Snakefile",):
        text = workflow.read(name).replace("lock_cache, shared_read", "lock_cache")
        text = text.replace("import exclusive,", "import exclusive as _e,").replace(
            "see =", "exclusive = lambda x: x\nshared_read = lambda x, lock=None: x\nsee ="
        )
        workflow.write(name, text)
    assert "Nothing to be done" in workflow.run()


def test_each_kind_of_rule_holds_its_locks_where_a_cluster_runs_it(workflow: Scene) -> None:
    # As a batch system does it: the submission returns at once, and the job is nobody's child.
    workflow.write("submit", 'setsid nohup sh "$1" > job.$$.log 2>&1 < /dev/null &\necho $$\n')
    run = workflow.start(
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit", "--jobs", "3"),
        *("--seconds-between-status-checks", "1", "--latency-wait", "20"),
    ).end(0)
    who = assert_all_was_locked(workflow)
    assert len(who) >= 9, "each job's lock is held by the process that runs it"
    for name in set(EXPECTED) - {"pour", "drink"}:  # these two run locally
        assert run.process.pid not in {pid for _, pid in holders(workflow, name, "write")}, name
