from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autocompress.numerics import metric as metric_module
from autocompress.numerics.metric import Curvature, Metric
from tests.methods.matrices import embedding_metric, gram, linear_metric, matrix


def full(gram_or_diagonal: Tensor) -> Tensor:
    return torch.diag(gram_or_diagonal) if gram_or_diagonal.ndim == 1 else gram_or_diagonal


@settings(max_examples=30, deadline=None)
@given(
    out=st.integers(1, 12),
    into=st.integers(1, 12),
    seed=st.integers(0, 1000),
    diagonal=st.booleans(),
)
def test_loss_increase_is_the_trace(out: int, into: int, seed: int, diagonal: bool) -> None:
    change = torch.randn(out, into, generator=torch.Generator().manual_seed(seed))
    rows, columns = gram(out, seed), gram(into, seed + 1)
    term = Curvature(rows.diagonal() if diagonal else rows, columns)
    other = Curvature(torch.linspace(0.1, 1.0, out), gram(into, seed + 2).diagonal())
    brute = sum(
        0.5 * torch.trace(full(t.rows) @ change @ full(t.columns) @ change.T) for t in (term, other)
    )
    torch.testing.assert_close(
        Metric((term, other)).loss_increase(change), float(brute), rtol=1e-4, atol=1e-6
    )


def test_loss_increase_of_nothing_is_nothing() -> None:
    assert linear_metric(4, 5).loss_increase(torch.zeros(4, 5)) == 0.0
    assert Metric.identity(3, 4).loss_increase(torch.ones(3, 4)) == 6.0


def test_combined_grams_have_the_partial_traces_of_the_sum() -> None:
    metric = embedding_metric(30, 8)
    summed = sum(torch.kron(full(t.rows), full(t.columns)) for t in metric.terms)
    one = torch.kron(full(metric.rows), full(metric.columns))
    assert isinstance(summed, Tensor)
    for index in ("abac->bc", "abcb->ac"):
        expected = torch.einsum(index, summed.reshape(30, 8, 30, 8))
        got = torch.einsum(index, one.reshape(30, 8, 30, 8))
        torch.testing.assert_close(
            got / got.trace(), expected / expected.trace(), rtol=1e-4, atol=1e-7
        )


def test_loss_increase_predicts_a_loss_to_second_order() -> None:
    """For a linear map under a squared loss the prediction is exact."""
    x, weight, change = matrix(500, 6, seed=3), matrix(4, 6), 0.1 * matrix(4, 6, seed=9)
    metric = Metric((Curvature(torch.ones(4), x.T @ x / 500),))
    rise = 0.5 * (x @ (weight + change).T - x @ weight.T).square().sum(1).mean()
    torch.testing.assert_close(metric.loss_increase(change), float(rise), rtol=1e-4, atol=0)


def test_a_tall_change_is_weighted_some_rows_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows, change = torch.rand(50, generator=generator), torch.randn(50, 8, generator=generator)
    factor = torch.randn(8, 8, generator=generator)
    metric = Metric((Curvature(rows, factor @ factor.T),))
    monkeypatch.setattr(metric_module, "MOST_WEIGHTED", 7 * 8)
    exact = 0.5 * torch.einsum("o,oi,ij,oj->", rows, change, factor @ factor.T, change)
    assert metric.loss_increase(change) == pytest.approx(float(exact), rel=1e-5)
