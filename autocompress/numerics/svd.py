"""Truncated singular value decomposition of a matrix in the metric of its damage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from autocompress.numerics.metric import Metric, apply_gram, root_and_inverse

MetricKind = Literal["plain", "input", "two_sided"]
# Share of the mean diagonal of a Gram matrix that is added to it before its root is taken:
# directions that the calibration text never excited must still cost something, or the fit would be
# free to blow them up.
SHRINKAGE = 1e-3


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


def decompose(
    weight: Tensor, rows: Tensor, columns: Tensor, *, shrinkage: float = SHRINKAGE
) -> Spectrum:
    """Decompose ``weight`` so that truncation minimises the damage at every rank.

    Truncation minimises ``tr(rows D columns D^T)`` of the change ``D``. With ``R`` and ``C`` the
    roots of the two Gram matrices, ``R W C = U S V^T`` truncated and transformed back is the
    optimum (Eckart and Young 1936, in the metric of the roots; the input side alone is SVD-LLM,
    Wang et al. 2024, arXiv 2403.07378). Only the thinner side is decomposed: for ``out >= in`` the
    eigenvectors ``V`` of ``C W^T rows W C`` suffice, since ``W C V_r V_r^T C^-1`` is the same
    approximation, and tall embeddings cost little. Values below 1e-8 of the largest are lost to
    rounding. Everything is computed in fp64.

    Args:
        weight: ``[out, in]``.
        rows: ``[out, out]``, or its diagonal ``[out]``.
        columns: ``[in, in]``, or its diagonal ``[in]``.
        shrinkage: share of the mean diagonal that is added to both Gram matrices.
    """
    if weight.shape[0] < weight.shape[1]:
        other = decompose(weight.T, columns, rows, shrinkage=shrinkage)
        return Spectrum(other.right, other.left, other.values)
    matrix = weight.double()
    root, inverse = root_and_inverse(columns, shrinkage=shrinkage)
    whitened = apply_gram(root, matrix.T).T
    squares, vectors = torch.linalg.eigh(whitened.T @ apply_gram(shrunk(rows, shrinkage), whitened))
    values, vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    left, right = (whitened @ vectors).T, apply_gram(inverse, vectors).T
    balance = (
        right.norm(dim=1) / left.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    ).sqrt()
    balance = torch.where((balance > 0) & torch.isfinite(balance), balance, 1.0)[:, None]
    return Spectrum(
        (left * balance).float().contiguous(), (right / balance).float().contiguous(), values
    )


def shrunk(gram: Tensor, shrinkage: float) -> Tensor:
    """Add a share of its mean diagonal to ``gram [n, n]`` or ``[n]``; fp64, ones if it is zero."""
    gram = gram.double()
    mean = gram.mean() if gram.ndim == 1 else gram.diagonal().mean()
    if not float(mean) > 0:
        return gram.new_ones(gram.shape[0])
    if gram.ndim == 1:
        return gram + shrinkage * mean
    return gram + shrinkage * mean * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
