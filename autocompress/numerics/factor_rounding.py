"""Rounding of two factors ``left.T @ right`` to few bits, each with regard to the other."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.numerics.feedback import feedback_codes, round_with_feedback
from autocompress.numerics.metric import apply_gram
from autocompress.numerics.rounding import Grid, find_grid, symmetric_centre

FACTOR_GROUPS = {
    8: 0,
    4: 64,
}  # most neighbours along a rank vector that share a scale; 0 for the whole vector


def round_factors(
    weight: Tensor, right: Tensor, columns: Tensor, *, bits: int, groups: tuple[int, int]
) -> tuple[tuple[Grid, Tensor], tuple[Grid, Tensor]]:
    """Round the right factor, refit the left one to what the right has become, and round it too.

    Both are rounded with error feedback where that is defined: the right factor along ``in`` in the
    Gram matrix of the inputs, the left one across rank vectors in the Gram matrix of the right
    factor's outputs.

    Args:
        weight: ``[out, in]`` in fp32.
        right: ``[rank, in]`` in fp32.
        columns: Gram matrix ``[in, in]`` of the inputs, or its diagonal ``[in]``.
        bits: 4 or 8.
        groups: group sizes of the left and the right factor.

    Returns:
        Grid and codes of left ``[rank, out]`` and of right ``[rank, in]``.
    """
    columns = columns.float()
    diagonal = columns if columns.ndim == 1 else columns.diagonal()
    right_grid = find_grid(
        right, bits=bits, group_size=groups[1], symmetric=True, importance=diagonal
    )
    right_codes = (
        right_grid.round(right)
        if columns.ndim == 1
        else round_with_feedback(right, columns, right_grid)
    )
    rounded = right_grid.dequantize(right_codes)
    left, gram = refit_left(weight, rounded, columns)
    left_grid = find_grid(left, bits=bits, group_size=groups[0], symmetric=True)
    length = left.shape[1] // left_grid.scale.shape[1]
    scales = left_grid.scale.float().repeat_interleave(length, 1)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    centre = symmetric_centre(bits)
    codes = feedback_codes(
        left[order],
        gram[order][:, order],
        [scales[i] for i in order.tolist()],
        [centre] * len(order),
        last_code=2**bits - 1,
    )
    if codes is None:
        return (left_grid, left_grid.round(left)), (right_grid, right_codes)
    left_codes = torch.empty_like(codes)
    left_codes[order] = codes
    return (left_grid, left_codes), (right_grid, right_codes)


def refit_left(weight: Tensor, right: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left factor ``[rank, out]`` that fits a given right one best, and its Gram matrix.

    It minimises ``tr(D columns D^T)``: solves ``(right columns right^T) left = right columns
    weight^T`` in fp64. The matrix on the left ``[rank, rank]`` is the Gram matrix of what the left
    factor is fed. A hair of its mean diagonal is added, in case rank vectors depend on each other.
    """
    right64 = right.double()
    weighted = apply_gram(columns.double(), right64.T).T
    gram = weighted @ right64.T
    ridge = 1e-10 * float(gram.diagonal().mean()) or 1.0
    system = gram + ridge * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    left = torch.linalg.solve(system, weighted @ weight.double().T)
    return left.float(), gram.float()
