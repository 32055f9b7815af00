from __future__ import annotations

import pytest
import torch

from autocompress.methods.svd import Svd
from autocompress.numerics import svd as svd_module
from autocompress.numerics.factor_rounding import refit_left, round_left, round_right
from autocompress.numerics.feedback import Feedback
from autocompress.numerics.metric import Curvature, Metric, apply_gram
from autocompress.numerics.svd import Whitening, decompose, grams_of, shrunk
from tests.methods.matrices import (
    embedding_metric,
    gram,
    linear_metric,
    matrix,
    problem_of,
    spec_of,
)

SHAPES = [(40, 24), (24, 40), (30, 30)]


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error_is_the_sum_of_the_discarded_squares(
    shape: tuple[int, int], diagonal: bool
) -> None:
    weight, rows, columns = (
        matrix(*shape),
        gram(shape[0], 1, decay=0.3),
        gram(shape[1], 2, decay=0.3),
    )
    if diagonal:
        rows = rows.diagonal()
    spectrum = decompose(weight, rows, columns)
    for rank in (1, 5, 17, min(shape)):
        change = (spectrum.left[:rank].T @ spectrum.right[:rank] - weight).double()
        weighted = apply_gram(shrunk(rows, 1e-3), apply_gram(shrunk(columns, 1e-3), change.T).T)
        error, total = float((weighted * change).sum()), float(spectrum.values.square().sum())
        torch.testing.assert_close(
            error, float(spectrum.values[rank:].square().sum()), rtol=1e-4, atol=1e-8 * total
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_whitened_matrix(shape: tuple[int, int]) -> None:
    weight, rows, columns = matrix(*shape), gram(shape[0], 1), gram(shape[1], 2)
    left, right = (torch.linalg.cholesky(shrunk(g, 1e-3)) for g in (rows, columns))
    oracle = torch.linalg.svdvals(left.T @ weight.double() @ right)
    torch.testing.assert_close(
        decompose(weight, rows, columns).values, oracle, rtol=1e-6, atol=1e-7 * float(oracle[0])
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    spectrum = decompose(weight, gram(shape[0], 1), gram(shape[1], 2))
    torch.testing.assert_close(
        spectrum.left.T @ spectrum.right, weight, rtol=0, atol=1e-5 * float(weight.abs().max())
    )


def test_plain_is_the_truncated_svd() -> None:
    weight = matrix(40, 24)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    spectrum = decompose(weight, torch.ones(40), torch.ones(24))
    expected = (u[:, :7] * s[:7]) @ vh[:7]
    torch.testing.assert_close(
        spectrum.left[:7].T @ spectrum.right[:7], expected.float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_each_metric_is_best_in_itself(shape: tuple[int, int], rank: int) -> None:
    metric = linear_metric(*shape)
    weight = matrix(*shape)
    for kind in ("plain", "input", "two_sided"):
        own = Metric((Curvature(*(shrunk(gram, 1e-3) for gram in grams_of(metric, kind, weight))),))
        loss_increases = {}
        for fit in ("plain", "input", "two_sided"):
            spectrum = decompose(weight, *grams_of(metric, fit, weight))
            loss_increases[fit] = own.loss_increase(
                spectrum.left[:rank].T @ spectrum.right[:rank] - weight
            )
        assert loss_increases[kind] <= min(loss_increases.values()) * (1 + 1e-5)


def test_two_sided_beats_plain_in_the_metric_it_is_judged_by() -> None:
    for metric, spec in (
        (linear_metric(40, 24), spec_of(40, 24)),
        (embedding_metric(200, 24), spec_of(200, 24)),
    ):
        problem = problem_of(spec, metric=metric)
        loss_increase = {
            kind: metric.loss_increase(Svd(6, kind).build(problem).to_dense() - problem.weight32)
            for kind in ("plain", "input", "two_sided")
        }
        assert loss_increase["two_sided"] < loss_increase["plain"]


def test_grams_that_are_zero_count_as_nothing_known() -> None:
    weight = matrix(20, 12)
    known = decompose(weight, torch.ones(20), torch.ones(12), shrinkage=0.0)
    unknown = decompose(weight, torch.zeros(20, 20), torch.zeros(12, 12), shrinkage=0.0)
    torch.testing.assert_close(known.values, unknown.values)


def test_refitted_factor_solves_the_normal_equations() -> None:
    weight, columns, right = matrix(20, 12), gram(12, 3), matrix(5, 12, seed=4)
    left, seen = refit_left(weight, right, columns)
    columns = shrunk(columns, 1e-3).float()
    residual = (left.T @ right - weight).double() @ columns.double() @ right.double().T
    scale = (weight.double() @ columns.double() @ right.double().T).abs().max()
    assert float(residual.abs().max()) < 1e-5 * float(scale)
    torch.testing.assert_close(seen, right @ columns @ right.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_factors_together_beats_rounding_them_apart(bits: int) -> None:
    weight, columns = matrix(64, 48), gram(48, 3)
    metric = Metric((Curvature(torch.ones(64), columns),))
    spectrum = decompose(weight, torch.ones(64), columns)
    left, right = spectrum.left[:12], spectrum.right[:12]
    right_grid, right_codes = round_right(
        right, columns, Feedback.of(columns), bits=bits, group_size=0
    )
    rounded = right_grid.dequantize(right_codes)
    left_grid, left_codes = round_left(weight, rounded, columns, bits=bits, group_size=0)
    together = left_grid.dequantize(left_codes).T @ rounded
    apart = left_grid.dequantize(left_grid.round(left)).T @ right_grid.dequantize(
        right_grid.round(right)
    )
    exact = metric.loss_increase(left.T @ right - weight)
    assert (
        exact * (1 - 1e-2)
        <= metric.loss_increase(together - weight)
        < metric.loss_increase(apart - weight)
    )


def test_inner_products_are_those_of_the_whitened_matrix(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator)
    monkeypatch.setattr(svd_module, "MOST_WEIGHTED", 7 * 8)
    factor = torch.randn(50, 50, generator=generator)
    for rows in (torch.rand(50, generator=generator), factor @ factor.T):
        whitening = Whitening.of(rows, torch.rand(8, generator=generator))
        whitened = whitening.apply_rows(weight)
        torch.testing.assert_close(whitening.inner_products(weight), whitened.T @ whitened)
