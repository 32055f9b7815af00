"""Rounding of two factors ``left.T @ right`` to few bits, each with regard to the other."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.numerics.feedback import ColumnGrid, Feedback, round_with_feedback
from autocompress.numerics.metric import apply_gram
from autocompress.numerics.rounding import Grid, find_grid, largest_group
from autocompress.numerics.svd import SHRINKAGE, shrunk

FACTOR_GROUPS = {
    8: 0,
    4: 64,
}  # most neighbours along a rank vector that share a scale; 0 for the whole vector
Rounded = tuple[Grid, Tensor]  # a grid, and codes on it


def factor_groups(shape: tuple[int, int], bits: int) -> tuple[int, int]:
    """Group sizes of left and right factor of a matrix ``[out, in]``; 0 for whole vectors."""
    most = FACTOR_GROUPS.get(bits, 0)
    return (largest_group(shape[0], most), largest_group(shape[1], most)) if most else (0, 0)


def round_right(
    right: Tensor, columns: Tensor, feedback: Feedback | None, *, bits: int, group_size: int
) -> Rounded:
    """Round the right factor, each rank vector by itself, so that any rank may be cut from it.

    Args:
        right: ``[rank, in]`` in fp32.
        columns: Gram matrix ``[in, in]`` of the inputs, or its diagonal ``[in]``.
        feedback: that Gram matrix, factorised; to the nearest values without.
        bits: 4 or 8.
        group_size: along a rank vector; 0 for the whole vector.
    """
    importance = columns if columns.ndim == 1 else columns.diagonal()
    grid = find_grid(
        right, bits=bits, group_size=group_size, symmetric=True, importance=importance.float()
    )
    if feedback is None:
        return grid, grid.round(right)
    return grid, round_with_feedback(right, feedback, ColumnGrid.of([grid], right.shape[1]))


def round_left(
    weight: Tensor, right: Tensor, columns: Tensor, *, bits: int, group_size: int
) -> Rounded:
    """Round the left factor ``[rank, out]`` that fits ``weight`` best beside a given right one.

    With error feedback across rank vectors, in the Gram matrix of the right factor's outputs.

    Args:
        weight: ``[out, in]`` in fp32.
        right: ``[rank, in]`` in fp32, as it is stored.
        columns: Gram matrix ``[in, in]`` of the inputs, or its diagonal ``[in]``.
        bits: 4 or 8.
        group_size: along a rank vector; 0 for the whole vector.
    """
    left, gram = refit_left(weight, right, columns)
    grid = find_grid(left, bits=bits, group_size=group_size, symmetric=True)
    feedback = Feedback.of(gram)
    if feedback is None:
        return grid, grid.round(left)
    codes = round_with_feedback(left.T, feedback, ColumnGrid.along(grid, left.shape[1]))
    return grid, codes.T.contiguous()


def refit_left(weight: Tensor, right: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left factor ``[rank, out]`` that fits a given right one best, and its Gram matrix.

    It minimises ``tr(D columns D^T)``: solves ``(right columns right^T) left = right columns
    weight^T`` in fp64, with the Gram matrix shrunk as in the decomposition. The matrix on the left
    ``[rank, rank]`` is the Gram matrix of what the left factor is fed. A hair of its mean diagonal
    is added, in case rank vectors depend on each other.
    """
    right64 = right.double()
    weighted = apply_gram(shrunk(columns, SHRINKAGE), right64.T).T
    gram = weighted @ right64.T
    ridge = 1e-10 * float(gram.diagonal().mean()) or 1.0
    system = gram + ridge * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    left = torch.linalg.solve(system, weighted @ weight.double().T)
    return left.float(), gram.float()
