"""Rounding with error feedback: columns not yet rounded make up for each column's error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.numerics.rounding import Grid

BLOCK_COLUMNS = 32
DAMPING = (
    0.01  # share of the mean diagonal that is added; the value of Frantar et al. 2022, section 4
)
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class ColumnGrid:
    """Grids laid out for work on one column at a time, those of several matrices side by side.

    Rows do not interact in error feedback and refinement, so one matrix on ``k`` grids is ``k``
    matrices above each other, and ``k`` options cost little more steps than one.

    Attributes:
        scale: ``[in, rows]`` in fp32.
        per_step: its reciprocal, 0 where the scale is 0.
        centre: code that stands for zero, ``[in, rows]`` in fp32.
        last: largest code, ``[rows]`` in fp32.
    """

    scale: Tensor
    per_step: Tensor
    centre: Tensor
    last: Tensor

    @classmethod
    def of(cls, grids: Sequence[Grid], columns: int) -> ColumnGrid:
        """Lay out grids of ``[out, groups]`` each, whose rows have ``columns`` elements."""
        parts = [cls.along(grid, columns) for grid in grids]
        scale = torch.cat([part.scale.T for part in parts], 1)
        centre = torch.cat([part.centre.T for part in parts], 1)
        last = [
            scale.new_full((part.scale.shape[0],), 2**grid.bits - 1)
            for part, grid in zip(parts, grids, strict=True)
        ]
        return cls(scale, _reciprocal(scale), centre, torch.cat(last))

    @classmethod
    def along(cls, grid: Grid, length: int) -> ColumnGrid:
        """Take the rows of a grid ``[n, groups]``, of ``length`` elements each, for the columns."""
        scale = grid.scale.float().repeat_interleave(length // grid.scale.shape[1], 1)
        centre = torch.as_tensor(grid.centre).to(scale)
        if centre.ndim:
            centre = centre.repeat_interleave(length // centre.shape[1], 1)
        last = scale.new_full((length,), 2**grid.bits - 1)
        return cls(scale, _reciprocal(scale), centre.expand(scale.shape), last)

    def __getitem__(self, order: Tensor) -> ColumnGrid:
        """The same with the columns in another order."""
        return ColumnGrid(self.scale[order], self.per_step[order], self.centre[order], self.last)


def _reciprocal(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, 0.0)


@dataclass(frozen=True)
class Feedback:
    """What error feedback in one Gram matrix needs; it serves every grid.

    Attributes:
        order: ``[n]``, the columns by falling diagonal of the Gram matrix.
        factor: ``[n, n]`` in fp32 and in that order: row ``i`` right of the diagonal turns the
            error of column ``i`` into what the later columns must make up for.
        variances: ``[n]`` in fp32, in the order of the matrix: what is left of the energy of each
            column when those after it have made up for it.
    """

    order: Tensor
    factor: Tensor
    variances: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Feedback | None:
        """Factorise a Gram matrix ``[n, n]``; ``None`` when it cannot be inverted."""
        order = torch.argsort(gram.diagonal(), descending=True, stable=True)
        factor = inverse_factor(gram[order][:, order])
        if factor is None:
            return None
        left = factor.diagonal().pow(-2).float()
        return cls(
            order,
            (factor / factor.diagonal()[:, None]).float(),
            torch.empty_like(left).index_copy_(0, order, left),
        )


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> Tensor | None:
    """Upper Cholesky factor of the inverse of a damped Gram matrix ``[n, n]``, in fp64.

    With rows and columns in reverse, ``G = L L^T`` for a lower ``L``; its inverse, turned back, is
    the factor, so that the inverse itself is never made. Damping is raised tenfold until the matrix
    can be inverted; ``None`` when it cannot even at ``MOST_DAMPING``.
    """
    reverse = gram.double().flip(0, 1)
    mean = float(reverse.diagonal().mean())
    if not mean > 0:
        return None
    identity = torch.eye(gram.shape[0], dtype=reverse.dtype, device=gram.device)
    while damping <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(reverse + damping * mean * identity)
        if not int(failed):
            upper: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
            if bool(torch.isfinite(upper).all()):
                return upper
        damping *= 10
    return None


def round_with_feedback(weight: Tensor, feedback: Feedback, grid: ColumnGrid) -> Tensor:
    """Round ``weight`` on a given grid so that ``tr(D gram D^T)`` of the change ``D`` stays small.

    Algorithm 1 of Frantar et al. 2022 (GPTQ, arXiv 2210.17323) with columns taken in the order of
    falling diagonal (their "act order"), on scales that are fixed beforehand, and the matrix
    transposed so that a column is contiguous.

    Args:
        weight: ``[rows, in]`` in fp32; for several grids a copy per grid, one above the other.
        feedback: the Gram matrix ``[in, in]``, factorised.
        grid: of the same rows.

    Returns:
        Codes, uint8 ``[rows, in]``.
    """
    order, factor = feedback.order, feedback.factor
    grid, rest = grid[order], weight.T[order]
    codes = torch.empty_like(rest, dtype=torch.uint8)

    def rounded(i: int, aim: Tensor) -> Tensor:
        code = torch.addcmul(grid.centre[i], aim, grid.per_step[i]).round_().clamp_min_(0)
        torch.minimum(code, grid.last, out=code)
        codes[i] = code
        return code.sub_(grid.centre[i]).mul_(grid.scale[i])

    feed_back(rest, factor, rounded)
    unsorted = torch.empty_like(codes)
    unsorted[order] = codes
    return unsorted.T.contiguous()


def feed_back(rest: Tensor, factor: Tensor, rounded: Callable[[int, Tensor], Tensor]) -> None:
    """Round columns one after the other; those to come make up for the error of each.

    Columns of a block make up for each other at once, those after it for all of the block together.

    Args:
        rest: the columns in the order of ``factor``, ``[in, rows]`` in fp32; it is changed.
        factor: see ``Feedback``.
        rounded: given the number of a column and its aim ``[rows]``, what it is rounded to,
            ``[rows]``.
    """
    count = rest.shape[0]
    for start in range(0, count, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, count)
        errors = torch.empty_like(rest[start:end])
        for i in range(start, end):
            error = torch.sub(rest[i], rounded(i, rest[i]), out=errors[i - start])
            if i + 1 < end:
                rest[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        if end < count:
            rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
