"""The recipes for libraries and engines, which `make test-recipes` runs in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.test_snippets import RECIPES, run


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_the_recipes_of_a_page_run_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # for a machine with much else to do
    run(page, tmp_path)
