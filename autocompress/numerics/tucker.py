"""Tucker decomposition of a matrix whose sides are folded into modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.numerics.tensor_train import even_norms


def fold(matrix: Tensor, out_modes: Sequence[int], in_modes: Sequence[int]) -> Tensor:
    """Pad a matrix ``[out, in]`` with zeros and fold it into ``[o_1, ..., o_d, i_1, ..., i_e]``."""
    padded = pad(
        matrix,
        (0, math.prod(in_modes) - matrix.shape[1], 0, math.prod(out_modes) - matrix.shape[0]),
    )
    return torch.reshape(padded, (*out_modes, *in_modes))


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Unfolding ``[n_mode, product of the others]``."""
    return tensor.permute(mode, *(k for k in range(tensor.ndim) if k != mode)).flatten(1)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Multiply one mode by ``matrix [m, n_mode]``."""
    product: Tensor = torch.tensordot(matrix, tensor, dims=([1], [mode]))
    return product.movedim(0, mode)


def decompose_tucker(
    tensor: Tensor, ranks: Sequence[int]
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Sequentially truncated HOSVD (Vannieuwenhoven et al. 2012, algorithm 1).

    Args:
        tensor: ``[n_1, ..., n_d]``.
        ranks: ``d`` ranks.

    Returns:
        Core ``[r_1, ..., r_d]``, factors ``[n_k, r_k]`` with orthonormal columns, both fp64, and
        the squared error of each cut. The squared error of the whole is their sum, and at most the
        sum over the modes of ``tensor`` itself (their theorem 5.1).
    """
    core, factors, errors = tensor.double(), [], []
    for mode, rank in enumerate(ranks):
        unfolding = unfold(core, mode)
        squares, vectors = torch.linalg.eigh(unfolding @ unfolding.T)
        factors.append(vectors.flip(1)[:, :rank])
        errors.append(float(squares.flip(0)[rank:].clamp_min(0).sum()))
        core = mode_product(core, factors[-1].T, mode)
    return core, factors, errors


def decompose_matrix_tucker(
    weight: Tensor,
    ranks: Sequence[int],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    *,
    scales: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Fit core and factors to a matrix whose rows and columns weigh differently.

    Args:
        weight: ``[out, in]``.
        ranks: one per mode, out modes first.
        out_modes: product at least ``out``.
        in_modes: product at least ``in``.
        scales: one vector ``[n_k]`` per mode: the tensor is multiplied by them before the
            decomposition and the factors divided by them after it.

    Returns:
        Core ``[r_1, ..., r_{d+e}]`` and factors ``[n_k, r_k]`` in fp32, of equal norm.
    """
    tensor = fold(weight.double(), out_modes, in_modes)
    scales = scales or [
        torch.ones(n, dtype=torch.float64, device=weight.device) for n in tensor.shape
    ]
    scales = [scale.to(weight.device).double() for scale in scales]
    for k, scale in enumerate(scales):
        tensor = tensor * scale.reshape([-1 if j == k else 1 for j in range(tensor.ndim)])
    core, factors, _ = decompose_tucker(tensor, ranks)
    unscaled = [factor / scale[:, None] for factor, scale in zip(factors, scales, strict=True)]
    core, *factors = even_norms([core, *unscaled])
    return core.float(), [factor.float() for factor in factors]


def tucker_to_matrix(core: Tensor, factors: Sequence[Tensor], out_order: int) -> Tensor:
    """Multiply core and factors ``[n_k, r_k]`` to a matrix with ``out_order`` modes as rows."""
    tensor = core
    for mode, factor in enumerate(factors):
        tensor = mode_product(tensor, factor, mode)
    return tensor.reshape(math.prod(tensor.shape[:out_order]), -1)
