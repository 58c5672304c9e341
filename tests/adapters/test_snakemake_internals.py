"""A Snakemake that is built differently is refused at the import, with the versions that work. So is none at all."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

CHANGES = {
    "the hook takes other arguments": (
        "import snakemake.executors.local as m; m.Executor.cached_or_run = lambda self, job, run_func, cache, *args: 0",
        "takes ['self', 'job', 'run_func', 'cache', 'args']",
    ),
    "jobs are run past the hook": (
        "import snakemake.executors.local as m; m.Executor.run_single_job = lambda self, job: self.spawn_job(job)",
        "does not call cached_or_run",
    ),
    "outputs are removed elsewhere": (
        "from snakemake.jobs import Job\nJob.prepare = lambda self: self.remove_outputs()",
        "does not call remove_existing_output",
    ),
    "a class is gone": ("import snakemake.jobs\ndel snakemake.jobs.Job", "no attribute 'Job'"),
    "shell commands are started otherwise": (
        "import sys, snakemake.shell\nsys.modules['snakemake.shell'].sp = None",
        "does not start processes by subprocess",
    ),
    "a body is new": (
        "import snakemake.executors.local as m; m.Executor.cancel = m.Executor.shutdown",
        "but Snakemake {version} is not as the releases that were tested (9.1.2 to 9.27.1) in Executor.cancel.",
    ),
    "it is too old": ("import snakemake.common\nsnakemake.common.__version__ = '9.0.1'", "it is too old"),
    "it is not there": ("import sys\nsys.modules['snakemake.common'] = None", "install 'nfsrwlock[snakemake]'"),
}
#: Each in a forked process of one that has imported Snakemake, which takes a second.
PROGRAM = """
import os, sys
import snakemake.api, snakemake.shell
for change in {changes!r}:
    sys.stdout.flush()
    if os.fork() == 0:
        for name in [name for name in sys.modules if name.partition(".")[0] == "nfsrwlock"]:
            del sys.modules[name]
        exec(change)
        from snakemake.logging import logger
        logger.warning = lambda text: print("imported, but", text.removeprefix("nfsrwlock: "), end=" ")
        try:
            import nfsrwlock.snakemake
            print("imported")
        except ImportError as error:
            print(str(error).replace(chr(10), " "))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    program = PROGRAM.format(changes=["", *(change for change, _ in CHANGES.values())])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CHANGES) + 1, done.stdout
    assert lines[0] == "imported"
    return dict(zip(CHANGES, lines[1:], strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_a_snakemake_that_is_built_differently_is_refused(answers: dict[str, str], name: str) -> None:
    assert CHANGES[name][1].replace("{version}", version("snakemake")) in answers[name]
    if name not in ("it is not there", "a body is new"):
        assert "It works with Snakemake 9.1.2 to 9.27.1" in answers[name]
