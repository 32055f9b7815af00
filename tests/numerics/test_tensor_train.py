from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.tensors.shapes import matrix_train_limits, train_rank_limits
from autocompress.numerics.tensors.tensor_train import (
    TrainForm,
    decompose_train,
    fold_pairs,
)
from tests.methods.matrices import matrix


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
    weight = matrix(math.prod(out_modes) - 1, math.prod(in_modes) - 1).double()
    form = TrainForm(matrix_train_limits(out_modes, in_modes), out_modes, in_modes)
    dense = form.multiply_out(form.decompose(weight))[: weight.shape[0], : weight.shape[1]]
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-9)


def test_a_kronecker_product_has_rank_one() -> None:
    parts = [matrix(4, 3, seed=1), matrix(5, 2, seed=2), matrix(3, 4, seed=3)]
    weight = torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    form = TrainForm((1, 1), (4, 5, 3), (3, 2, 4))
    torch.testing.assert_close(form.multiply_out(form.decompose(weight)), weight, rtol=0, atol=1e-5)
    assert fold_pairs(weight, (4, 5, 3), (3, 2, 4)).shape == (12, 10, 12)


@pytest.mark.parametrize(("out_modes", "in_modes"), [((4, 5), (3, 6)), ((10, 2), (9, 2))])
def test_order_two_is_the_optimum(out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> None:
    """With two modes a train is one SVD, of the rearranged matrix (Van Loan and Pitsianis 1993)."""
    weight = matrix(20, 18).double()
    form = TrainForm((3,), out_modes, in_modes)
    values = torch.linalg.svdvals(fold_pairs(weight, out_modes, in_modes))
    error = float((form.multiply_out(form.decompose(weight)) - weight).square().sum())
    assert error == pytest.approx(float(values[3:].square().sum()), rel=1e-9)
