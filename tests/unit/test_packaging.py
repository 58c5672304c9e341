"""What PyPI, Snakemake's plugin catalogue and conda are given: links that work there, and the same facts everywhere."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import nfsrwlock

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]
SCHEDULER = ROOT / "packaging" / "snakemake-scheduler-plugin-nfsrwlock"
STORAGE = ROOT / "packaging" / "snakemake-storage-plugin-nfsrwlock"


def project(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    return found


def long_description() -> str:
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core.readme


def test_each_link_of_the_long_description_is_absolute_and_leads_to_a_file_of_the_repository() -> None:
    source = project(ROOT)["urls"]["Source"]
    links = re.findall(r"\]\(([^)\s]+)\)", long_description())
    assert len(links) > 20
    for link in links:
        if link.startswith("#"):
            continue
        assert link.startswith("https://"), link
        if match := re.match(
            rf"(?:{re.escape(source)}/blob|https://raw\.githubusercontent\.com/.+?/.+?)/main/(.*)", link
        ):
            assert (ROOT / match[1].partition("#")[0]).is_file(), link


def test_the_picture_of_the_long_description_is_the_file_itself_and_no_page_about_it() -> None:
    assert re.search(r"!\[[^\]]*\]\(https://raw\.githubusercontent\.com/\S+\.svg\)", long_description())


def test_the_newest_entry_of_the_changelog_is_about_this_version() -> None:
    headings = re.findall(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert headings[0][0] == nfsrwlock.__version__


def test_snakemakes_catalogue_finds_the_scheduler_by_the_name_of_a_package_without_files(tmp_path: Path) -> None:
    # What the catalogue does: it takes the packages of PyPI that begin so, installs them, asks Snakemake's registry for
    # the plugin by the rest of the name, and reads docs/intro.md and docs/further.md of the URL named Repository.
    from hatchling.builders.wheel import WheelBuilder
    from packaging.requirements import Requirement
    from snakemake_interface_scheduler_plugins.registry import SchedulerPluginRegistry

    (wheel,) = WheelBuilder(str(SCHEDULER)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert all(".dist-info/" in name for name in archive.namelist())
    about = project(SCHEDULER)
    assert Path(wheel).name.startswith(f"snakemake_scheduler_plugin_nfsrwlock-{nfsrwlock.__version__}-")
    (requirement,) = map(Requirement, about["dependencies"])
    assert (requirement.name, requirement.extras) == ("nfsrwlock", {"snakemake"})
    assert requirement.specifier.contains(nfsrwlock.__version__)
    assert about["urls"]["Repository"] == project(ROOT)["urls"]["Source"]
    plugin = SchedulerPluginRegistry().get_plugin(about["name"].removeprefix("snakemake-scheduler-plugin-"))
    assert plugin.get_settings_info() == []


def test_the_package_of_the_storage_plugin_has_it_and_nothing_else(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder
    from packaging.requirements import Requirement
    from snakemake_interface_storage_plugins.registry import StoragePluginRegistry

    (wheel,) = WheelBuilder(str(STORAGE)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert files == ["snakemake_storage_plugin_nfsrwlock/__init__.py"]
    about = project(STORAGE)
    assert Path(wheel).name.startswith(f"snakemake_storage_plugin_nfsrwlock-{nfsrwlock.__version__}-")
    wanted = {one.name: one.specifier for one in map(Requirement, about["dependencies"])}
    assert wanted["nfsrwlock"].contains(nfsrwlock.__version__)
    plugin = StoragePluginRegistry().get_plugin(about["name"].removeprefix("snakemake-storage-plugin-"))
    assert {setting["name"] for setting in plugin.get_settings_info()} >= {"timeout", "share", "lock_dir"}


@pytest.mark.parametrize("page", ["docs/intro.md", "docs/further.md"])
def test_the_catalogues_pages_stand_alone(page: str) -> None:
    text = (ROOT / page).read_text()
    assert not text.startswith("# ")  # the catalogue has a title already
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert link.startswith("https://"), link
        documentation = project(ROOT)["urls"]["Documentation"] + "/en/latest/"
        if link.startswith(documentation):
            assert (ROOT / "docs" / link.removeprefix(documentation)).with_suffix(".md").is_file(), link


def test_the_conda_recipe_asks_for_what_the_package_asks_for() -> None:
    import yaml
    from packaging.requirements import Requirement

    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == nfsrwlock.__version__
    about = project(ROOT)
    wanted = {str(Requirement(text)) for text in about["dependencies"]} | {f"python{about['requires-python']}"}

    def asked(section: str) -> set[str]:
        texts = (text.replace("-minimal", "").replace("-core", "") for text in recipe["requirements"][section])
        return {str(Requirement(text)) for text in texts if not text.startswith("__")}

    assert asked("run") == wanted
    assert asked("run_constraints") - {"distributed>=2026.7"} <= {
        str(Requirement(text)) for extra in about["optional-dependencies"].values() for text in extra
    }
