"""Ranks on the command line: what cannot exist is lowered, with a notice, before torch sees it."""

from __future__ import annotations

import json
import random

import pytest

from autocompress.cli.main import main
from autocompress.deploy import verify
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY, make_tiny_model, make_tiny_tokenizer

RECIPE = """\
version: 1
layers:
  transformer.h.0.mlp.c_fc: {method: svd, rank: 99}
  transformer.h.0.mlp.c_proj:
    {method: tensor_train, ranks: [1, 8], out_modes: [8, 2, 2], in_modes: [2, 2, 32]}
"""
IMPOSSIBLE = """\
version: 1
layers:
  transformer.h.0.mlp.c_proj:
    {method: tensor_train, ranks: [1, 8], out_modes: [8, 2, 2], in_modes: [2, 2, 32]}
"""
TRAINS = """\
version: 1
name: trains
methods:
  keep: true
  tensor_train:
    {orders: [2, 3], splits: [balanced, skewed], rank_fractions: [0.06, 0.12, 0.25], bits: [8]}
rules:
  - {match: {parts: [attention, embedding, other]}, methods: [keep]}
"""
TOLERANCES = """\
version: 1
layers:
  transformer.h.0.mlp.c_fc: {method: svd, tolerance: 0.4}
  transformer.h.0.mlp.c_proj:
    {method: svd, rank: 6, solver: randomised, sketch: hadamard, oversampling: 10, power_steps: 2}
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a GPT-2, whose feed-forward is four times as wide, and a text."""
    folder = tmp_path_factory.mktemp("my models")
    make_tiny_model("gpt2").save_pretrained(folder / "my gpt2")
    make_tiny_tokenizer().save_pretrained(folder / "my gpt2")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1_200)
    (folder / "my text.txt").write_text(" ".join(f"w{word}" for word in words))
    (folder / "my recipe.yaml").write_text(RECIPE)
    (folder / "impossible.yaml").write_text(IMPOSSIBLE)
    (folder / "trains.yaml").write_text(TRAINS)
    (folder / "my tolerances.yaml").write_text(TOLERANCES)
    return folder


@pytest.fixture
def compress(gpt2, tmp_path, monkeypatch, capsys):
    """Type ``autocompress compress`` in the folder, and read what it says."""
    monkeypatch.chdir(gpt2)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)

    def run(*options):
        command = ["compress", "my gpt2", *options, "--data", "my text.txt", "--json"]
        assert main([*command, "--out", str(tmp_path / "small")]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return run


def test_trains_of_low_rank_only_compress_a_gpt2(compress):
    space = ["--space", "low_rank_only", "--methods", "tensor_train", "--layers", "*.0.mlp.c_proj"]
    facts, _ = compress("--budget", "1.08x", *space)
    plan = Plan.from_recipe(facts["recipe"])
    assert facts["ratio"] >= 1.08
    changed = {name: method.name for name, method in plan.items() if method != Keep()}
    assert changed == {"transformer.h.0.mlp.c_proj": "tensor_train"}


def test_every_train_of_a_space_can_be_made_of_feed_forwards(compress, capsys):
    """Four times as wide as the model, and the other way round."""
    options = ["--data", "my text.txt", "--space", "trains.yaml", "--json"]
    assert main(["profile", "my gpt2", *options]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    trains = [
        layer["name"]
        for layer in layers
        for option in layer["options"]
        if option["method"] == "tensor_train"
    ]
    assert set(trains) == {
        f"transformer.h.{i}.mlp.{name}" for i in (0, 1) for name in ("c_fc", "c_proj")
    }


def test_validate_says_which_ranks_of_a_recipe_cannot_exist(compress, capsys):
    assert main(["validate", "impossible.yaml", "--model", "my gpt2"]) == 0
    said = "ranks of tt 8x2x2 r1,8 do not fit, used tt 8x2x2 r1,4"
    assert said in capsys.readouterr().err


def test_ranks_of_a_recipe_that_cannot_exist_are_lowered_with_a_notice(compress, capsys):
    facts, err = compress("--recipe", "my recipe.yaml")
    layers = facts["recipe"]["layers"]
    assert layers["transformer.h.0.mlp.c_fc"]["rank"] == 32
    assert layers["transformer.h.0.mlp.c_proj"]["ranks"] == [1, 4]
    assert "rank of svd r99 does not fit, used svd r32" in err
    assert main(["validate", "my recipe.yaml"]) == 0  # without a model: what its modes rule out
    assert "ranks of tt 8x2x2 r1,8 do not fit, used tt 8x2x2 r1,4" in capsys.readouterr().err


def test_a_recipe_says_a_tolerance_and_how_factors_are_found(compress):
    facts, err = compress("--recipe", "my tolerances.yaml")
    found, drawn = facts["recipe"]["layers"].values()
    assert 1 < found["rank"] < 32
    assert "tolerance" not in found
    assert f"layer transformer.h.0.mlp.c_fc: svd within 0.4 is svd r{found['rank']}" in err
    assert drawn == {
        "method": "svd",
        "rank": 6,
        "metric": "two_sided",
        "bits": 0,
        "gram": "full",
        "solver": "randomised",
        "sketch": "hadamard",
        "oversampling": 10,
        "power_steps": 2,
    }
