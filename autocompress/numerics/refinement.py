"""Improving rounded codes, one column at a time, until no single code would be better elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.numerics.feedback import BLOCK_COLUMNS, DAMPING, ColumnGrid
from autocompress.numerics.metric import Metric

SWEEPS = 2  # on trained matrices two bring three quarters of what many do


@dataclass(frozen=True)
class RowTerm:
    """One term of the loss increase of a row ``v``: ``weights[v] * d gram d^T``.

    Attributes:
        gram: ``[in, in]`` in fp32.
        weights: ``[out]`` in fp32.
    """

    gram: Tensor
    weights: Tensor


def row_terms(metric: Metric, device: torch.device) -> list[RowTerm]:
    """The terms of a metric as far as rows do not interact.

    Of a full Gram matrix of the rows only the diagonal counts. Gram matrices of the columns are
    damped as for error feedback, since they come from few tokens.
    """
    terms = []
    for term in metric.terms:
        columns, rows = (gram.to(device).float() for gram in (term.columns, term.rows))
        gram = torch.diag(columns) if columns.ndim == 1 else columns
        damping = DAMPING * gram.diagonal().mean() * torch.eye(len(gram), device=device)
        terms.append(RowTerm(gram + damping, rows if rows.ndim == 1 else rows.diagonal()))
    return terms


def refine_codes(
    weight: Tensor,
    grid: ColumnGrid,
    codes: Tensor,
    terms: Sequence[RowTerm],
    *,
    sweeps: int = SWEEPS,
) -> Tensor:
    """Move each code to where it serves best, given all others; the loss increase never rises.

    Cyclic coordinate descent (QuantEase, Behdin et al. 2023, arXiv 2309.01885, algorithm 1) from
    given codes instead of from the weights, in blocks of columns, and with the terms of several
    uses of the matrix weighted row by row, which one Gram matrix for all rows cannot do.

    Args:
        weight: ``[rows, in]`` in fp32; for several grids a copy per grid, one above the other.
        grid: scales and zero points of the same rows.
        codes: uint8 ``[rows, in]`` to start from.
        terms: what a change of a row costs; their weights are repeated for each copy.
        sweeps: how often each column is visited.

    Returns:
        Codes, uint8 ``[rows, in]``.
    """
    copies = weight.shape[0] // terms[0].weights.shape[0]
    cost = sum(term.gram.diagonal() * term.weights.mean() for term in terms)
    order = torch.argsort(torch.as_tensor(cost), descending=True, stable=True)
    terms = [RowTerm(term.gram[order][:, order], term.weights.repeat(copies)) for term in terms]
    grid, columns, current = grid[order], weight.T[order], codes.T[order].float()
    change = (current - grid.centre).mul_(grid.scale).sub_(columns)
    for _ in range(sweeps):
        for start in range(0, len(order), BLOCK_COLUMNS):
            _refine_block(
                slice(start, start + BLOCK_COLUMNS), grid, columns, current, change, terms
            )
    refined = torch.empty_like(codes.T)
    refined[order] = current.to(torch.uint8)
    return refined.T.contiguous()


def _refine_block(
    block: slice,
    grid: ColumnGrid,
    columns: Tensor,
    current: Tensor,
    change: Tensor,
    terms: Sequence[RowTerm],
) -> None:
    """Visit neighbouring columns once; ``current`` codes and ``change`` are updated."""
    slope, diagonal = _slope(terms, block, change)
    # Multiplied instead of divided by; where a row or column costs nothing its codes stay.
    per_cost = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    coupling = [term.gram[block, block] for term in terms]
    for i, j in enumerate(range(len(change))[block]):
        best = torch.addcmul(columns[j] + change[j], slope[i], per_cost[i], value=-1)
        code = torch.addcmul(grid.centre[j], best, grid.per_step[j]).round_().clamp_min_(0)
        torch.minimum(code, grid.last, out=code)
        step = (code - current[j]).mul_(grid.scale[j])
        current[j] = code
        change[j] += step
        for term, gram in zip(terms, coupling, strict=True):
            slope[i + 1 :].addr_(gram[i + 1 :, i], term.weights * step)


def _slope(terms: Sequence[RowTerm], block: slice, change: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of both derivatives of the loss increase by the elements of some columns.

    Each is ``[columns, rows]``.
    """
    slope = diagonal = torch.zeros(())
    for term in terms:
        slope = slope + (term.gram[block] @ change).mul_(term.weights)
        diagonal = diagonal + term.gram.diagonal()[block, None] * term.weights
    return slope, diagonal
