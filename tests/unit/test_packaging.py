"""What PyPI shows of the package: the README, with links that work there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]


def long_description() -> str:
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core.readme


def test_each_link_of_the_long_description_is_absolute_and_leads_to_a_file_of_the_repository() -> None:
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
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
