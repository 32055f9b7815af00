"""What all fits share: what they refuse, and what they prepare together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.methods import shared_work
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.numerics.metric import Curvature, Metric
from tests.methods.matrices import gram, linear_metric, matrix, problem_of, spec_of


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (torch.full((8, 8), float("nan")), gram(12, 1), "Gram matrix of the rows: got NaN"),
        (gram(8, 1), torch.full((12,), float("inf")), "Gram matrix of the columns: got NaN or inf"),
        (gram(12, 1), gram(12, 1), r"rows, shape: got \[12, 12\], wanted \[8, 8\]"),
        (gram(8, 1), torch.ones(8), r"columns, shape: got \[8\], wanted \[12\]"),
    ],
)
def test_broken_grams_are_refused(rows: torch.Tensor, columns: torch.Tensor, message: str) -> None:
    problem = problem_of(spec_of(8, 12), metric=Metric((Curvature(rows, columns),)))
    for method in (Quantize(3, 4), Svd(2)):
        with pytest.raises(MethodError, match=f"layer block.matrix.*{message}"):
            method.build(problem)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(MethodError, match=r"weights, shape: got \[12, 8\], wanted \[8, 12\]"):
        Svd(2).build(MatrixProblem(spec_of(8, 12), matrix(12, 8)))


def test_an_error_of_torch_names_layer_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting that passes its check is known to end so; an ill-conditioned matrix may."""

    def fail(*_arguments: object) -> None:
        raise torch.linalg.LinAlgError("linalg.svd: it failed to\nconverge")

    monkeypatch.setattr("autocompress.methods.svd.decompose", fail)
    problem = problem_of(spec_of(8, 12))
    with pytest.raises(MethodError, match=r"layer block.matrix .*svd r2 .*failed to converge"):
        Svd(2).build(problem)


@pytest.mark.parametrize("rank_of_gram", [0, 1])
def test_singular_grams_are_fitted_in(rank_of_gram: int) -> None:
    rows, columns = torch.zeros(8, 8), torch.zeros(12, 12)
    rows[:rank_of_gram, :rank_of_gram] = columns[:rank_of_gram, :rank_of_gram] = 1.0
    problem = problem_of(spec_of(8, 12), metric=Metric((Curvature(rows, columns),)))
    for method in (Quantize(8, 4), Svd(8), Svd(8, bits=8)):
        dense = method.build(problem).to_dense()
        torch.testing.assert_close(dense, problem.weight32, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "methods",
    [
        [Quantize(4, 8), Quantize(2, 0, symmetric=True), Quantize(3, 0, gram="diagonal")],
        [Svd(4, bits=8), Svd(9, bits=8), Svd(6, bits=4), Svd(5, "input", gram="diagonal")],
    ],
)
def test_prepared_fits_are_those_one_by_one(methods: list[Method]) -> None:
    spec, metric = spec_of(40, 48), linear_metric(40, 48)
    problem = problem_of(spec, metric=metric)
    type(methods[0]).prepare(problem, methods)
    for method in methods:
        alone = method.build(problem_of(spec, metric=metric))
        assert torch.equal(method.build(problem).to_dense(), alone.to_dense())


def test_gram_matrices_that_are_trusted_less_give_other_fits() -> None:
    spec, metric = spec_of(40, 48), Metric((Curvature(torch.ones(40), gram(48, 1), tokens=50),))
    for method in (Quantize(3, 8), Svd(3)):
        fits = (replace(method, gram=kind) for kind in ("full", "shrunk", "diagonal"))
        layers = [fit.build(problem_of(spec, metric=metric)) for fit in fits]
        loss_increases = [
            metric.loss_increase(layer.to_dense() - matrix(40, 48)) for layer in layers
        ]
        assert loss_increases[0] < loss_increases[1] < loss_increases[2]


def test_a_tall_matrix_is_rounded_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not interact, so the codes are the same."""
    spec = spec_of(50, 32)
    metric = Metric((Curvature(gram(50, 1), gram(32, 2)),))
    method = Quantize(3, 16)
    whole = method.fit(problem_of(spec, metric=metric))
    monkeypatch.setattr(shared_work, "MOST_ROUNDED", 7 * 32)
    parts = method.fit(problem_of(spec, metric=metric))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
