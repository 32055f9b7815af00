"""Truncated singular value decomposition of a matrix in the metric of its loss increase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.numerics.metric import MOST_WEIGHTED, Metric
from autocompress.numerics.randomised import Sketching, find_range_to, randomised_svd

MetricKind = Literal["plain", "input", "two_sided"]
Solver = Literal["exact", "randomised"]
# Share of the mean diagonal of a Gram matrix that is added to it before its root is taken:
# directions that the calibration text never excited must still cost something, or the fit would be
# free to blow them up.
SHRINKAGE = 1e-3
# Measured on one core: random projections are faster for a thinner side from this on, ranks up to
# this share of it, and a wider side of at most so many times it.
RANDOMISED_SIDE = 256
RANDOMISED_SHARE = 0.125
RANDOMISED_ASPECT = 8


@dataclass(frozen=True)
class Spectrum:
    """Nested factors: the best approximation of every rank ``r`` is ``left[:r].T @ right[:r]``.

    Attributes:
        left: ``[k, out]`` in fp32.
        right: ``[k, in]`` in fp32.
        values: ``[k]`` singular values in the metric, falling, fp64; the squared error of rank
            ``r`` is the sum of the squares from ``r`` on.
    """

    left: Tensor
    right: Tensor
    values: Tensor


def grams_of(metric: Metric, kind: MetricKind, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices ``(rows, columns)`` that a kind of fit works in; ones for a side it ignores."""
    rows, columns = metric.rows.to(weight.device), metric.columns.to(weight.device)
    if kind == "plain":
        columns = columns.new_ones(columns.shape[0])
    if kind in ("plain", "input"):
        rows = rows.new_ones(rows.shape[0])
    return rows, columns


@dataclass(frozen=True)
class Whitening:
    """Gram matrices in the form that decomposing needs; made once for all changes of a matrix.

    Attributes:
        rows: factor ``L [out, out]`` with ``rows = L L^T``, or the root ``[out]`` of a diagonal.
        columns: factor ``K [in, in]`` of the columns, or the root of a diagonal.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, *, shrinkage: float = SHRINKAGE) -> Whitening:
        """Factorise two Gram matrices, or diagonals, after shrinking them; fp64.

        Raises:
            MethodError: one has negative eigenvalues that are no matter of rounding.
        """
        return cls(_factor(shrunk(rows, shrinkage)), _factor(shrunk(columns, shrinkage)))

    def apply(self, weight: Tensor) -> Tensor:
        """Whiten ``weight [out, in]``: ``L^T W K``, whose squared norm is its loss, in fp64."""
        return self.apply_rows(self.apply_columns(weight))

    def apply_columns(self, weight: Tensor) -> Tensor:
        """``W K``."""
        return _times(weight.double(), self.columns)

    def apply_rows(self, weight: Tensor) -> Tensor:
        """``L^T W``."""
        return _times(weight.double().T, self.rows).T

    def inner_products(self, weight: Tensor) -> Tensor:
        """``W^T L L^T W``: ``[in, in]``, some rows of a tall matrix at a time where it may be."""
        if self.rows.ndim == 2:
            whitened = self.apply_rows(weight)
            return whitened.T @ whitened
        total = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
        at_once = max(1, MOST_WEIGHTED // weight.shape[1])
        parts = torch.split(weight, at_once)
        for part, scales in zip(parts, torch.split(self.rows, at_once), strict=True):
            whitened = _times(part.double().T, scales)
            total.addmm_(whitened, whitened.T)
        return total


def decompose(
    weight: Tensor, rows: Tensor, columns: Tensor, *, shrinkage: float = SHRINKAGE
) -> Spectrum:
    """Decompose ``weight`` so that truncation minimises the loss increase at every rank.

    See ``decompose_whitened``; both Gram matrices may be diagonals.

    Args:
        weight: ``[out, in]``.
        rows: ``[out, out]``, or its diagonal ``[out]``.
        columns: ``[in, in]``, or its diagonal ``[in]``.
        shrinkage: share of the mean diagonal that is added to both Gram matrices.
    """
    return decompose_whitened(weight, Whitening.of(rows, columns, shrinkage=shrinkage))


def rank_within(
    weight: Tensor, whitening: Whitening, tolerance: float, sketching: Sketching | None = None
) -> tuple[int, float]:
    """The smallest rank whose error is at most a share of the matrix's norm, both in the metric.

    Args:
        weight: ``[out, in]``.
        whitening: the metric.
        tolerance: share of the norm, in [0, 1); the squared error is at most its square.
        sketching: find singular values within the range that random projections reach, which
            grows until the tolerance is kept, by blocks of 32 (``find_range_to``); all by an exact
            decomposition when left out.

    Returns:
        The rank, at least 1, and the share that it leaves.
    """
    whole = whitening.apply(weight)
    if sketching is None:
        values = torch.linalg.svdvals(whole)
    else:
        basis = find_range_to(
            whole,
            tolerance,
            kind=sketching.kind,
            power_iterations=sketching.power_iterations,
        )
        values = torch.linalg.svdvals(basis.T @ whole)
    total = whole.square().sum()
    if not float(total) > 0:
        return 1, 0.0
    left = ((total - values.square().cumsum(0)).clamp_min(0) / total).sqrt()
    enough = (left <= tolerance).nonzero()
    # Where rounding leaves a hair above a tolerance of zero, all that there is.
    rank = int(enough[0]) + 1 if len(enough) else len(values)
    return rank, float(left[rank - 1])


def decompose_whitened(
    weight: Tensor,
    whitening: Whitening,
    *,
    most_rank: int | None = None,
    sketching: Sketching | None = None,
) -> Spectrum:
    """Decompose ``weight`` so that truncation minimises the loss increase at every rank.

    Truncation minimises ``tr(rows D columns D^T)`` of the change ``D``. With factors ``rows = L
    L^T`` and ``columns = K K^T``, ``L^T W K = U S V^T`` truncated and transformed back is the
    optimum (Eckart and Young 1936, in the metric of the factors; the input side alone is SVD-LLM,
    Wang et al. 2024, arXiv 2403.07378). Only the thinner side is decomposed: for ``out >= in`` the
    right vectors ``V`` suffice, since ``W K V_r V_r^T K^-1`` is the same approximation, and tall
    embeddings cost little. They are eigenvectors, so values below 1e-8 of the largest are lost to
    rounding, or random projections where few are wanted of many. Everything is in fp64.

    Args:
        weight: ``[out, in]``.
        whitening: the metric.
        most_rank: the largest rank wanted; all when left out.
        sketching: find so many by such random projections, whether that is faster or not.
    """
    if weight.shape[0] < weight.shape[1]:
        flipped = Whitening(whitening.columns, whitening.rows)
        other = decompose_whitened(weight.T, flipped, most_rank=most_rank, sketching=sketching)
        return Spectrum(other.right, other.left, other.values)
    half = whitening.apply_columns(weight)
    faster = most_rank is not None and randomised_wins(weight.shape, most_rank)
    if most_rank is not None and (sketching is not None or faster):
        how = sketching or Sketching()
        _, values, transposed = randomised_svd(
            whitening.apply_rows(half),
            most_rank,
            kind=how.kind,
            oversampling=how.oversampling,
            power_iterations=how.power_iterations,
        )
        vectors = transposed.T
    else:
        squares, vectors = torch.linalg.eigh(whitening.inner_products(half))
        values = squares.flip(0).clamp_min(0).sqrt()[:most_rank]
        vectors = vectors.flip(1)[:, :most_rank]
    left, right = (half @ vectors).T, _solve(vectors.T, whitening.columns)
    balance = (
        right.norm(dim=1) / left.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    ).sqrt()
    balance = torch.where((balance > 0) & torch.isfinite(balance), balance, 1.0)[:, None]
    return Spectrum(
        (left * balance).float().contiguous(), (right / balance).float().contiguous(), values
    )


def randomised_wins(shape: tuple[int, ...], rank: int) -> bool:
    """Whether few singular values of so large a matrix are found faster by random projections."""
    thin, wide = sorted(shape)
    large = thin >= RANDOMISED_SIDE and wide <= RANDOMISED_ASPECT * thin
    return large and rank <= RANDOMISED_SHARE * thin


def _factor(gram: Tensor) -> Tensor:
    if gram.ndim == 1:
        return gram.clamp_min(0).sqrt()
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise MethodError(
            "Gram matrix", got="negative eigenvalues", wanted="a positive semi-definite matrix"
        )
    return lower


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    return matrix * factor if factor.ndim == 1 else matrix @ factor


def _solve(matrix: Tensor, factor: Tensor) -> Tensor:
    """``matrix [n, m]`` times the inverse of a factor."""
    if factor.ndim == 1:
        return matrix / factor
    solution: Tensor = torch.linalg.solve_triangular(factor, matrix, upper=False, left=False)
    return solution


def shrunk(gram: Tensor, shrinkage: float) -> Tensor:
    """Add a share of its mean diagonal to ``gram [n, n]`` or ``[n]``; fp64, ones if it is zero."""
    gram = gram.double()
    mean = gram.mean() if gram.ndim == 1 else gram.diagonal().mean()
    if not float(mean) > 0:
        return gram.new_ones(gram.shape[0])
    if gram.ndim == 1:
        return gram + shrinkage * mean
    return gram + shrinkage * mean * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
