"""
Every snippet of the README and the documentation runs as printed.

The blocks of a page are carried out in order, in one directory, as a reader would who copies them
(`page_runner.py` tells how): Python in one namespace that is empty at first, shell commands in one shell, and what a
command is shown to print must be printed. Paths such as `/nfs/…` lie in the test's directory. What only a reader's own
project has at hand (`align`, `./rebuild.sh`, a reference) stands in `bin/` and beside it; see :func:`_lay_out`.

An HTML comment above a block says what Markdown has no word for: `<!-- run: in another terminal -->`. The words:

- `file NAME`, `append to NAME`: the block is what the reader writes into this file;
- `in another terminal`; with `until Ctrl-C`, and `shows "TEXT"` for what must be seen there first;
- `exit N`: how its last command ends; `raises NAME`: the exception that a Python block ends with;
- `needs MODULE`: the block is run where Python can import that, which the lock files do not name;
- `elsewhere, REASON`: it needs what no test of this kind has (root, a second host), so only its syntax is checked.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import nfsrwlock
from actors import PATIENCE_S

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("page_runner.py")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
PAGES = [page for page in PAGES if "_build" not in page.parts]
#: What `make test-recipes` runs, in an environment of its own.
RECIPES = [ROOT / "docs" / "recipes" / name for name in ("libraries.md", "engines.md")]

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- run: (?P<how>[^\n]*?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>[a-z]+)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
#: What no snippet carries out: it installs packages, is a make target, or puts a workflow on a cluster.
_CHECKED_OTHERWISE = re.compile(r"(?:sudo )?(?:pip|make|conda|git) |\. ")


def blocks(page: Path) -> list[dict[str, Any]]:
    """The code blocks of *page*: `line`, `language`, `text`, and `how` to run it."""
    text = page.read_text()
    return [
        {
            "line": text.count("\n", 0, match.start("language")) + 1,
            "language": match["language"],
            "text": textwrap.dedent(match["text"]),
            "how": match["how"] or "",
        }
        for match in _BLOCK.finditer(text)
    ]


def commands(block: dict[str, Any]) -> list[dict[str, Any]]:
    """The commands of a console block, each with what it is `shown` to print."""
    found: list[dict[str, Any]] = []
    lines = iter(enumerate(block["text"].splitlines(), block["line"] + 1))
    for line, text in lines:
        if text.startswith("$ "):
            command = text[2:]
            while command.endswith("\\"):
                command += "\n" + next(lines)[1]
            found.append({"line": line, "text": command, "shown": ""})
        elif found:  # else another test says so
            found[-1]["shown"] += text + "\n"
    return found


def steps(page: Path, directory: Path) -> list[dict[str, Any]]:
    """What the runner has to do for *page* in *directory*."""
    found: list[dict[str, Any]] = []
    for block in blocks(page):
        how = block["how"]
        if block["language"] not in ("python", "console", "bash") and not how.startswith(("file", "append")):
            continue
        needs = re.search(r"needs (\w+)", how)
        if how.startswith("elsewhere") or (needs and find_spec(needs[1]) is None):
            continue
        block["text"] = re.sub(r"(?<![\w./-])/(nfs|shared|data|tmp|work)\b", rf"{directory}/\1", block["text"])
        if written := re.match(r"(file|append to) ([^\s,]+)", how):
            found.append({"kind": "file", "name": written[2], "append": written[1] != "file", **block})
        elif block["language"] == "python":
            raises = re.search(r"raises (\w+)", how)
            found.append({"kind": "python", "raises": raises[1] if raises else None, **block})
        else:
            code, shows = re.search(r"exit (\d+)", how), re.search(r'shows "([^"]*)"', how)
            given = commands(block) if block["language"] == "console" else [{**block, "shown": ""}]
            if block["text"].startswith("#!"):
                given[0]["text"] = f"bash -c {shlex.quote(block['text'])}"  # a script, not what is typed into a shell
            found.append(
                {
                    "kind": "shell",
                    "elsewhere": "in another terminal" in how,
                    "ctrl_c": "until Ctrl-C" in how,
                    "shows": shows[1] if shows else "",
                    "code": int(code[1]) if code else 0,
                    "commands": [command for command in given if not _CHECKED_OTHERWISE.match(command["text"])],
                    "line": block["line"],
                    "text": block["text"],
                }
            )
    return [step for step in found if step.get("commands", True)]


def _lay_out(directory: Path) -> None:
    """Make what a page takes for granted: a reference and other data, and the reader's own programs."""
    for name in (
        "nfs",
        "nfs/ref",
        "nfs/in",
        "nfs/out",
        "shared",
        "shared/ref",
        "shared/conda",
        "shared/project",
        "data/genomes",
        "tmp",
        "bin",
    ):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name in ("examples", "tools"):
        (directory / name).symlink_to(ROOT / name)
    genome = ">chr1\n" + "ACGTTGCA" * 20 + "\n"
    for name in (
        "reference.fa",
        "nfs/ref/genome.fa",
        "shared/reference.fa",
        "shared/ref/genome.fa",
        "data/genomes/hg38.fa",
    ):
        (directory / name).write_text(genome)
    for name in ("sample.fq", "a.fq", "b.fq", "input.tsv", "table.tsv"):
        (directory / name).write_text("@1\nACGT\n+\nIIII\n")
    with nfsrwlock.SoftReadWriteLock(directory / "reference.fa").read_lock():
        pass  # so that it has a lock
    # A sleep of an example is as long as it says, but at most 5 s, or ends when its page goes on.
    sleep = textwrap.dedent(f"""\
        #!/bin/sh
        for tenth in $(seq "$(( ${{1%.*}} > 50 ? 500 : ${{1%.*}} * 10 ))"); do
            [ -e {directory}/.awake ] && [ "$tenth" -gt 50 ] && break
            /bin/sleep 0.1
        done
        """)
    programs = {
        "bin/sleep": sleep,
        "bin/align": "#!/bin/sh\necho aligned\n",
        "bin/minimap2": '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -d ] && echo index > "$2"; shift; done\n',
        "bin/srun": '#!/bin/sh\nexec "$@"\n',
        "bin/scontrol": "#!/bin/sh\n",
        "align.sh": '#!/bin/sh\n[ -z "$2" ] || echo aligned > "$2"\n',
        "rebuild.sh": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)


def run(page: Path, directory: Path, patience: float = 3 * PATIENCE_S) -> None:
    """Carry out the snippets of *page*, which may take *patience* seconds."""
    _lay_out(directory)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NFSRWLOCK_", "COLUMNS"))}
    environment |= {
        "PATH": f"{directory / 'bin'}:{Path(sys.executable).parent}:{environment['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(RUNNER), str(page)],
        input=json.dumps(steps(page, directory)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=environment,
        text=True,
        timeout=patience,
    )
    if ran.returncode != 0:
        pytest.fail(ran.stdout, pytrace=False)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if p not in RECIPES and steps(p, Path("/"))], ids=_name)
def test_the_snippets_of_a_page_run_as_printed(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_copy_button_takes_commands_and_nothing_else(page: Path) -> None:
    for block in blocks(page):
        if block["language"] == "console":
            assert block["text"].startswith("$ "), block
            assert not re.search(r"^\w*[#>] |^\w+\$ ", block["text"], re.MULTILINE), block  # other prompts
        elif block["language"] in ("bash", "python"):
            assert not re.search(r"^(?:\$|>>>) ", block["text"], re.MULTILINE), block
        else:
            assert block["language"] in ("text", "yaml", "json", "toml", "groovy", "ini"), block


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_is_not_run_is_checked_otherwise(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page):
        if block["language"] == "python" and "Snakefile" not in block["how"]:
            ast.parse(block["text"])
        elif block["language"] == "json":
            json.loads(block["text"])
        elif block["language"] == "bash":
            subprocess.run(["bash", "-n"], input=block["text"], text=True, check=True)
        elif block["language"] == "yaml":
            import yaml

            assert yaml.safe_load(block["text"]), block
        for command in commands(block) if block["language"] == "console" else []:
            words = [word for word in shlex.split(command["text"], comments=True) if word != "sudo"]
            if words[0] == "make":
                for word in words[1:]:
                    name, is_variable, _ = word.partition("=")
                    assert name in (variables if is_variable else targets), command
            elif words[:2] == ["pip", "install"]:
                for word in (word for word in words[2:] if word not in (".", "-e")):
                    requirement = Requirement(word)
                    if requirement.name == project["name"]:
                        assert requirement.extras <= project["optional-dependencies"].keys(), command
