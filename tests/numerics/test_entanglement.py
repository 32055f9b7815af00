from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autocompress.numerics.tensors.cp import cp_to_matrix, cp_weights
from autocompress.numerics.tensors.entanglement import entropy, factors_bond, lowering_entropy
from autocompress.numerics.tensors.tensor_train import train_bonds, train_to_matrix
from autocompress.numerics.tensors.tucker import fold, tucker_bonds, tucker_to_matrix, unfold

ORDERS = (0.25, 0.5, 1.0, 2.0, 5.0, math.inf)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_train(*, padding: int = 0) -> list[Tensor]:
    ranks = (1, 3 + padding, 4 + padding, 1)
    modes = ((2, 3), (3, 2), (2, 4))
    cores = [
        drawn(before, *mode, after, seed=k)
        for k, (before, mode, after) in enumerate(zip(ranks, modes, ranks[1:], strict=False))
    ]
    return [core.requires_grad_() for core in cores]


@pytest.mark.parametrize("alpha", ORDERS)
def test_equal_values_have_the_logarithm_of_their_number_and_a_single_one_has_none(
    alpha: float,
) -> None:
    equal = torch.full((6,), 0.3, dtype=torch.float64)
    assert float(entropy(equal, alpha)) == pytest.approx(math.log(6))
    single = torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64)
    assert float(entropy(single, alpha)) == pytest.approx(0.0, abs=1e-12)
    assert float(entropy(0 * equal, alpha)) == 0.0


@settings(deadline=None)
@given(
    shares=st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8),
    orders=st.tuples(st.floats(0.1, 8.0), st.floats(0.1, 8.0)),
    scale=st.floats(1e-3, 1e3),
)
def test_it_falls_with_the_order_and_is_that_of_any_multiple(
    shares: list[float], orders: tuple[float, float], scale: float
) -> None:
    values = torch.tensor(shares, dtype=torch.float64)
    low, high = sorted(orders)
    assert entropy(values, low) >= entropy(values, high) - 1e-3 * abs(high - low) - 1e-9
    assert entropy(values, 0.01) <= math.log(len(shares)) + 1e-9
    torch.testing.assert_close(entropy(scale * values, low), entropy(values, low))


def test_shannon_is_the_limit_and_order_two_the_collision_entropy() -> None:
    values = drawn(7).abs()
    shares = values.square() / values.square().sum()
    for near in (0.998, 1.002):
        torch.testing.assert_close(entropy(values, near), entropy(values, 1.0), rtol=0, atol=2e-3)
    torch.testing.assert_close(entropy(values, 2.0), -shares.square().sum().log())
    torch.testing.assert_close(entropy(values, 400.0), entropy(values, math.inf), rtol=1e-2, atol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 100), alpha=st.sampled_from((0.25, 0.5, 0.75)))
def test_an_order_below_one_bounds_what_a_truncation_discards(seed: int, alpha: float) -> None:
    """Verstraete and Cirac 2006, lemma 2."""
    values = drawn(12, seed=seed).exp().sort(descending=True).values
    shares = values.square() / values.square().sum()
    for rank in range(1, 12):
        bound = (1 - alpha) / alpha * (float(entropy(values, alpha)) - math.log(rank / (1 - alpha)))
        assert math.log(float(shares[rank:].sum())) <= bound + 1e-9


def test_bonds_are_the_singular_values_of_the_unfolded_matrix() -> None:
    left, right = drawn(3, 7), drawn(3, 5, seed=1)
    torch.testing.assert_close(factors_bond(left, right), torch.linalg.svdvals(left.T @ right)[:3])
    cores = a_train()
    tensor = train_to_matrix(cores).reshape(2, 3, 2, 3, 2, 4).permute(0, 3, 1, 4, 2, 5)
    for k, values in enumerate(train_bonds(cores), start=1):
        wanted = torch.linalg.svdvals(tensor.flatten(0, 2 * k - 1).flatten(1))
        torch.testing.assert_close(values, wanted[: len(values)])
    core, factors = drawn(2, 3, 2), [drawn(4, 2), drawn(3, 3, seed=1), drawn(6, 2, seed=2)]
    folded = fold(tucker_to_matrix(core, factors, 1), (4,), (3, 6))
    for mode, values in enumerate(tucker_bonds(core, factors)):
        wanted = torch.linalg.svdvals(unfold(folded, mode))
        torch.testing.assert_close(values, wanted[: len(values)])


def test_ranks_beyond_what_is_used_or_allowed_are_no_matter() -> None:
    left, right = drawn(3, 7), drawn(3, 2, seed=1)  # rank 3 of two columns
    torch.testing.assert_close(factors_bond(left, right), torch.linalg.svdvals(left.T @ right)[:2])
    doubled = factors_bond(torch.cat([left, left]), torch.cat([right, right]))
    torch.testing.assert_close(doubled[:2], 2 * factors_bond(left, right))
    assert [len(values) for values in train_bonds(a_train(padding=9))] == [6, 8]


def test_weights_of_orthogonal_components_are_the_singular_values() -> None:
    bases = [torch.linalg.qr(drawn(n, 3, seed=n))[0] for n in (6, 5)]
    scales = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    factors = [bases[0] * scales, bases[1]]
    torch.testing.assert_close(cp_weights(factors), scales)
    torch.testing.assert_close(torch.linalg.svdvals(cp_to_matrix(factors, 1))[:3], scales)


@pytest.mark.parametrize("alpha", ORDERS)
def test_to_lower_it_small_values_fall_and_none_rises(alpha: float) -> None:
    values = drawn(6).abs().requires_grad_()
    lowering = lowering_entropy(values, alpha)
    torch.testing.assert_close(lowering, entropy(values, alpha))
    (slope,) = torch.autograd.grad(lowering, values)
    assert bool((slope >= 0).all())
    assert float(slope[values.argmax()]) == 0
    assert float(slope[values.argmin()]) > 0
    (whole,) = torch.autograd.grad(entropy(values, alpha), values)
    torch.testing.assert_close(slope, whole.clamp_min(0))
    vanished = lowering_entropy(torch.zeros(3, dtype=torch.float64, requires_grad=True), alpha)
    assert float(vanished.detach()) == 0


@pytest.mark.parametrize("alpha", ORDERS)
def test_gradients_are_those_of_finite_differences(alpha: float) -> None:
    left, right = drawn(3, 6).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: entropy(factors_bond(a, b), alpha), (left, right))
    core, *factors = (
        drawn(*shape, seed=k).requires_grad_()
        for k, shape in enumerate([(2, 3, 2), (4, 2), (3, 3), (5, 2)])
    )

    def of_tucker(core: Tensor, *factors: Tensor) -> Tensor:
        return torch.stack([entropy(values, alpha) for values in tucker_bonds(core, factors)]).sum()

    def of_train(*cores: Tensor) -> Tensor:
        return torch.stack([entropy(values, alpha) for values in train_bonds(cores)]).sum()

    def of_cp(*factors: Tensor) -> Tensor:
        return entropy(cp_weights(factors), alpha)

    assert torch.autograd.gradcheck(of_tucker, (core, *factors))
    assert torch.autograd.gradcheck(of_train, tuple(a_train()))
    assert torch.autograd.gradcheck(of_cp, (left, drawn(3, 6, seed=2).requires_grad_()))


def test_gradients_stay_right_where_values_coincide_and_finite_where_they_vanish() -> None:
    orthogonal = torch.linalg.qr(drawn(6, 3))[0].T.clone().requires_grad_()
    same = torch.eye(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: entropy(factors_bond(a, b), 2.0) + entropy(factors_bond(a, b), 0.5),
        (orthogonal, same),
    )
    left = torch.cat([drawn(2, 6), torch.zeros(2, 6)]).requires_grad_()
    right = torch.cat([drawn(2, 5), drawn(1, 5), drawn(1, 5)]).requires_grad_()
    for alpha in ORDERS:
        for found in torch.autograd.grad(entropy(factors_bond(left, right), alpha), (left, right)):
            assert torch.isfinite(found).all()


@settings(deadline=None, max_examples=5)
@given(alpha=st.sampled_from((0.5, 1.0, 2.0)))
def test_descent_along_it_lowers_the_rank(alpha: float) -> None:
    left, right = drawn(4, 8).requires_grad_(), drawn(4, 6, seed=1).requires_grad_()
    optimiser = torch.optim.Adam([left, right], lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        entropy(factors_bond(left, right), alpha).backward()
        optimiser.step()
    values = factors_bond(left, right).detach()
    assert float(values[1:].square().sum() / values.square().sum()) < 0.05
