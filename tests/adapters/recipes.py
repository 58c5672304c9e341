"""The recipes for libraries and engines, which `make test-recipes` runs in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.test_snippets import RECIPES, run


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_the_recipes_of_a_page_run_as_printed(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path, patience=550)  # compilers, and servers of engines
