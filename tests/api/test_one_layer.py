from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import autocompress
from autocompress.errors import BudgetUnreachable, ConfigurationError, DataError, ModelError
from autocompress.methods import Keep, Quantize, Svd

DENSE = 4 * (48 * 64 + 48)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def _size(layer):
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


@pytest.mark.parametrize(
    "method",
    [
        Svd(16),
        {"method": "svd", "rank": 16},
        "method: svd, rank: 16",
        "{method: svd, rank: 16}",
    ],
)
def test_a_method_is_an_object_or_as_in_a_recipe(method, linear):
    before = linear.weight.detach().clone()
    small = autocompress.compress_layer(linear, method)
    assert small.report.method == Svd(16)
    assert small.report.bytes == _size(small) == 4 * (16 * (64 + 48) + 48)
    assert small.report.dense_bytes == DENSE
    x = torch.randn(2, 3, 64)
    assert_close(small(x), x @ small.to_dense().T + linear.bias, rtol=1e-4, atol=1e-5)
    discarded = torch.linalg.svdvals(before)[16:].square().sum().sqrt() / before.norm()
    assert small.report.error == pytest.approx(float(discarded), rel=1e-4)
    assert "svd r16" in str(small.report)
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize("budget", ["4x", "25%", "3 kB"])
def test_a_budget_is_kept_and_made_use_of(budget, linear):
    limit = 3000 if budget == "3 kB" else DENSE // 4
    small = autocompress.compress_layer(linear, budget=budget)
    assert 0.5 * limit < small.report.bytes <= limit
    assert small.report.bytes == _size(small)
    assert 0 < small.report.error < 0.2


def test_inputs_make_their_own_error_small(linear):
    inputs = torch.randn(4, 50, 8) @ torch.randn(8, 64)  # of 8 of 64 directions
    with torch.no_grad():
        wanted = linear(inputs) - linear.bias
        plain = autocompress.compress_layer(linear, Svd(8))
        fitted = autocompress.compress_layer(linear, Svd(8), inputs=inputs)
        errors = [
            float((each(inputs) - linear.bias - wanted).norm() / wanted.norm())
            for each in (plain, fitted)
        ]
    assert errors[1] < 0.05 < errors[0]
    assert fitted.report.error == pytest.approx(errors[1], rel=0.05, abs=1e-3)


def test_conv1d_and_embeddings():
    torch.manual_seed(0)
    conv = Conv1D(48, 64)
    small = autocompress.compress_layer(conv, Quantize(8, 16))
    x = torch.randn(3, 64)
    assert_close(small(x), conv(x), rtol=0.05, atol=0.01)
    table = nn.Embedding(96, 32).bfloat16()
    ids = torch.tensor([[1, 2, 2], [3, 2, 1]])
    small = autocompress.compress_layer(table, budget="2x", inputs=ids)
    assert small(ids).dtype == torch.bfloat16
    assert_close(small(ids), table(ids), rtol=0.1, atol=0.1)
    assert small.report.dense_bytes == 2 * 96 * 32


def test_wrong_words_are_refused_with_the_right_ones(linear):
    for words, message in (
        ({}, "one of method= and budget="),
        ({"method": Keep(), "budget": "4x"}, "one of method= and budget="),
        ({"method": "quantize"}, "bits: got nothing"),
        ({"method": "sdv"}, "did you mean svd"),
        ({"method": "method: sdv, rank: 3"}, "did you mean svd"),
        ({"method": {"method": "svd", "rnk": 3}}, "did you mean rank"),
        ({"method": Svd(99)}, "at most 48"),
        ({"budget": "often"}, "--budget"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            autocompress.compress_layer(linear, **words)
    with pytest.raises(DataError, match=r"\[\.\.\., 64\]"):
        autocompress.compress_layer(linear, Svd(3), inputs=torch.ones(3, 48))
    with pytest.raises(DataError, match="token ids"):
        autocompress.compress_layer(nn.Embedding(96, 32), Svd(3), inputs=torch.ones(3, 32))
    with pytest.raises(ModelError, match="cannot be compressed"):
        autocompress.compress_layer(nn.Conv2d(8, 8, 3), Svd(3))
    with pytest.raises(BudgetUnreachable, match="at least"):
        autocompress.compress_layer(linear, budget="500x")
