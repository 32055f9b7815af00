from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.numerics.feedback import (
    ColumnGrid,
    Feedback,
    inverse_factor,
    round_with_feedback,
)
from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.refinement import refine_codes, row_terms
from autocompress.numerics.rounding import Grid, find_grid, largest_group, pack_grid, unpack_zeros
from tests.methods.matrices import embedding_metric, gram, linear_metric, matrix


def with_feedback(weight: Tensor, columns: Tensor, grid: Grid) -> Tensor:
    feedback = Feedback.of(columns)
    assert feedback is not None
    return round_with_feedback(weight, feedback, ColumnGrid.of([grid], weight.shape[1]))


def assert_within_half_a_step(weight: Tensor, grid: Grid) -> None:
    """Rounding without clipping moves no element by more than half its group's scale."""
    change = (grid.dequantize(grid.round(weight)) - weight).abs()
    step = grid.scale.float().repeat_interleave(weight.shape[1] // grid.scale.shape[1], 1)
    slack = 1e-6 * float(weight.abs().max())
    assert bool((change <= 0.5 * step * (1 + 1e-4) + slack).all())


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(PACKED_BITS),
    groups=st.integers(1, 4),
    length=st.integers(1, 33),
    symmetric=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_rounding_is_within_half_a_step(
    bits: int, groups: int, length: int, symmetric: bool, size: float, seed: int
) -> None:
    weight = size * torch.randn(5, groups * length, generator=torch.Generator().manual_seed(seed))
    grid = find_grid(weight, bits=bits, group_size=length, symmetric=symmetric, clip=False)
    assert_within_half_a_step(weight, grid)


def test_checker_of_half_a_step_can_fail() -> None:
    weight = matrix(4, 16)
    grid = find_grid(weight, bits=4, group_size=0, symmetric=False, clip=False)
    with pytest.raises(AssertionError):
        assert_within_half_a_step(weight, Grid((grid.scale * 0.7).half(), grid.zero, 4))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_clip_search_never_raises_the_weighted_error(bits: int, symmetric: bool) -> None:
    weight, importance = matrix(30, 64), torch.linspace(0.01, 1.0, 64)
    errors = []
    for clip in (True, False):
        grid = find_grid(
            weight, bits=bits, group_size=16, symmetric=symmetric, importance=importance, clip=clip
        )
        errors.append(
            float(((grid.dequantize(grid.round(weight)) - weight).square() * importance).sum())
        )
    assert errors[0] <= errors[1] * (1 + 1e-6)
    if bits <= 3:
        assert errors[0] < errors[1]


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_zero_stays_zero(bits: int) -> None:
    weight = torch.zeros(3, 16)
    for symmetric in (False, True):
        grid = find_grid(weight, bits=bits, group_size=8, symmetric=symmetric)
        assert torch.equal(grid.dequantize(grid.round(weight)), weight)


def test_stored_zero_points_come_back() -> None:
    for bits in PACKED_BITS:
        grid = find_grid(matrix(11, 24), bits=bits, group_size=8, symmetric=False)
        stored = pack_grid(grid, grid.round(matrix(11, 24)))
        assert grid.zero is not None
        assert torch.equal(unpack_zeros(stored["zeros"], bits, 11), grid.zero)
        assert stored["scales"].dtype == torch.float16


def test_scales_beyond_bf16_are_refused() -> None:
    with pytest.raises(MethodError, match="fits bf16"):
        find_grid(torch.tensor([[-3e38, 3e38]]), bits=4, group_size=0, symmetric=False)


@pytest.mark.parametrize("group_size", [0, 8, 32])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_error_feedback_lowers_the_loss_increase(bits: int, group_size: int) -> None:
    weight, columns = matrix(48, 64), gram(64, 3)
    metric = Metric((Curvature(torch.ones(48), columns),))
    grid = find_grid(
        weight, bits=bits, group_size=group_size, symmetric=False, importance=columns.diagonal()
    )
    nearest = metric.loss_increase(grid.dequantize(grid.round(weight)) - weight)
    feedback = metric.loss_increase(grid.dequantize(with_feedback(weight, columns, grid)) - weight)
    assert feedback < 0.8 * nearest


def test_error_feedback_is_nearest_for_independent_inputs() -> None:
    weight = matrix(20, 40)
    grid = find_grid(weight, bits=3, group_size=8, symmetric=False)
    codes = with_feedback(weight, torch.diag(torch.linspace(0.1, 1.0, 40)), grid)
    assert torch.equal(codes, grid.round(weight))


def test_error_feedback_follows_the_published_recursion() -> None:
    """Against a transcription: column by column, the inverse Gram matrix shrunk by elimination."""
    weight, columns = matrix(6, 12), gram(12, 5)
    grid = find_grid(weight, bits=3, group_size=4, symmetric=False)
    damped = columns.double() + 0.01 * columns.diagonal().mean().double() * torch.eye(
        12, dtype=torch.float64
    )
    inverse, rest = damped.inverse(), weight.double().clone()
    scale = grid.scale.double().repeat_interleave(4, 1)
    assert isinstance(grid.centre, Tensor)
    zero = grid.centre.double().repeat_interleave(4, 1)
    expected = torch.zeros(6, 12, dtype=torch.float64)
    for j in columns.diagonal().argsort(descending=True).tolist():
        expected[:, j] = (rest[:, j] / scale[:, j] + zero[:, j]).round().clamp(0, 7)
        error = rest[:, j] - (expected[:, j] - zero[:, j]) * scale[:, j]
        rest -= torch.outer(error / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    assert torch.equal(with_feedback(weight, columns, grid).double(), expected)


def test_singular_grams_are_damped_and_broken_ones_found_out() -> None:
    assert inverse_factor(torch.zeros(12, 12)) is None
    assert inverse_factor(-torch.eye(12)) is None
    assert inverse_factor(torch.full((12, 12), float("nan"))) is None
    assert inverse_factor(torch.ones(12, 12)) is not None
    for columns in (torch.zeros(12, 12), torch.full((12, 12), float("nan"))):
        assert Feedback.of(columns) is None


def test_largest_group_divides_or_is_the_row() -> None:
    assert largest_group(4096, 64) == 64
    assert largest_group(704, 64) == 64
    assert largest_group(100, 64) == 50
    assert largest_group(97, 64) == 0
    assert largest_group(48, 64) == 0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "metric", [linear_metric(48, 64), embedding_metric(48, 64)], ids=["linear", "embedding"]
)
def test_refinement_never_raises_the_loss_increase(metric: Metric, symmetric: bool) -> None:
    weight = matrix(48, 64)
    terms = row_terms(metric, weight.device)
    judge = Metric(tuple(Curvature(term.weights, term.gram) for term in terms))
    grid = find_grid(weight, bits=3, group_size=16, symmetric=symmetric)
    codes = grid.round(weight)
    loss_increases = [judge.loss_increase(grid.dequantize(codes) - weight)]
    for _ in range(4):
        codes = refine_codes(weight, ColumnGrid.of([grid], weight.shape[1]), codes, terms, sweeps=1)
        loss_increases.append(judge.loss_increase(grid.dequantize(codes) - weight))
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(loss_increases))
    assert loss_increases[-1] < 0.8 * loss_increases[0]


def test_refined_codes_cannot_be_bettered_one_at_a_time() -> None:
    weight, metric = matrix(3, 8), embedding_metric(3, 8)
    terms = row_terms(metric, weight.device)
    judge = Metric(tuple(Curvature(term.weights, term.gram) for term in terms))
    grid = find_grid(weight, bits=2, group_size=4, symmetric=False)
    codes = refine_codes(weight, ColumnGrid.of([grid], 8), grid.round(weight), terms, sweeps=20)
    least = judge.loss_increase(grid.dequantize(codes) - weight)
    for row in range(3):
        for column in range(8):
            for code in range(4):
                other = codes.clone()
                other[row, column] = code
                assert judge.loss_increase(grid.dequantize(other) - weight) >= least * (1 - 1e-5)


def test_refinement_leaves_rows_that_cost_nothing() -> None:
    weight = matrix(4, 16)
    grid = find_grid(weight, bits=3, group_size=0, symmetric=False)
    codes = grid.round(weight)
    metric = Metric((Curvature(torch.tensor([0.0, 1.0, 0.0, 1.0]), gram(16, 2)),))
    refined = refine_codes(
        weight, ColumnGrid.of([grid], weight.shape[1]), codes, row_terms(metric, weight.device)
    )
    assert torch.equal(refined[[0, 2]], codes[[0, 2]])
    assert not torch.equal(refined, codes)


def test_grids_side_by_side_are_those_one_by_one() -> None:
    weight, metric = matrix(20, 48), embedding_metric(20, 48)
    feedback, terms = Feedback.of(metric.columns), row_terms(metric, weight.device)
    assert feedback is not None
    grids = [
        find_grid(weight, bits=bits, group_size=size, symmetric=symmetric)
        for bits, size, symmetric in ((4, 0, False), (2, 8, True), (3, 16, False))
    ]
    together = ColumnGrid.of(grids, 48)
    stacked = weight.repeat(3, 1)
    codes = round_with_feedback(stacked, feedback, together)
    refined = refine_codes(stacked, together, codes, terms)
    for grid, rounded, moved in zip(grids, codes.split(20), refined.split(20), strict=True):
        alone = ColumnGrid.of([grid], 48)
        assert torch.equal(rounded, round_with_feedback(weight, feedback, alone))
        assert torch.equal(moved, refine_codes(weight, alone, rounded, terms))
