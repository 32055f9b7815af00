from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.kronecker import kronecker_roots
from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.shapes import train_rank_limits
from autocompress.numerics.tensor_train import (
    decompose_matrix_train,
    decompose_train,
    fold_pairs,
    train_to_matrix,
)
from tests.methods.matrices import embedding_metric, linear_metric, matrix, problem_of, spec_of


def unfolding_tails(tensor: torch.Tensor, ranks: tuple[int, ...]) -> list[float]:
    """Squared error of the best approximation of each unfolding at its rank."""
    tails = []
    for k, rank in enumerate(ranks, start=1):
        values = torch.linalg.svdvals(tensor.double().reshape(math.prod(tensor.shape[:k]), -1))
        tails.append(float(values[rank:].square().sum()))
    return tails


@settings(max_examples=40, deadline=None)
@given(
    modes=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    ranks=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_error_is_the_sum_of_the_cuts_and_within_the_bound(
    modes: list[int], ranks: list[int], seed: int
) -> None:
    tensor = torch.randn(modes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = tuple(
        min(r, limit) for r, limit in zip(ranks, train_rank_limits(tuple(modes)), strict=False)
    )
    cores, errors = decompose_train(tensor, kept)
    dense = cores[0]
    for core in cores[1:]:
        dense = torch.tensordot(dense, core, dims=1)
    error = float((dense.reshape(modes) - tensor).square().sum())
    torch.testing.assert_close(error, sum(errors), rtol=1e-6, atol=1e-9)
    tails = unfolding_tails(tensor, kept)
    assert max(tails) * (1 - 1e-9) - 1e-9 <= error <= sum(tails) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("out_modes", "in_modes"), [((4, 5), (3, 6)), ((2, 3, 4), (3, 2, 3)), ((23,), (17,))]
)
def test_full_ranks_are_exact(out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> None:
    weight = matrix(math.prod(out_modes) - 1, math.prod(in_modes) - 1)
    ranks = train_rank_limits(tuple(o * i for o, i in zip(out_modes, in_modes, strict=True)))
    scales = [[torch.linspace(0.5, 1.5, n) for n in modes] for modes in (out_modes, in_modes)]
    cores = decompose_matrix_train(
        weight, ranks, out_modes, in_modes, out_scales=scales[0], in_scales=scales[1]
    )
    dense = train_to_matrix(cores)[: weight.shape[0], : weight.shape[1]]
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-5)


def test_a_kronecker_product_has_rank_one() -> None:
    parts = [matrix(4, 3, seed=1), matrix(5, 2, seed=2), matrix(3, 4, seed=3)]
    weight = torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    cores = decompose_matrix_train(weight, (1, 1), (4, 5, 3), (3, 2, 4))
    torch.testing.assert_close(
        train_to_matrix(cores), weight, rtol=0, atol=1e-9 + 1e-6 * float(weight.abs().max())
    )
    assert fold_pairs(weight, (4, 5, 3), (3, 2, 4)).shape == (12, 10, 12)


def test_order_two_is_the_optimum() -> None:
    """With two modes a train is one SVD, of the rearranged matrix (Van Loan and Pitsianis 1993)."""
    weight = matrix(20, 18)
    cores = decompose_matrix_train(weight, (3,), (4, 5), (3, 6))
    values = torch.linalg.svdvals(fold_pairs(weight, (4, 5), (3, 6)).double())
    error = float((train_to_matrix(cores) - weight).double().square().sum())
    torch.testing.assert_close(error, float(values[3:].square().sum()), rtol=1e-5, atol=0)


def test_scales_that_are_kronecker_products_are_found() -> None:
    parts = [torch.linspace(0.5, 1.2, 4), torch.linspace(1.1, 0.4, 5)]
    roots = kronecker_roots(torch.kron(parts[0], parts[1]).square(), (4, 5))
    product = torch.kron(roots[0], roots[1])
    ratio = product / torch.kron(parts[0], parts[1]).double()
    assert float(ratio.max() / ratio.min()) < 1.01


def test_the_metric_lowers_the_damage_it_can_express() -> None:
    spec = spec_of(64, 36)
    out = torch.kron(torch.logspace(0, 2, 8), torch.ones(8))
    into = torch.kron(torch.ones(6), torch.logspace(0, 2, 6))
    metric = Metric((Curvature(out, into),))
    method = TensorTrain((6,), (8, 8), (6, 6))
    aware = method.build(problem_of(spec, metric=metric)).to_dense()
    plain = method.build(problem_of(spec)).to_dense()
    weight = problem_of(spec).weight32
    assert metric.damage(aware - weight) < 0.9 * metric.damage(plain - weight)


@pytest.mark.parametrize("form", [TensorTrain, Tucker])
def test_the_metric_never_makes_a_fit_worse(form: type[TensorTrain] | type[Tucker]) -> None:
    for metric in (linear_metric(60, 36), embedding_metric(60, 36)):
        spec = spec_of(60, 36)
        problem = problem_of(spec, metric=metric)
        method = form.uniform(spec.shape, order=2, rank=4)
        plain = method.build(problem_of(spec)).to_dense()
        assert problem.damage(method.build(problem).to_dense()) <= problem.damage(plain) * (
            1 + 1e-5
        )
