"""Importing: all public names, at little cost, and nothing that was not asked for."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import nfsrwlock
import nfsrwlock_core
from nfsrwlock_core import singletons

ENGINE = Path(nfsrwlock_core.__file__).parent
ROOT = Path(__file__).parents[2]


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60)


def printed(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_gives_all_public_names_of_the_engine() -> None:
    assert set(nfsrwlock_core.__all__) <= set(nfsrwlock.__all__)
    for name in nfsrwlock_core.__all__:
        assert getattr(nfsrwlock, name) is getattr(nfsrwlock_core, name)
        assert name in dir(nfsrwlock)
        assert name in dir(nfsrwlock_core)
    assert set(dir(nfsrwlock)) == set(nfsrwlock.__all__)
    assert set(dir(nfsrwlock_core)) == set(nfsrwlock_core.__all__)
    assert isinstance(nfsrwlock.__version__, str)


def test_what_a_program_needs_is_public() -> None:
    assert set(nfsrwlock.__all__) >= {
        *("SoftReadWriteLock", "AsyncSoftReadWriteLock", "LockSet", "inspect", "break_lock"),
        *("LockError", "Timeout", "LockLostError", "LeaseExpiredError", "LockNotHeldError", "LockPathError"),
        *("LockBusyError", "LeaseCompromise", "HoldStatus", "LockState", "PeerInfo", "WaitInfo"),
    }


@pytest.mark.parametrize("package", ["nfsrwlock", "nfsrwlock_core"])
def test_a_star_import_and_an_import_by_name_work(package: str) -> None:
    assert printed(f"from {package} import *; print(SoftReadWriteLock.__name__)") == "SoftReadWriteLock"
    assert printed(f"import {package}; print({package}.LockSet.__name__)") == "LockSet"
    done = run(f"import {package}; {package}.no_such_name")
    assert "AttributeError" in done.stderr
    assert "no_such_name" in done.stderr


def test_all_errors_are_below_one_base_class() -> None:
    errors = [
        value
        for name in nfsrwlock.__all__
        if isinstance(value := getattr(nfsrwlock, name), type) and issubclass(value, BaseException)
    ]
    assert len(errors) >= 7
    assert all(issubclass(error, nfsrwlock.LockError) for error in errors)


#: Names of the standard library that everybody knows, and the CPU time that importing them takes on the machine for
#: which the rule was made. On a slower one, or one that is busy, the rule is stretched by as much.
YARDSTICK, YARDSTICK_S = "import asyncio, email.message, logging", 0.040


@pytest.mark.alone
@pytest.mark.parametrize("code", ["from nfsrwlock import SoftReadWriteLock", "import nfsrwlock"])
def test_an_import_takes_less_than_fifty_milliseconds(code: str) -> None:
    # Python's own start is taken off. CPU time, not time that passes, and in turns, because the machine may be busy.
    def cpu_seconds(work: str) -> float:
        return float(printed(f"import time; begin = time.process_time(); {work}; print(time.process_time() - begin)"))

    took, yardstick = zip(*((cpu_seconds(code), cpu_seconds(YARDSTICK)) for _ in range(7)), strict=True)
    slowness = max(1.0, statistics.median(yardstick) / YARDSTICK_S)
    print(f"{code}: {statistics.median(took) * 1000:.0f} ms of CPU, on a machine {slowness:.1f} times as slow")
    assert statistics.median(took) < 0.050 * slowness * 1.2


def test_an_import_of_the_package_alone_is_nearly_free() -> None:
    # The command line is a module of this package, and must start quickly.
    loaded = printed("import sys, nfsrwlock; print(*sorted(sys.modules))").split()
    assert not {"filelock", "asyncio", "nfsrwlock_core.lock", "click", "rich"} & set(loaded)


def loaded_by(code: str) -> set[str]:
    """The modules that the interpreter has not loaded by itself."""
    return set(printed(f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)").split())


#: What is slow to load, or reads many files. filelock comes with the first `Timeout` or `LeaseCompromise`.
HEAVY = {"asyncio", "decimal", "filelock", "pathlib", "random", "rich", "dask", "joblib", "snakemake", "subprocess"}


def test_a_lock_for_threads_loads_few_modules() -> None:
    loaded = loaded_by("import nfsrwlock; nfsrwlock.SoftReadWriteLock")
    assert not (HEAVY | {"click"}) & loaded
    assert len(loaded) <= 115


def test_a_command_under_a_free_lock_loads_few_modules(tmp_path: Path) -> None:
    # Where the environment lies on NFS, each module is several round trips.
    arguments = ["run", "--read", str(tmp_path / "data"), "--", "true"]
    loaded = loaded_by(f"from nfsrwlock.cli import main; assert main({arguments}) == 0")
    assert not HEAVY & loaded
    assert "click" in loaded
    assert len(loaded) <= 175


def test_the_heartbeat_helper_loads_neither_filelock_nor_asyncio() -> None:
    code = "import sys, nfsrwlock_core.holding.heartbeat_main; print(*sorted(sys.modules))"
    assert not {"filelock", "asyncio", "nfsrwlock_core.lock"} & set(printed(code).split())


def test_an_import_starts_no_thread_and_makes_no_file(tmp_path: Path) -> None:
    code = "from nfsrwlock import *; import threading; print(threading.active_count())"
    assert printed(f"import os; os.chdir({str(tmp_path)!r}); {code}") == "1"
    assert os.listdir(tmp_path) == []


def test_elsewhere_than_on_posix_the_import_says_why_it_cannot_work() -> None:
    for package in ("nfsrwlock", "nfsrwlock_core"):
        done = run(f"import os; os.name = 'nt'; import {package}")
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("ImportError: nfsrwlock works on POSIX systems only")


def test_the_engine_depends_on_the_standard_library_and_filelock_alone() -> None:
    allowed = {*sys.stdlib_module_names, "filelock", "nfsrwlock_core"}
    for source in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, source.name


def test_imports_obey_the_rules_of_the_architecture() -> None:
    """The contracts in pyproject.toml: layers of the engine, adapters apart, only public names."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_map_names_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.partition("```\n")[2].partition("```")[0]
    named: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        if (entry := re.match(r"( *)([\w./]+)(  |$)", line)) is None:
            continue
        indent, name = len(entry[1]), entry[2]
        above = [(depth, folder) for depth, folder in above if depth < indent]
        path = "".join(folder for _, folder in above) + name
        if name.endswith("/"):
            above.append((indent, name))
        elif name.endswith(".py"):
            named.add(path)
    found = {
        source.relative_to(ROOT).as_posix()
        for source in (ROOT / "src").rglob("*.py")
        if source.name not in ("__init__.py", "__main__.py")
    }
    assert sorted(found - named) == [], "say in docs/architecture.md what these are for"
    assert sorted(named - found) == [], "these are gone"


def test_the_types_are_there_for_type_checkers() -> None:
    assert (ENGINE / "py.typed").exists()
    assert (Path(nfsrwlock.__file__).parent / "py.typed").exists()


def test_type_checkers_see_the_constructor_and_not_what_calls_it() -> None:
    """Pyright takes the type of ``SoftReadWriteLock(...)`` from the metaclass if it finds a ``__call__`` there."""
    assert "__call__" in vars(singletons.OnePerPath)
    tree = ast.parse(Path(singletons.__file__).read_text())
    (metaclass,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "OnePerPath")
    assert "__call__" not in [node.name for node in metaclass.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.peers
@pytest.mark.timeout(400)
def test_pyright_takes_the_typed_consumer_as_mypy_does(tmp_path: Path) -> None:
    checker = tmp_path / "pyright"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", checker, "basedpyright"]
    subprocess.run(install, check=True)
    (tmp_path / "program.py").write_text((ROOT / "tests" / "typed_consumer.py").read_text())
    # An ignore that is not needed is an error, as for mypy: each states a line that is refused.
    (tmp_path / "pyrightconfig.json").write_text(
        '{"include": ["program.py"], "typeCheckingMode": "standard", "enableTypeIgnoreComments": true, '
        '"reportUnnecessaryTypeIgnoreComment": "error"}'
    )
    check = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(checker)}
    ran = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "0 errors" in ran.stdout
