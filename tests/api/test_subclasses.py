"""Architectures whose layers are subclasses are compressed like others, as the command is typed."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from tests.api.verifying import score_here
from tests.architectures import ARCHITECTURES
from tests.conftest import VOCABULARY

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 2], group_sizes: [row]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of one's own with a text and a space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1_500)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.mark.parametrize("name", ["falcon", "gemma2", "llama4"])
def test_four_times_smaller_and_reloaded_exactly(name, place, capfd):
    ARCHITECTURES[name].save(place / name)
    command = ["compress", name, "--budget", "4x", "--data", "text.txt", "--space", "space.yaml"]
    assert main([*command, "--out", "small", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["bytes"] <= report["dense_bytes"] / 4
    ids = torch.arange(3, 20)[None]
    model, same = autocompress.compress(
        name, "small/recipe.yaml", measure=False, data="text.txt", runs_dir="runs"
    )
    assert same.bytes == report["bytes"]
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(autocompress.load("small")[0](ids).logits, expected)
        model.save_pretrained("again")
        again = AutoModelForCausalLM.from_pretrained("again")
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize(
    "command", [["compress", "opt", "--out", "x"], ["search", "--model", "opt"]]
)
def test_a_subclass_that_computes_something_else_is_said_before_the_work(command, place, capfd):
    """OPT's table of positions adds 2 to what it looks up: a tenth of the tiny model."""
    ARCHITECTURES["opt"].save(place / "opt")
    options = ["--data", "text.txt", "--space", "space.yaml", "--budget", "100x"]
    assert main([*command, *options]) == 3
    said = capfd.readouterr().err
    assert "which no method can take: 1 matrix of" in said
    assert "OPTLearnedPositionalEmbedding is a subclass of Embedding that computes" in said
    assert "Calibrating (tokens)" not in said.partition("Left dense: ")[0]
