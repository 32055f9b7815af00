"""Choosing which elements of a matrix to keep, and the values that the kept ones then take.

Every row keeps equally many elements, so that what is stored has an exact shape. How much one row
counts beside another therefore changes no mask: within a row only the columns decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.numerics.feedback import BLOCK_COLUMNS, ColumnGrid, inverse_factor
from autocompress.numerics.refinement import RowTerm
from autocompress.numerics.rounding import Grid

GROUP, KEPT_OF_GROUP = 4, 2  # the 2:4 pattern: two of every four neighbours in a row
STEPS = (
    8  # of conjugate gradients: on trained matrices thirty gain 2 % of the loss increase over eight
)
ROWS_AT_ONCE = 4096  # fitted together; rows do not interact, and some matrices have very many


@dataclass(frozen=True)
class Elimination:
    """What taking columns out one after another needs of one Gram matrix; it serves every mask.

    Attributes:
        order: ``[n]``, the columns in groups of four neighbours, by falling energy of the group.
        cost: ``[n]`` in that order, energy of a unit error in a column once all later columns have
            made up for it.
        factor: ``[n, n]`` in that order: row ``i`` right of the diagonal turns the error of column
            ``i`` into what the later ones must make up for; ``None`` where none can.
    """

    order: Tensor
    cost: Tensor
    factor: Tensor | None

    @classmethod
    def of(cls, gram: Tensor) -> Elimination:
        """Factorise a Gram matrix ``[n, n]`` in fp32, or take its diagonal ``[n]``.

        One that cannot be inverted counts as its diagonal.
        """
        diagonal = gram if gram.ndim == 1 else gram.diagonal()
        order = _order_of_groups(diagonal)
        upper = None if gram.ndim == 1 else inverse_factor(gram[order][:, order])
        if upper is None:
            return cls(order, diagonal[order], None)
        scale = upper.diagonal()
        return cls(order, scale.square().reciprocal().float(), (upper / scale[:, None]).float())


def _order_of_groups(diagonal: Tensor) -> Tensor:
    count = len(diagonal)
    padded = torch.nn.functional.pad(diagonal, (0, -count % GROUP)).reshape(-1, GROUP)
    groups = torch.argsort(padded.sum(1), descending=True, stable=True)
    columns = groups[:, None] * GROUP + torch.arange(GROUP, device=diagonal.device)
    return columns[columns < count]


def prune(
    weight: Tensor, elimination: Elimination, kept: int | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the elements to keep, later columns making up for each one that is dropped.

    SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1) with two deviations.
    Columns are taken in groups of four by falling energy instead of as they come. Without a
    pattern, the elements of a block compete with all that are still to come in their row for the
    places that the row has left, instead of with the other rows of the block for a share of it: so
    every row ends with equally many, while blocks may keep more or less.

    Args:
        weight: ``[rows, in]`` in fp32.
        elimination: of the Gram matrix of the columns.
        kept: elements that each row keeps, wherever they are; ``None`` for the 2:4 pattern, which
            wants a multiple of four columns.

    Returns:
        Mask of what is kept, bool ``[rows, in]``, and values ``[rows, in]``, 0 where nothing is.
    """
    order, cost, factor = elimination.order, elimination.cost[:, None], elimination.factor
    rest = weight.T[order]
    keep = torch.zeros_like(rest, dtype=torch.bool)
    count = len(order)
    for start in range(0, count, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, count)
        if kept is not None:
            places = kept - keep[:start].sum(0)
            chosen = _largest(rest[start:].square() * cost[start:], places)
            keep[start:end] = chosen[: end - start]
        errors = torch.empty_like(rest[start:end])
        for i in range(start, end):
            if kept is None and i % GROUP == 0:
                group = slice(i, i + GROUP)
                keep[group] = _largest(rest[group].square() * cost[group], KEPT_OF_GROUP)
            error = torch.mul(rest[i], ~keep[i], out=errors[i - start])
            if factor is not None:
                rest[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        if factor is not None:
            rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    back = torch.argsort(order)
    return keep[back].T.contiguous(), (rest * keep)[back].T.contiguous()


def _largest(scores: Tensor, count: Tensor | int) -> Tensor:
    """Mask of the ``count`` (a number, or ``[rows]``) largest of each row in ``[in, rows]``."""
    ranking = torch.argsort(scores.T.contiguous(), dim=1, descending=True, stable=True)
    places = torch.arange(len(scores), device=scores.device)
    chosen = places < torch.as_tensor(count, device=scores.device).reshape(-1, 1)
    mask = torch.zeros_like(ranking, dtype=torch.bool)
    return mask.scatter_(1, ranking, chosen.expand_as(ranking)).T


def fit_kept(
    weight: Tensor, mask: Tensor, values: Tensor, terms: Sequence[RowTerm], *, steps: int = STEPS
) -> Tensor:
    """Move all kept elements of each row towards those of least loss increase; it never rises.

    The least squares problem of each row, by conjugate gradients with a diagonal preconditioner on
    all rows at once: a step costs one product with the Gram matrix, where solving would cost a
    factorisation for every row. Error feedback only ever moves elements that come later; this also
    moves those that were settled first.

    Args:
        weight: ``[rows, in]`` in fp32, what is to be approximated.
        mask: of the kept elements, bool ``[rows, in]``.
        values: ``[rows, in]`` to start from, 0 where nothing is kept.
        terms: what a change of a row costs.
        steps: most steps; in exact arithmetic as many as kept elements reach the optimum.

    Returns:
        Values, ``[rows, in]`` in fp32.
    """
    total = torch.stack([term.weights for term in terms]).sum(0)
    shares = [torch.where(total > 0, term.weights / total, 1 / len(terms)) for term in terms]
    fitted = torch.empty_like(weight)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        parts = [RowTerm(t.gram, share[rows]) for t, share in zip(terms, shares, strict=True)]
        fitted[rows] = _fit_rows(weight[rows], mask[rows], values[rows], parts, steps)
    return fitted


def _fit_rows(
    weight: Tensor, mask: Tensor, values: Tensor, terms: Sequence[RowTerm], steps: int
) -> Tensor:
    def slope(change: Tensor) -> Tensor:
        total = torch.zeros_like(change)
        for term in terms:
            total += (change @ term.gram) * term.weights[:, None]
        return total * mask

    diagonal = sum(term.gram.diagonal() * term.weights[:, None] for term in terms)
    inverse = _ratio(mask.float(), torch.as_tensor(diagonal))
    residual = slope(weight - values)
    direction = scaled = residual * inverse
    energy = (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        image = slope(direction)
        length = _ratio(energy, (direction * image).sum(1, keepdim=True))
        values = torch.addcmul(values, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        scaled, before = residual * inverse, energy
        energy = (residual * scaled).sum(1, keepdim=True)
        direction = torch.addcmul(scaled, _ratio(energy, before), direction)
    return values


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def masked_grid(grid: Grid, mask: Tensor) -> ColumnGrid:
    """Lay a grid of the kept elements out over the whole matrix; what is not kept can only be 0.

    Rounding with error feedback on it leaves the mask as it is and keeps within it.

    Args:
        grid: symmetric, of the kept elements ``[rows, kept]`` in their order.
        mask: bool ``[rows, in]``.
    """
    kept = ColumnGrid.of([grid], int(mask[0].sum()))
    scale, per_step = (
        torch.zeros_like(mask, dtype=part.dtype).masked_scatter_(mask, part.T.contiguous()).T
        for part in (kept.scale, kept.per_step)
    )
    return ColumnGrid(scale, per_step, kept.centre[:1].expand_as(scale), kept.last)
