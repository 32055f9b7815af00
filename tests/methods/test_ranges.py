"""Matrices beyond the range of fp16 scales are stored like any other, at the same cost."""

from __future__ import annotations

import json
import random

import pytest
import torch

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from autocompress.methods.base import MatrixProblem, stored_tensors
from autocompress.numerics.rounding import scale_type
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY
from tests.methods.examples import EXAMPLES
from tests.methods.matrices import linear_metric, problem_of, spec_of

SHAPE = (40, 48)
SPEC = spec_of(*SHAPE)
METHODS = [choose(SHAPE) for some in EXAMPLES.values() for choose in some]


def relative_error(method, factor):
    problem = problem_of(SPEC, metric=linear_metric(*SHAPE))
    problem = MatrixProblem(SPEC, problem.weight * factor, problem.metric, problem.bias)
    layer = method.build(problem)
    sizes = {name: t.numel() * t.element_size() for name, t in layer.state_dict().items()}
    assert sizes == dict(stored_tensors(method, SPEC))
    change = layer.to_dense()[: SHAPE[0], : SHAPE[1]] - problem.weight
    return float(change.norm() / problem.weight.norm())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_method_depends_on_the_magnitude(method):
    usual = relative_error(method, 1.0)
    for factor in (2.0**30, 2.0**-30):
        assert relative_error(method, factor) <= 1.15 * usual + 1e-3


def test_which_type_scales_have():
    assert scale_type(torch.tensor([0.0, 1e-3])) is torch.float16
    assert scale_type(torch.zeros(3)) is torch.float16
    assert scale_type(torch.tensor([0.0, 1e-3, 7e4])) is torch.bfloat16
    assert scale_type(torch.tensor([0.0, 1e-6, 1e-6, 1.0])) is torch.bfloat16


RECIPE = """\
version: 1
layers:
  model.layers.0.mlp.up_proj: {method: quantize, bits: 8, group_size: 16}
  model.layers.0.mlp.down_proj: {method: quantize, bits: 8, group_size: 16, symmetric: true}
  model.layers.1.mlp.up_proj: {method: trellis, bits: 4}
  model.layers.1.mlp.down_proj: {method: svd, rank: 32, bits: 8}
"""


def test_a_model_with_weights_of_millions(tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    """Up by 1e8 and down again computes the same: so it compresses and loads the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data *= 1e8
        layer.mlp.down_proj.weight.data *= 1e-8
    model.save_pretrained("dense")
    tiny_tokenizer.save_pretrained("dense")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=3_000)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    command = ["compress", "dense", "--recipe", "recipe.yaml", "--data", "text.txt"]
    assert main([*command, "--out", "small"]) == 0
    again, _ = autocompress.load("small")
    assert again.model.layers[0].mlp.up_proj.table.scales.dtype is torch.bfloat16
    facts = json.loads((tmp_path / "small" / "measurements.json").read_text())
    assert facts["verified"]["perplexity"] == pytest.approx(
        facts["measurement"]["perplexity"], rel=1e-4
    )
    again.save_pretrained("again")
    twice = type(again).from_pretrained("again")
    assert twice.model.layers[0].mlp.up_proj.table.scales.dtype is torch.bfloat16
