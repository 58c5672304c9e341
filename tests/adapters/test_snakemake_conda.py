"""
Environments in a directory that several workflows share: made under a lock, and what happens without one.

Neither Python's nor Debian's packages have conda, so a program stands in for it that makes a directory in many steps.
What is tested is what Snakemake does around it.
"""

from __future__ import annotations

import subprocess
import sys

from adapters.snakemake_scene import Scene, scene

__all__ = ["scene"]

CONDA = f"""\
#!{sys.executable}
import json, os, sys, time
if sys.argv[1:2] == ["info"]:
    print(json.dumps({{"conda_prefix": "/nowhere", "platform": "linux-64"}}))
elif sys.argv[1:2] == ["config"]:
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif sys.argv[1:] == ["--version"]:
    print("conda 25.1.0")
elif "create" in sys.argv:
    prefix = sys.argv[sys.argv.index("--prefix") + 1]
    open("../made", "a").write("begun\\n")
    os.mkdir(prefix)
    for step in range(10):
        while step == 5 and not os.path.exists("../second"):
            time.sleep(0.05)
        open(f"{{prefix}}/{{step}}", "w").close()
    open("../made", "a").write("done\\n")
"""
WORKFLOW = """
rule x:
    output: "x"
    conda: "env.yaml"
    shell: "true"
"""
CREATE = [
    *("snakemake", "-c1", "--software-deployment-method", "conda"),
    *("--conda-prefix", "../envs", "--conda-create-envs-only"),
]


def make_environments(scene: Scene, *before: str) -> tuple[list[int], list[str], list[str]]:
    """Let two workflows make the same one at once; return exit codes, what was done, what the environment holds."""
    scene.write("bin/conda", CONDA).chmod(0o755)
    scene.write("envs/.keep", "")
    scene.environment["PATH"] = f"{scene.directory}/bin:{scene.environment['PATH']}"
    runs = []
    for name in ("a", "b"):
        scene.write(f"{name}/Snakefile", WORKFLOW)
        scene.write(f"{name}/env.yaml", "dependencies: [x]\n")
        log = (scene.directory / f"{name}/log").open("w")
        runs.append(
            subprocess.Popen(
                [*before, *CREATE], cwd=scene.directory / name, env=scene.environment, stdout=log, stderr=log
            )
        )
        log.close()
        scene.wait_for(lambda: scene.exists("made"))
    # So that the second comes while the first is at it: it waits, or has begun another one.
    scene.wait_for(lambda: "waiting" in scene.read("b/log") or scene.read("made").count("begun") == 2)
    scene.write("second", "")
    codes = [run.wait(scene.patience_s) for run in runs]
    return codes, scene.read("made").split(), sorted(path.name for path in (scene.directory / "envs").glob("*/*"))


def test_an_environment_is_made_once_under_a_lock_and_is_whole(scene: Scene) -> None:
    lock = [sys.executable, "-m", "nfsrwlock", "run", "--write", "../envs", "--"]
    codes, made, files = make_environments(scene, *lock)
    logs = [scene.read(f"{name}/log") for name in ("a", "b")]
    assert codes == [0, 0], logs
    assert made == ["begun", "done"]
    assert files == [str(step) for step in range(10)]
    assert len(list((scene.directory / "envs").glob("*.env_setup_done"))) == 1
    assert "Removing incomplete" not in logs[1]
    assert "waiting" in logs[1]


def test_that_test_fails_without_the_lock(scene: Scene) -> None:
    _, made, _ = make_environments(scene)
    assert made.count("begun") == 2
    assert "Removing incomplete Conda environment" in scene.read("b/log")
