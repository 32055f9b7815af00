"""Tensor train of a matrix: both sides folded, one core per pair of an out mode and an in mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def fold_pairs(matrix: Tensor, out_modes: Sequence[int], in_modes: Sequence[int]) -> Tensor:
    """Pad ``[out, in]`` with zeros and fold it to ``[o_1 * i_1, ..., o_d * i_d]``.

    The folding is that of Novikov et al. 2015.
    """
    order = len(out_modes)
    padded = pad(
        matrix,
        (0, math.prod(in_modes) - matrix.shape[1], 0, math.prod(out_modes) - matrix.shape[0]),
    )
    paired = padded.reshape(*out_modes, *in_modes).permute(
        [k + side * order for k in range(order) for side in (0, 1)]
    )
    return paired.reshape([o * i for o, i in zip(out_modes, in_modes, strict=True)])


def principal_split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Split ``[m, n]`` best into orthonormal columns ``[m, rank]`` times ``[rank, n]``.

    Returns the two and the squared error. fp64 in, fp64 out; a wide matrix is decomposed through
    its Gram matrix.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
        basis = vectors.flip(1)[:, :rank]
        return basis, basis.T @ matrix, float(squares.flip(0)[rank:].clamp_min(0).sum())
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank, None] * vh[:rank], float(s[rank:].square().sum())


def decompose_train(tensor: Tensor, ranks: Sequence[int]) -> tuple[list[Tensor], list[float]]:
    """TT-SVD (Oseledets 2011, algorithm 1), with ranks given instead of a tolerance.

    Args:
        tensor: ``[n_1, ..., n_d]``.
        ranks: ``d - 1`` ranks; none above what the unfoldings allow.

    Returns:
        Cores ``[r_{k-1}, n_k, r_k]`` in fp64, all but the last with orthonormal columns, and the
        squared error of each cut. The squared error of the whole is their sum, and at most the sum
        over the unfoldings of ``tensor`` itself (theorem 2.2).
    """
    rest, before = tensor.double().flatten(), 1
    cores, errors = [], []
    for mode, rank in zip(tensor.shape, ranks, strict=False):
        basis, rest, error = principal_split(rest.reshape(before * mode, -1), rank)
        cores.append(basis.reshape(before, mode, -1))
        errors.append(error)
        before = cores[-1].shape[2]
    cores.append(rest.reshape(before, tensor.shape[-1], 1))
    return cores, errors


def decompose_matrix_train(
    weight: Tensor,
    ranks: Sequence[int],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    *,
    out_scales: Sequence[Tensor] | None = None,
    in_scales: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Fit a tensor train to a matrix whose rows and columns weigh differently.

    The matrix is scaled by a Kronecker product of vectors on each side (``numerics.kronecker``),
    decomposed, and the scales are divided out again, each from the core of its mode.

    Args:
        weight: ``[out, in]``.
        ranks: ``d - 1`` ranks.
        out_modes: ``d`` modes, product at least ``out``.
        in_modes: ``d`` modes, product at least ``in``.
        out_scales: ``d`` vectors ``[o_k]``; ones when left out.
        in_scales: ``d`` vectors ``[i_k]``; ones when left out.

    Returns:
        Cores ``[r_{k-1}, o_k, i_k, r_k]`` in fp32, of equal norm.
    """
    out_scales = out_scales or [
        torch.ones(o, dtype=torch.float64, device=weight.device) for o in out_modes
    ]
    in_scales = in_scales or [
        torch.ones(i, dtype=torch.float64, device=weight.device) for i in in_modes
    ]
    scales = [
        torch.outer(o.double(), i.double()).flatten().to(weight.device)
        for o, i in zip(out_scales, in_scales, strict=True)
    ]
    tensor = fold_pairs(weight.double(), out_modes, in_modes)
    for k, scale in enumerate(scales):
        tensor = tensor * scale.reshape([-1 if j == k else 1 for j in range(tensor.ndim)])
    cores, _ = decompose_train(tensor, ranks)
    unscaled = [core / scale[:, None] for core, scale in zip(cores, scales, strict=True)]
    return [
        core.reshape(core.shape[0], o, i, core.shape[2]).float()
        for core, o, i in zip(even_norms(unscaled), out_modes, in_modes, strict=True)
    ]


def even_norms(factors: Sequence[Tensor]) -> list[Tensor]:
    """Spread a product's scale evenly over its factors, to stay in the range of half precision."""
    norms = [float(factor.norm()) / math.sqrt(factor.numel()) for factor in factors]
    if not all(norm > 0 for norm in norms):
        return list(factors)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]


def train_to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """Multiply cores ``[r_{k-1}, o_k, i_k, r_k]`` out to the matrix ``[prod o, prod i]``."""
    matrix = cores[0][0]
    for core in cores[1:]:
        rows, columns, _ = matrix.shape
        matrix = (
            torch.tensordot(matrix, core, dims=1)
            .transpose(1, 2)
            .reshape(rows * core.shape[1], columns * core.shape[2], -1)
        )
    return matrix[:, :, 0]
