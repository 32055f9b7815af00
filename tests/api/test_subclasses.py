"""Architectures whose layers are subclasses are compressed like others, as the command is typed."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

import autocompress
from autocompress.cli.main import main
from autocompress.export import verify
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


@pytest.mark.parametrize("name", ["falcon", "gemma2", "llama4"])
def test_four_times_smaller_and_reloaded_exactly(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    ARCHITECTURES[name].save(tmp_path / name)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1_500)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    (tmp_path / "space.yaml").write_text(SPACE)
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
