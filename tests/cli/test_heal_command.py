from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from autocompress.api import heal_function
from autocompress.api.exported_folder import OpenedFolder
from autocompress.cli.heal import heal
from autocompress.cli.heal_view import print_healed
from autocompress.driver.healing_report import HealingReport
from autocompress.errors import ConfigurationError
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.records import PERPLEXITY, Measurement
from autocompress.studies.study import Healing
from autocompress.surgery.compressed import Compressed

if TYPE_CHECKING:
    from autocompress.session.session import Session

LAYERS = "version: 1\nlayers:\n  a.mlp.up: {method: svd, rank: 8}\n"
PENALTY = 'penalty: [{layers: "*.mlp.*", kind: renyi, alpha: 0.5, weight: 0.01}]\n'
REST = {"latency_ms": None, "latency_spread_ms": None, "text": "report", "device": "cpu"}
DENSE = Measurement(10.0, math.log(10), 0.0, 1000, 16_000_000, **REST, plan_hash="")
BEFORE = Measurement(12.0, math.log(12), 0.08, 1000, 1_600_000, **REST, plan_hash="")
REPORT = HealingReport(
    "trial 3", Plan(()), DENSE, BEFORE, BEFORE, Healing(300, 10_000, "bundled", {}, ()), PERPLEXITY
)
OPENED = OpenedFolder(Path("small"), cast("Session", None), Compressed(Plan(())))


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the API, which answers without doing anything."""
    calls = {}

    def answer(name, result):
        def take(*arguments, **options):
            calls[name] = arguments, options
            return result

        return take

    monkeypatch.setattr(heal_function, "heal_trial", answer("trial", REPORT))
    monkeypatch.setattr(heal_function, "open_folder", answer("open", OPENED))
    monkeypatch.setattr(heal_function, "heal_folder", answer("folder", REPORT))
    return calls


@pytest.fixture
def folder(tmp_path):
    """What passes for an exported folder."""
    place = tmp_path / "small"
    place.mkdir()
    (place / "config.json").write_text("{}")
    return place


def run(*arguments):
    app = typer.Typer()
    app.command()(heal)
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def printed(after):
    console = Console(width=200, file=io.StringIO())
    print_healed(replace(REPORT, after=replace(BEFORE, **after)), console)
    return console.file.getvalue()


def test_a_study(asked):
    run("llama-10x", "--no-track", "--data", "text.txt")
    (destination, trial, settings), options = asked["trial"]
    assert (destination.study, trial, options["data"]) == ("llama-10x", "best", "text.txt")
    assert settings.penalties == ()
    run("llama-10x", "--no-track", "--trial", "0")
    assert asked["trial"][0][1] == "0"


def test_a_folder(asked, folder, tmp_path):
    out = tmp_path / "healed"
    run(folder, "--out", out, "--device", "cuda:1", "--trust-remote-code", "--model", "dense")
    opened, request = asked["open"][0]
    assert (opened, request.device, request.model) == (folder, "cuda:1", "dense")
    assert request.trust_remote_code
    assert asked["folder"][0][:2] == (OPENED, out)
    assert asked["folder"][0][2].penalties == ()
    assert "trial" not in asked


@pytest.mark.parametrize(
    "arguments",
    [("--trial", "best"), ("--storage", "sqlite:///x"), ("--tracking-uri", "sqlite:///x")],
)
def test_options_of_studies_are_refused_with_a_folder(asked, folder, tmp_path, arguments):
    with pytest.raises(ConfigurationError, match=f"{arguments[0]} does not go with the folder"):
        run(folder, "--out", tmp_path / "healed", *arguments)
    assert asked == {}


@pytest.mark.parametrize(
    "arguments", [("--model", "dense"), ("--device", "cpu"), ("--trust-remote-code",)]
)
def test_options_of_folders_are_refused_with_a_study(asked, arguments):
    with pytest.raises(ConfigurationError, match=f"{arguments[0]} does not go with a study"):
        run("llama-10x", *arguments)
    assert asked == {}


@pytest.mark.parametrize("out", ["small", "small/../small", "."])
def test_a_folder_does_not_replace_itself(asked, folder, out, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigurationError, match="would be replaced by what is made from it"):
        run(folder, "--out", out, "--overwrite")
    assert asked == {}


def test_penalties_come_from_a_recipe_that_has_some(asked, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAYERS)
    with pytest.raises(ConfigurationError, match=r"no penalty: entries.*kind: renyi"):
        run("llama-10x", "--penalty", recipe)
    assert asked == {}
    recipe.write_text(LAYERS + PENALTY)
    run("llama-10x", "--penalty", recipe, "--no-track")
    (penalty,) = asked["trial"][0][2].penalties
    assert (penalty.layers, penalty.kind, penalty.alpha) == ("*.mlp.*", "renyi", 0.5)


def test_a_folder_is_healed_with_the_penalties_of_its_own_recipe(
    asked, folder, tmp_path, monkeypatch
):
    own = Penalty("*.mlp.*", "shannon")
    opened = OPENED._replace(penalties=(own,))
    monkeypatch.setattr(heal_function, "open_folder", lambda *_args, **_options: opened)
    out = ("--out", tmp_path / "healed")
    said = run(folder, *out).output
    assert "asks for a penalty of 0.05 x shannon on *.mlp.*; --penalty none" in " ".join(
        said.split()
    )
    assert asked["folder"][0][2].penalties == (own,)
    run(folder, *out, "--penalty", "none")
    assert asked["folder"][0][2].penalties == ()
    run(folder, *out, "--steps", "0", "--shrink", "0.01")  # nothing is trained
    assert asked["folder"][0][2].penalties == ()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAYERS + PENALTY)
    run(folder, *out, "--penalty", recipe)
    assert asked["folder"][0][2].penalties == (Penalty("*.mlp.*", "renyi", 0.5, 0.01),)


def test_what_healing_gained_is_judged_by_divergence():
    better = printed({"divergence": 0.04, "figure": 12.1, "loss": math.log(12.1)})
    assert "KL went from 0.0800 to 0.0400 (0.50 of it)" in better
    assert "from +0.1823 to +0.1906" in better
    assert "Nothing is gained" not in better
    assert "Nothing is gained" in printed(
        {"divergence": 0.081, "figure": 11.9, "loss": math.log(11.9)}
    )
    assert "Nothing is gained" not in printed({"divergence": 0.081, "bytes": 1_500_000})
