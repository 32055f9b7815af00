from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.kronecker import multiply_mode
from autocompress.numerics.tensors.shapes import tucker_rank_limits
from autocompress.numerics.tensors.tucker import (
    TuckerForm,
    decompose_tucker,
    unfold,
)
from tests.methods.matrices import matrix


@settings(max_examples=40, deadline=None)
@given(
    modes=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    ranks=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_error_is_the_sum_of_the_cuts_and_within_the_bound(
    modes: list[int], ranks: list[int], seed: int
) -> None:
    tensor = torch.randn(modes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = [min(rank, mode) for rank, mode in zip(ranks, modes, strict=False)]
    core, factors, errors = decompose_tucker(tensor, kept)
    dense = core
    for mode, factor in enumerate(factors):
        torch.testing.assert_close(
            factor.T @ factor, torch.eye(factor.shape[1], dtype=torch.float64)
        )
        dense = multiply_mode(dense, factor, mode)
    error = float((dense - tensor).square().sum())
    torch.testing.assert_close(error, sum(errors), rtol=1e-6, atol=1e-9)
    tails = [
        float(torch.linalg.svdvals(unfold(tensor, k))[rank:].square().sum())
        for k, rank in enumerate(kept)
    ]
    assert max(tails) * (1 - 1e-9) - 1e-9 <= error <= sum(tails) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("out_modes", "in_modes"), [((4, 5), (3, 6)), ((2, 3, 4), (18,)), ((23,), (17,))]
)
def test_full_ranks_are_exact(out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> None:
    weight = matrix(math.prod(out_modes) - 1, math.prod(in_modes) - 1).double()
    form = TuckerForm(tucker_rank_limits(out_modes + in_modes), out_modes, in_modes)
    dense = form.multiply_out(form.decompose(weight))[: weight.shape[0], : weight.shape[1]]
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-9)


def test_one_mode_a_side_is_the_singular_value_decomposition() -> None:
    weight = matrix(20, 18).double()
    form = TuckerForm((5, 5), (20,), (18,))
    error = float((form.multiply_out(form.decompose(weight)) - weight).square().sum())
    values = torch.linalg.svdvals(weight)
    assert error == pytest.approx(float(values[5:].square().sum()), rel=1e-9)
