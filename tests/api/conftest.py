"""One search of half the bundled model, shared by the tests of what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import autocompress
from autocompress.studies.study import StudyRecord
from tests.api.searches import TRIALS, write_inputs
from tests.api.tiny_compression import FEW, SPACE, token_ids


@pytest.fixture(scope="package")
def workplace(tmp_path_factory):
    """A folder with a text, a space, and runs that share one cache."""
    folder = tmp_path_factory.mktemp("workplace")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="package")
def search(workplace) -> Callable[..., StudyRecord]:
    """Search in the workplace; arguments replace its settings."""

    def run(**arguments: Any) -> StudyRecord:
        defaults = write_inputs(workplace) | {
            "budget": "8x",
            "trials": TRIALS,
            "runs_dir": workplace / "runs",
            "track": False,
        }
        return autocompress.search(**defaults | arguments)

    return run


@pytest.fixture(scope="package")
def record(search) -> StudyRecord:
    """A finished search."""
    return search(study="first")


@pytest.fixture
def run(tmp_path):
    """Compress with few tokens and options, keeping the cache of the test."""
    (tmp_path / "tiny.yaml").write_text(SPACE)

    def compress(model, *arguments, **options):
        defaults = {
            "calibration_data": token_ids(1),
            "report_data": token_ids(2),
            **FEW,
            "runs_dir": tmp_path / "runs",
        }
        recipe = arguments[0] if arguments else options.get("recipe")
        own = recipe.get("budget") if isinstance(recipe, dict) else None
        if recipe is None or own or options.get("budget"):
            defaults["space"] = str(tmp_path / "tiny.yaml")
        return autocompress.compress(model, *arguments, **defaults | options)

    return compress
