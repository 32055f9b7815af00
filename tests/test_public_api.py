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
    others |= {"predict_plan", "Study"} | {f"{name.capitalize()}Request" for name in VERBS}
    others |= {"Cp", "Keep", "Quantize", "QuantizePlusLowRank", "Sparse", "Svd"}
    others |= {"TensorTrain", "Trellis", "Tucker"}
    assert set(autocompress.__all__) == commands | others


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="serach"):
        autocompress.serach  # noqa: B018


VERBS = {
    "attribute": {"as_json"},
    "compress": {"models", "out", "jobs", "skip_existing", "as_json", "cache_limit"},
    "evaluate": {"as_json", "tracking_uri"},
    "export": {"as_json"},
    "heal": {"as_json"},
    "profile": {"as_json", "cache_limit", "html"},
    "search": {"as_json", "dry_run", "cache_limit"},
}


@pytest.mark.parametrize("name", VERBS)
def test_the_words_of_the_command_line_are_those_of_the_function(name):
    from autocompress.cli import main

    (command,) = (each for each in main.COMMANDS if each.__name__ == name)
    function = getattr(autocompress, name)
    typed = set(inspect.signature(command).parameters) - {"ctx"}
    words = set(inspect.signature(function).parameters)
    in_memory = {"model", "tokenizer", "inplace", "measure", "out"} if name == "compress" else set()
    assert typed - VERBS[name] == words - {"progress", "penalties"} - in_memory
    documented = inspect.getdoc(function).partition("Args:\n")[2]
    assert all(f"    {word}: " in documented for word in words)
