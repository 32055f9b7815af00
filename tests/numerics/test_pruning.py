from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.pruning import Elimination, fit_kept, masked_grid, prune
from autocompress.numerics.refinement import row_terms
from autocompress.numerics.rounding import find_grid
from tests.methods.matrices import embedding_metric, gram, linear_metric, matrix

CPU = torch.device("cpu")


def loss_increases(weight: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    """Of each row."""
    change = (values - weight).double()
    return ((change @ columns.double()) * change).sum(1)


@pytest.mark.parametrize("width", [48, 50, 97])
@pytest.mark.parametrize("diagonal", [False, True])
def test_every_row_keeps_equally_many(width: int, diagonal: bool) -> None:
    columns = gram(width, 1)
    elimination = Elimination.of(columns.diagonal() if diagonal else columns)
    for kept in (1, 7, width // 2, width):
        mask, values = prune(matrix(30, width), elimination, kept)
        assert mask.sum(1).tolist() == [kept] * 30
        assert not values[~mask].any()


def test_two_of_every_four_neighbours_are_kept() -> None:
    mask, _ = prune(matrix(30, 72), Elimination.of(gram(72, 1)))
    assert (mask.reshape(30, 18, 4).sum(-1) == 2).all()


def test_ties_are_cut_to_the_same_number() -> None:
    elimination = Elimination.of(torch.eye(16))
    for kept, wanted in ((None, 8), (5, 5)):
        mask, _ = prune(torch.zeros(3, 16), elimination, kept)
        assert mask.sum(1).tolist() == [wanted] * 3


def test_without_interaction_the_elements_of_most_energy_stay_as_they_are() -> None:
    weight, energy = matrix(20, 40), torch.rand(40, generator=torch.Generator().manual_seed(0))
    mask, values = prune(weight, Elimination.of(energy), 10)
    least_kept = torch.where(mask, weight.square() * energy, torch.inf).amin(1)
    most_dropped = torch.where(mask, 0.0, weight.square() * energy).amax(1)
    assert (least_kept >= most_dropped).all()
    assert torch.equal(values, weight * mask)


def test_a_gram_matrix_that_cannot_be_inverted_counts_as_its_diagonal() -> None:
    for elimination in (Elimination.of(torch.zeros(8, 8)), Elimination.of(torch.zeros(8))):
        mask, values = prune(matrix(5, 8), elimination, 4)
        assert mask.sum(1).tolist() == [4] * 5
        assert torch.isfinite(values).all()


def test_the_cost_of_a_dropped_column_is_what_it_costs() -> None:
    """Dropping the first column alone, the best the others can do costs ``w^2 cost``."""
    columns, weight = gram(12, 3), matrix(6, 12)
    elimination = Elimination.of(columns)
    first = int(elimination.order[0])
    mask = torch.ones(6, 12, dtype=torch.bool)
    mask[:, first] = False
    terms = row_terms(Metric((Curvature(torch.ones(6), columns),)), CPU)
    fitted = fit_kept(weight, mask, weight * mask, terms, steps=60)
    torch.testing.assert_close(
        loss_increases(weight, fitted, terms[0].gram).float(),
        weight[:, first].square() * elimination.cost[0],
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize("kept", [None, 20])
def test_making_up_for_what_is_dropped_lowers_the_loss_increase(kept: int | None) -> None:
    columns, weight = gram(48, 2, decay=0.3), matrix(30, 48)
    mask, values = prune(weight, Elimination.of(columns), kept)
    assert (
        loss_increases(weight, values, columns).sum()
        < 0.7 * loss_increases(weight, weight * mask, columns).sum()
    )


@pytest.mark.parametrize("metric", [linear_metric(30, 48), embedding_metric(30, 48)])
def test_refitting_never_raises_the_loss_increase_and_ends_at_least_squares(metric: Metric) -> None:
    weight, terms = matrix(30, 48), row_terms(metric, CPU)
    mask, values = prune(weight, Elimination.of(metric.columns), 20)

    def loss_increase(values: Tensor) -> float:
        rows = [loss_increases(weight, values, term.gram) * term.weights for term in terms]
        return float(torch.stack(rows).sum())

    found = [
        loss_increase(fit_kept(weight, mask, values, terms, steps=n)) for n in (0, 1, 2, 4, 8, 80)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(found))
    best = values.double()
    for row, places in enumerate(mask):
        system = sum(term.gram.double() * term.weights[row].double() for term in terms)
        right = (system @ weight[row].double())[places]
        best[row, places] = torch.linalg.solve(system[places][:, places], right)
    torch.testing.assert_close(found[-1], loss_increase(best), rtol=1e-3, atol=0.0)
    assert not fit_kept(weight, mask, values, terms)[~mask].any()


def test_rows_and_columns_that_cost_nothing_are_left_finite() -> None:
    columns = gram(16, 4)
    columns[3], columns[:, 3] = 0, 0
    terms = row_terms(Metric((Curvature(torch.zeros(5), columns),)), CPU)
    mask, values = prune(matrix(5, 16), Elimination.of(columns), 8)
    assert torch.isfinite(fit_kept(matrix(5, 16), mask, values, terms)).all()
    zero = row_terms(Metric((Curvature(torch.ones(5), torch.zeros(16, 16)),)), CPU)
    assert torch.equal(fit_kept(matrix(5, 16), mask, values, zero), values)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_grid_on_a_mask_holds_the_scales_of_the_kept_and_nothing_else(bits: int) -> None:
    mask, values = prune(matrix(6, 16), Elimination.of(gram(16, 1)), 8)
    packed = values[mask].reshape(6, 8)
    grid = find_grid(packed, bits=bits, group_size=4, symmetric=True)
    spread = masked_grid(grid, mask)
    assert torch.equal(spread.scale.T != 0, mask)
    codes = (values * spread.per_step.T + spread.centre.T).round().clamp(0, 2**bits - 1)
    dense = (codes - spread.centre.T) * spread.scale.T
    torch.testing.assert_close(dense[mask].reshape(6, 8), grid.dequantize(grid.round(packed)))
