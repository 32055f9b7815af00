from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import pytest

import autocompress

HEAVY = ("torch", "transformers", "optuna", "mlflow", "ray", "datasets", "scipy", "numpy")


def _run(program: str) -> str:
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_imports_nothing_heavy():
    program = f"import sys, autocompress\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    assert _run(program) == "[]"


def test_methods_are_imported_from_one_place_and_by_need():
    program = (
        f"import sys, autocompress.methods\nprint([n for n in {HEAVY!r} if n in sys.modules])\n"
        "from autocompress.methods import Svd, Plan\nprint(Svd(3), autocompress.Plan is Plan)"
    )
    assert _run(program).splitlines() == ["[]", "svd r3 True"]


def test_no_package_has_the_name_of_a_public_function():
    packages = {package.name for package in pkgutil.iter_modules(autocompress.__path__)}
    assert not packages & set(autocompress.__all__)


@pytest.mark.parametrize("name", autocompress.__all__)
def test_every_public_name_resolves(name):
    value = getattr(autocompress, name)
    assert name in dir(autocompress)
    if name != "__version__":
        assert callable(value)


def test_all_names_what_a_user_needs():
    commands = {"attribute", "compress", "evaluate", "export", "front", "heal", "profile", "search"}
    others = {"LatentCache", "Plan", "__version__", "compress_layer", "load", "lora_config"}
    others |= {"predict_plan"}
    assert set(autocompress.__all__) == commands | others


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="serach"):
        autocompress.serach  # noqa: B018


def test_the_words_of_the_command_line_are_those_of_the_function():
    from autocompress.api.functions import search
    from autocompress.cli.search import search as command

    words = set(inspect.signature(search).parameters) - {"texts", "progress"}
    assert words == set(inspect.signature(command).parameters) - {
        "ctx",
        "as_json",
        "dry_run",
        "cache_limit",
    }


def test_the_words_of_evaluate_are_those_of_the_function():
    from autocompress.api.evaluating import evaluate
    from autocompress.cli.evaluate import evaluate as command

    words = set(inspect.signature(evaluate).parameters) - {"progress"}
    assert words == set(inspect.signature(command).parameters) - {"as_json", "tracking_uri"}


def test_what_compress_takes_beyond_the_command_line_is_for_models_in_memory():
    from autocompress.api.compressing import compress
    from autocompress.cli.compress import compress as command

    in_memory = {"model", "tokenizer", "inplace", "measure", "texts", "progress"}
    several = {"ctx", "models", "jobs", "skip_existing", "as_json", "cache_limit"}
    words = set(inspect.signature(compress).parameters) - in_memory
    assert words == set(inspect.signature(command).parameters) - several
