"""Improving rounded codes, one column at a time, until no single code would be better elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.numerics.feedback import BLOCK_COLUMNS, DAMPING
from autocompress.numerics.metric import Metric
from autocompress.numerics.rounding import Grid

SWEEPS = 2  # on trained matrices two bring three quarters of what many do


@dataclass(frozen=True)
class RowTerm:
    """One term of the damage of a row ``v``: ``weights[v] * d gram d^T``.

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
    weight: Tensor, grid: Grid, codes: Tensor, terms: Sequence[RowTerm], *, sweeps: int = SWEEPS
) -> Tensor:
    """Move each code to where it serves best, given all others; the damage never rises.

    Cyclic coordinate descent (QuantEase, Behdin et al. 2023, arXiv 2309.01885, algorithm 1) from
    given codes instead of from the weights, in blocks of columns, and with the terms of several
    uses of the matrix weighted row by row, which one Gram matrix for all rows cannot do.

    Args:
        weight: ``[out, in]`` in fp32.
        grid: scales and zero points.
        codes: uint8 ``[out, in]`` to start from.
        terms: what a change of a row costs.
        sweeps: how often each column is visited.

    Returns:
        Codes, uint8 ``[out, in]``.
    """
    length = weight.shape[1] // grid.scale.shape[1]
    scale = grid.scale.float().T.repeat_interleave(length, 0)
    centre = (
        grid.centre.T.repeat_interleave(length, 0)
        if isinstance(grid.centre, Tensor)
        else grid.centre
    )
    current = codes.T.contiguous().float()
    columns = weight.T.contiguous()
    change = (current - centre).mul_(scale).sub_(columns)
    diagonal = sum(
        (term.gram.diagonal()[:, None] * term.weights for term in terms), torch.zeros_like(change)
    )
    # Multiplied instead of divided by; where a row or column costs nothing or has no scale its
    # codes stay.
    per_cost = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    per_step = torch.where(scale > 0, 1 / scale, 0.0)
    shift = centre if isinstance(centre, Tensor) else torch.full_like(scale, centre)
    order = torch.argsort(diagonal.mean(1), descending=True, stable=True)
    for _ in range(sweeps):
        for block in torch.split(order, BLOCK_COLUMNS):
            slope = _slope(terms, block, change)
            coupling = [term.gram[block][:, block] for term in terms]
            for i, j in enumerate(block.tolist()):
                best = torch.addcmul(columns[j] + change[j], slope[i], per_cost[j], value=-1)
                code = best.mul_(per_step[j]).add_(shift[j]).round_().clamp_(0, 2**grid.bits - 1)
                code = torch.where(per_step[j] > 0, code, current[j])
                step = (code - current[j]).mul_(scale[j])
                current[j] = code
                change[j] += step
                for term, gram in zip(terms, coupling, strict=True):
                    slope[i + 1 :].addr_(gram[i + 1 :, i], term.weights * step)
    return current.T.to(torch.uint8).contiguous()


def _slope(terms: Sequence[RowTerm], block: Tensor, change: Tensor) -> Tensor:
    """Half the derivative of the damage by the elements of some columns, ``[columns, out]``."""
    first, *others = terms
    slope = (first.gram[block] @ change).mul_(first.weights)
    for term in others:
        slope.addcmul_(term.gram[block] @ change, term.weights)
    return slope
