"""Every architecture goes the whole road as typed: compress, export, reload, generate."""

from __future__ import annotations

import json
import random

import pytest
import torch

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
  quantize: {bits: [8, 4, 2], group_sizes: [row, 16]}
  svd: {rank_fractions: [0.5, 0.25]}
"""
# What a budget of 3x is refused for, in a paragraph.
REFUSED = {"bart": "the calibration text never reaches"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_times_smaller_reloaded_and_generating(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    ARCHITECTURES[name].save(tmp_path / "my model")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1_500)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    (tmp_path / "space.yaml").write_text(SPACE)

    command = "compress|my model|--budget|3x|--data|text.txt|--space|space.yaml|--out|small|--json"
    code = main(command.split("|"))
    out, error = capfd.readouterr()

    if name in REFUSED:
        assert code == 3
        assert REFUSED[name] in error
        return
    assert code == 0, error
    report = json.loads(out)
    assert report["bytes"] <= report["dense_bytes"] / 3
    model, tokenizer = autocompress.load("small")
    ids = tokenizer("w1 w2 w3 w4", return_tensors="pt", return_token_type_ids=False)["input_ids"]
    generated = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    # With the key-value cache and without it, the same tokens.
    again = ids
    for _ in range(4):
        logits = model(again).logits[:, -1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        again = torch.cat([again, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, again)
