"""What all tests need, those on Slurm and on NFS as well: signals that arrive, here and in all that is started here."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from actors import Stage

# In the background of a script, or below nohup, some signals are ignored, and in all that is started there.
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is imported and collected stays to the end. To look through it for garbage takes a fifth of the time of the
# collection, and some more whenever tests leave garbage.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mix the suites, a module at a time: some compute and others wait, so processes that have both end sooner."""
    suites: dict[Path, list[pytest.Item]] = {}
    for item in items:
        suites.setdefault(item.path.parent, []).append(item)
    places: dict[Path, float] = {}
    for suite in suites.values():
        for number, item in enumerate(suite):
            places.setdefault(item.path, number / len(suite))
    items.sort(key=lambda item: places[item.path])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What is locked; nothing is there."""
    return tmp_path / "data"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Where other processes are started; they end with the test."""
    with Stage(tmp_path) as stage:
        yield stage
