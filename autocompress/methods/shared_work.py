"""What many options of one matrix need, computed once for all of them through its problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autocompress.methods.base import MatrixProblem
from autocompress.numerics.factor_rounding import Rounded
from autocompress.numerics.feedback import ColumnGrid, Feedback, round_with_feedback
from autocompress.numerics.metric import Metric
from autocompress.numerics.refinement import RowTerm, refine_codes, row_terms
from autocompress.numerics.rounding import Grid, find_grid
from autocompress.numerics.shrinkage import GramKind, with_grams
from autocompress.numerics.svd import Whitening

MOST_ROUNDED = 2**22  # elements of a matrix at a time: the work takes ten times its bytes


def metric_of(problem: MatrixProblem, gram: GramKind) -> Metric:
    """The problem's metric with Gram matrices of a kind."""
    return problem.once(("metric", gram), lambda: with_grams(problem.metric, gram))


def columns_of(problem: MatrixProblem, gram: GramKind) -> Tensor:
    """Gram matrix ``[in, in]`` of the columns in fp32 where the matrix is, or its diagonal."""
    return metric_of(problem, gram).columns.to(problem.weight.device).float()


def feedback_of(problem: MatrixProblem, gram: GramKind) -> Feedback | None:
    """Error feedback in the Gram matrix of the columns.

    ``None`` where columns do not interact, or the Gram matrix cannot be inverted.
    """

    def compute() -> Feedback | None:
        columns = columns_of(problem, gram)
        return None if columns.ndim == 1 else Feedback.of(columns)

    return problem.once(("feedback", gram), compute)


def terms_of(problem: MatrixProblem, gram: GramKind) -> list[RowTerm]:
    """What a change of each row costs."""
    metric = metric_of(problem, gram)
    return problem.once(("row terms", gram), lambda: row_terms(metric, problem.weight.device))


def grid_of(
    problem: MatrixProblem,
    weight: Tensor,
    gram: GramKind,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
) -> Grid:
    """Scales for ``weight [out, in]``, errors weighted by the energy of the inputs."""
    columns = columns_of(problem, gram)
    importance = columns if columns.ndim == 1 else columns.diagonal()
    return find_grid(
        weight, bits=bits, group_size=group_size, symmetric=symmetric, importance=importance
    )


def whitening_of(problem: MatrixProblem, gram: GramKind) -> Whitening:
    """Both Gram matrices, ready for decompositions."""
    metric, device = metric_of(problem, gram), problem.weight.device
    return problem.once(
        ("whitening", gram),
        lambda: Whitening.of(metric.rows.to(device), metric.columns.to(device)),
    )


def round_grid(
    problem: MatrixProblem,
    weight: Tensor,
    gram: GramKind,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
) -> Rounded:
    """Choose scales for ``weight [out, in]``, and round it on them."""
    grid = grid_of(problem, weight, gram, bits=bits, group_size=group_size, symmetric=symmetric)
    (codes,) = round_on(problem, weight, [grid], gram)
    return grid, codes


def round_on(
    problem: MatrixProblem, weight: Tensor, grids: Sequence[Grid], gram: GramKind
) -> list[Tensor]:
    """Codes uint8 ``[out, in]`` of ``weight`` on each grid, by error feedback, and refined.

    To the nearest values where columns do not interact or the Gram matrix cannot be inverted.
    """
    feedback = feedback_of(problem, gram)
    if feedback is None:
        return [grid.round(weight) for grid in grids]
    terms, columns = terms_of(problem, gram), weight.shape[1]
    parts = []
    at_once = max(1, MOST_ROUNDED // columns)
    for start in range(0, len(weight), at_once):  # rows do not interact
        rows = slice(start, start + at_once)
        stacked = weight[rows].repeat(len(grids), 1)
        grid = ColumnGrid.of([_rows_of(each, rows) for each in grids], columns)
        codes = round_with_feedback(stacked, feedback, grid)
        codes = refine_codes(
            stacked, grid, codes, [RowTerm(term.gram, term.weights[rows]) for term in terms]
        )
        parts.append(codes.reshape(len(grids), -1, columns))
    return list(torch.cat(parts, 1))


def left_by_feedback(problem: MatrixProblem, gram: GramKind, squares: Tensor) -> float:
    """Loss increase to be expected of errors of given size when columns make up for each other.

    ``1/2 sum_ij S_ii v_j e_ij^2``, where ``v_j`` is what error feedback leaves of the energy of a
    column: the errors of the columns as they are rounded are nearly independent (Frantar et al.
    2022, arXiv 2210.17323, section 3, state the update; this is its cost).

    Args:
        problem: the matrix with its metric.
        gram: the kind of Gram matrices.
        squares: ``[out, in]``, mean squared error of each element where it is rounded.
    """
    feedback, rows = feedback_of(problem, gram), metric_of(problem, gram).rows.to(squares)
    columns = columns_of(problem, gram)
    energies = columns if columns.ndim == 1 else columns.diagonal()
    left = energies if feedback is None else feedback.variances
    weights = rows if rows.ndim == 1 else rows.diagonal()
    return 0.5 * float(weights @ (squares @ left))


def _rows_of(grid: Grid, rows: slice) -> Grid:
    return replace(
        grid, scale=grid.scale[rows], zero=None if grid.zero is None else grid.zero[rows]
    )


def gram_label(gram: GramKind) -> str:
    """What a short label of a method says about its Gram matrices: nothing when they are full."""
    return "" if gram == "full" else f" {gram}"
