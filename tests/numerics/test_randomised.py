from __future__ import annotations

import pytest
import torch

from autocompress.numerics.randomised import (
    SketchKind,
    find_range_to,
    randomised_svd,
    sketch,
    walsh_hadamard,
)
from autocompress.numerics.svd import Whitening, decompose_whitened, randomised_wins
from tests.methods.matrices import gram, matrix


def test_hadamard_transform_is_that_of_its_recursive_matrix() -> None:
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    full = torch.kron(torch.kron(one, one), one)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walsh_hadamard(x), x @ full)


@pytest.mark.parametrize("columns", [1, 8, 13])
def test_hadamard_sketch_is_one_linear_map_of_all_rows(columns: int) -> None:
    size = min(columns, 4)
    x = torch.randn(6, columns, generator=torch.Generator().manual_seed(0))
    vectors = sketch(torch.eye(columns), size, kind="hadamard", seed=3)
    torch.testing.assert_close(sketch(x, size, kind="hadamard", seed=3), x @ vectors)


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_known_rank_is_found_exactly(kind: SketchKind, shape: tuple[int, int]) -> None:
    low = (matrix(shape[0], 7).double() @ matrix(7, shape[1], seed=1).double()).contiguous()
    left, values, right = randomised_svd(low, 7, kind=kind, oversampling=2)
    torch.testing.assert_close((left * values) @ right, low, rtol=0, atol=1e-9)
    torch.testing.assert_close(values, torch.linalg.svdvals(low)[:7])


@pytest.mark.parametrize("kind", ["gaussian", "hadamard"])
def test_error_is_within_a_percent_of_the_least(kind: SketchKind) -> None:
    weight = matrix(200, 160).double()
    left, values, right = randomised_svd(weight, 20, kind=kind)
    error = float((weight - (left * values) @ right).norm())
    least = float(torch.linalg.svdvals(weight)[20:].square().sum().sqrt())
    assert least <= error <= 1.01 * least


def test_seeds_decide() -> None:
    x = matrix(20, 30)
    first, again, other = (sketch(x, 4, kind="gaussian", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_rank_adapts_to_the_tolerance(tolerance: float) -> None:
    weight = matrix(120, 100).double()
    basis = find_range_to(weight, tolerance, block=8)
    rest = weight - basis @ (basis.T @ weight)
    assert float(rest.norm()) <= tolerance * float(weight.norm()) * (1 + 1e-9)
    tails = torch.linalg.svdvals(weight).square().flip(0).cumsum(0).flip(0).sqrt()
    needed = int((tails > tolerance * weight.norm()).sum())
    assert needed <= basis.shape[1] <= needed + 16
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype))


def test_adaptive_rank_of_extremes() -> None:
    assert find_range_to(torch.zeros(5, 7), 0.1).shape == (5, 0)
    assert find_range_to(matrix(5, 7), 0.0).shape == (5, 5)


def test_few_ranks_of_a_large_matrix_are_projected_for() -> None:
    weight, rows, columns = matrix(256, 300), gram(256, 1, decay=0.3), gram(300, 2, decay=0.3)
    whitening = Whitening.of(rows, columns)
    assert randomised_wins(weight.shape, 8)
    assert not randomised_wins(weight.shape, 100)
    assert not randomised_wins((256, 32_000), 8)
    few, all_ = (
        decompose_whitened(weight, whitening, most_rank=8),
        decompose_whitened(weight, whitening),
    )
    assert few.left.shape == (8, 256)
    torch.testing.assert_close(few.values, all_.values[:8], rtol=1e-2, atol=0)
    torch.testing.assert_close(
        few.left.T @ few.right, all_.left[:8].T @ all_.right[:8], rtol=0, atol=0.1
    )
