"""The lock files say what `make` installs; they must hold all that pyproject.toml asks for, each by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def locked(lock: Path) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line.partition("--hash")[0])
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def group(name: str) -> list[str]:
    members: list[Any] = PYPROJECT["dependency-groups"][name]
    return [r for m in members for r in ([m] if isinstance(m, str) else group(m["include-group"]))]


def extras() -> list[str]:
    return [r for group in PYPROJECT["project"]["optional-dependencies"].values() for r in group]


def wanted(lock: str) -> list[str]:
    own = PYPROJECT["project"]["dependencies"]
    if lock == "runtime":
        return own
    if lock == "zarr2":
        return [*own, *PYPROJECT["project"]["optional-dependencies"]["dask"], *group(lock)]
    if lock == "recipes":
        return [*own, *group(lock)]
    return [*own, *extras(), *group("dev")] if lock in ("dev", "oldest") else group(lock)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_file_holds_what_pyproject_asks_for(lock: Path) -> None:
    releases = locked(lock)
    for requirement in map(Requirement, wanted(lock.stem)):
        if requirement.name == PYPROJECT["project"]["name"]:
            continue  # an extra of extras
        for release in releases[canonicalize_name(requirement.name)]:
            (specifier,) = release.specifier
            assert requirement.specifier.contains(Version(specifier.version), prereleases=True), (requirement, release)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_file_pins_each_package_by_hash_and_names_no_place_to_get_it_from(lock: Path) -> None:
    lines = [line for line in lock.read_text().replace("\\\n", " ").splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
        assert "://" not in line


def test_the_oldest_releases_are_the_ones_that_pyproject_allows() -> None:
    releases = locked(ROOT / "requirements" / "oldest.txt")
    for requirement in map(Requirement, [*PYPROJECT["project"]["dependencies"], *extras()]):
        lowest = [s.version for s in requirement.specifier if s.operator == ">="]
        for release in releases.get(canonicalize_name(requirement.name), []) if lowest else []:
            (specifier,) = release.specifier
            assert Version(specifier.version) == Version(lowest[0])
