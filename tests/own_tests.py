"""What it takes to run another project's own tests on this project's classes."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import pytest

#: Arguments of pytest: none of this project's settings and plugins.
PLAIN = ["-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout"]


class Coroutines:
    """Runs tests and fixtures that are coroutines, each in a loop of its own, instead of a plugin."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> object:
        if not inspect.iscoroutinefunction(fixturedef.func):
            return None
        names = fixturedef.argnames
        value = asyncio.run(fixturedef.func(**{name: request.getfixturevalue(name) for name in names}))
        fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
        return value


def outcome(script: Path, *arguments: str | Path, cwd: Path, seconds: float) -> tuple[set[str], int, str]:
    """Run ``script``, which is one of those tests' runs: what failed, how many passed, and what it printed."""
    done = subprocess.run(
        [sys.executable, script, *arguments, "-q", "-rfE"], cwd=cwd, capture_output=True, text=True, timeout=seconds
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    return set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)), int(passed[1]), done.stdout


def source(project: str, release: str, to: Path) -> Path:
    """Fetch the source distribution of a release, with what a wheel leaves out, and return where it was unpacked."""
    name = f"{project}-{release}"
    said = subprocess.check_output([sys.executable, "-m", "pip", "index", "versions", project, "-vv"], text=True)
    link = re.search(rf"https://\S+/{re.escape(name)}\.tar\.gz", said)
    assert link is not None, said
    archive, _ = urllib.request.urlretrieve(link[0], to / "source.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    return to / name
