"""Rounding with error feedback: columns not yet rounded make up for each column's error."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.numerics.rounding import Grid

BLOCK_COLUMNS = 32
DAMPING = (
    0.01  # share of the mean diagonal that is added; the value of Frantar et al. 2022, section 4
)
MOST_DAMPING = 1.0


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> Tensor | None:
    """Upper Cholesky factor of the inverse of a damped Gram matrix ``[n, n]``, in fp64.

    Damping is raised tenfold until the matrix can be inverted; ``None`` when it cannot even at
    ``MOST_DAMPING``.
    """
    gram = gram.double()
    upper: Tensor
    mean = float(gram.diagonal().mean())
    if not mean > 0:
        return None
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    while damping <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(gram + damping * mean * identity)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper
        damping *= 10
    return None


def round_with_feedback(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Round ``weight`` on a given grid so that ``tr(D gram D^T)`` of the change ``D`` stays small.

    Algorithm 1 of Frantar et al. 2022 (GPTQ, arXiv 2210.17323) with columns taken in the order of
    falling diagonal (their "act order"), on scales that are fixed beforehand, and the matrix
    transposed so that a column is contiguous. Falls back to the nearest values when the Gram matrix
    cannot be inverted.

    Args:
        weight: ``[out, in]`` in fp32.
        gram: ``[in, in]``.
        grid: scales and zero points; ``[out, groups]``, a group being neighbours in a row.

    Returns:
        Codes, uint8 ``[out, in]``.
    """
    groups = grid.scale.shape[1]
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    scale = grid.scale.float().T.contiguous()
    centre = grid.centre.T.contiguous() if isinstance(grid.centre, Tensor) else grid.centre
    group_of = torch.arange(weight.shape[1], device=weight.device) // (weight.shape[1] // groups)
    column_scale = scale.expand(groups, -1) if groups == 1 else scale
    codes = feedback_codes(
        weight.T[order],
        gram[order][:, order],
        [column_scale[g] for g in group_of[order].tolist()],
        [centre[g] if isinstance(centre, Tensor) else centre for g in group_of[order].tolist()],
        last_code=2**grid.bits - 1,
    )
    if codes is None:
        return grid.round(weight)
    unsorted = torch.empty_like(codes)
    unsorted[order] = codes
    return unsorted.T.contiguous()


def feedback_codes(
    columns: Tensor,
    gram: Tensor,
    scales: list[Tensor],
    centres: list[Tensor | float],
    *,
    last_code: int,
) -> Tensor | None:
    """Round columns one after the other, each with its own scales.

    Args:
        columns: ``[n, out]``, the columns of a matrix ``[out, n]`` in the order in which they are
            to be rounded; fp32.
        gram: ``[n, n]`` in the same order.
        scales: ``n`` tensors ``[out]``.
        centres: ``n`` zero points, tensors ``[out]`` or numbers.
        last_code: largest code.

    Returns:
        Codes, uint8 ``[n, out]``, or ``None`` when the Gram matrix cannot be inverted.
    """
    factor = inverse_factor(gram)
    if factor is None:
        return None
    factor = factor.to(columns.dtype)
    # The rows of the factor divided by its diagonal turn a column's error into what the later
    # columns must make up for.
    factor = factor / factor.diagonal()[:, None]
    rest = columns.clone()
    codes = torch.empty(columns.shape, dtype=torch.uint8, device=columns.device)
    count = columns.shape[0]
    for start in range(0, count, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, count)
        errors = torch.empty(
            end - start, columns.shape[1], dtype=columns.dtype, device=columns.device
        )
        for i in range(start, end):
            column, scale = rest[i], scales[i]
            code = (
                torch.where(scale > 0, column / scale, 0.0)
                .add_(centres[i])
                .round_()
                .clamp_(0, last_code)
            )
            codes[i] = code
            error = torch.sub(column, (code - centres[i]).mul_(scale), out=errors[i - start])
            if i + 1 < end:
                rest[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        if end < count:
            rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return codes
