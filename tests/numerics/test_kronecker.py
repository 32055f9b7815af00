from __future__ import annotations

import torch

from autocompress.numerics.kronecker import (
    apply_product,
    gram_roots,
    nearest_product,
    root_whitening,
)
from autocompress.numerics.metric import Curvature, Metric
from tests.methods.matrices import gram, linear_metric

MODES = (3, 4, 2)


def product(factors: list[torch.Tensor]) -> torch.Tensor:
    result = factors[0]
    for factor in factors[1:]:
        result = torch.kron(result, factor)
    return result


def test_a_kronecker_product_is_its_own_nearest() -> None:
    exact = product([gram(n, seed=n) for n in MODES])
    torch.testing.assert_close(product(nearest_product(exact, MODES)), exact)
    diagonal = exact.diagonal().clone()
    found = nearest_product(diagonal, MODES)
    assert all(factor.ndim == 1 for factor in found)
    torch.testing.assert_close(product(found), diagonal)


def test_with_two_factors_the_nearest_is_the_first_singular_pair() -> None:
    """Van Loan and Pitsianis 1993: what is missed are the other singular values, rearranged."""
    matrix = gram(24, seed=1, decay=0.3)
    paired = matrix.reshape(4, 6, 4, 6).transpose(1, 2).reshape(16, 36)
    values = torch.linalg.svdvals(paired)
    missed = (product(nearest_product(matrix, (4, 6))) - matrix).norm()
    torch.testing.assert_close(missed, values[1:].norm(), rtol=1e-3, atol=0)


def test_factors_of_a_positive_matrix_are_positive() -> None:
    for factor in nearest_product(gram(23, seed=2), MODES):
        torch.testing.assert_close(factor, factor.T)
        assert float(torch.linalg.eigvalsh(factor)[0]) >= -1e-5 * float(factor.trace())


def test_a_kronecker_product_is_applied_without_being_built() -> None:
    factors = [torch.randn(m, n) for m, n in ((2, 3), (5, 4), (3, 2))]
    matrix = torch.randn(24, 7)
    torch.testing.assert_close(apply_product(factors, matrix), product(factors) @ matrix)
    diagonals = [torch.rand(n) for n in (3, 4, 2)]
    torch.testing.assert_close(
        apply_product(diagonals, matrix), product(diagonals)[:, None] * matrix
    )


def test_a_metric_that_is_a_product_is_whitened() -> None:
    parts = [torch.eye(n) + 9 * gram(n, seed=n) / gram(n, seed=n).trace() for n in (4, 5, 3, 6)]
    metric = Metric((Curvature(torch.kron(*parts[:2]), torch.kron(*parts[2:])),))
    whitening = root_whitening(gram_roots(metric), (4, 5), (3, 6), torch.device("cpu"))
    for side, term in (
        (whitening.rows_inverse, metric.rows),
        (whitening.columns_inverse, metric.columns),
    ):
        white = apply_product(side, apply_product(side, term).T)
        spread = torch.linalg.eigvalsh(white)
        assert float(torch.linalg.cond(term)) > 20
        assert float(spread[-1] / spread[0]) < 1.2


def test_singular_and_zero_metrics_have_coordinates() -> None:
    rank_one = torch.outer(torch.arange(12.0), torch.arange(12.0))
    for rows in (torch.zeros(12, 12), torch.zeros(12), rank_one, torch.eye(12)[0]):
        metric = Metric((Curvature(rows, linear_metric(12, 10).columns),))
        whitening = root_whitening(gram_roots(metric), (3, 4), (2, 5), torch.device("cpu"))
        for roots in (whitening.rows, whitening.rows_inverse):
            assert all(torch.isfinite(root).all() for root in roots)
