"""Kronecker products of small matrices: the only changes of coordinates that cores can absorb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.numerics.metric import Metric
from autocompress.numerics.svd import SHRINKAGE, shrunk

SWEEPS = 8  # of the power method for the nearest Kronecker product; the fit is flat after a few
# Share of the mean diagonal that is added to each factor of the nearest Kronecker product of two
# roots: a factor may be singular where the whole is not.
FACTOR_SHRINKAGE = 1e-2


@dataclass(frozen=True)
class KroneckerWhitening:
    """Coordinates ``(R_1 x .. x R_d) W (C_1 x .. x C_e)`` in which a metric is nearly the identity.

    Attributes:
        rows: symmetric matrices ``R_k [o_k, o_k]`` in fp32, or diagonals ``[o_k]``.
        columns: symmetric matrices ``C_k [i_k, i_k]``, or diagonals ``[i_k]``.
        rows_inverse: their inverses.
        columns_inverse: their inverses.
    """

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    rows_inverse: tuple[Tensor, ...]
    columns_inverse: tuple[Tensor, ...]


def gram_roots(metric: Metric) -> tuple[Tensor, Tensor]:
    """Roots of both Gram matrices of a metric, ``[n, n]`` or diagonal ``[n]``.

    In fp32 throughout: they serve to choose coordinates, in which any fit is exact.
    """
    return _root(metric.rows), _root(metric.columns)


def _root(gram: Tensor) -> Tensor:
    gram = shrunk(gram, SHRINKAGE).float()
    if gram.ndim == 1:
        return gram.sqrt()
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def root_whitening(
    roots: tuple[Tensor, Tensor],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    device: torch.device,
) -> KroneckerWhitening:
    """The coordinates of the Kronecker products nearest to the roots of two Gram matrices.

    The nearest to the root serves better than the root of the nearest: its squares are not governed
    by the few strongest directions.
    """
    sides = []
    for root, modes in zip(roots, (out_modes, in_modes), strict=True):
        pairs = [_well_conditioned(factor) for factor in nearest_product(root.to(device), modes)]
        sides.append((tuple(root for root, _ in pairs), tuple(inverse for _, inverse in pairs)))
    (rows, rows_inverse), (columns, columns_inverse) = sides
    return KroneckerWhitening(rows, columns, rows_inverse, columns_inverse)


def _well_conditioned(factor: Tensor) -> tuple[Tensor, Tensor]:
    """A positive factor ``[n, n]`` or ``[n]``, its least directions raised, and its inverse."""
    values, vectors = (factor, None) if factor.ndim == 1 else torch.linalg.eigh(factor)
    raised = values.square() + FACTOR_SHRINKAGE * values.square().mean()
    values = torch.where(raised > 0, raised, 1.0).sqrt()
    if vectors is None:
        return values, 1 / values
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def nearest_product(matrix: Tensor, modes: Sequence[int]) -> list[Tensor]:
    """Symmetric factors ``[n_k, n_k]`` whose Kronecker product is nearest to a positive matrix.

    Rearranged, a Kronecker product is a tensor of rank one (Van Loan and Pitsianis 1993), which the
    higher-order power method finds; two factors are its singular vectors. All factors are of equal
    norm. The nearest product of a positive matrix has positive factors.

    Args:
        matrix: ``[n, n]``, or its diagonal ``[n]``, for which the factors are diagonals ``[n_k]``
            too; padded with zeros.
        modes: product at least ``n``.
    """
    missing = math.prod(modes) - matrix.shape[0]
    if matrix.ndim == 1:
        tensor = pad(matrix, (0, missing)).reshape(*modes)
        return [vector.abs() for vector in _rank_one(tensor)]
    order = len(modes)
    tensor = pad(matrix, (0, missing, 0, missing)).reshape(*modes, *modes)
    paired = tensor.permute([k + side * order for k in range(order) for side in (0, 1)])
    factors = [
        vector.reshape(n, n)
        for vector, n in zip(_rank_one(paired.reshape([n * n for n in modes])), modes, strict=True)
    ]
    return [(factor + factor.T) * (0.5 * float(factor.trace().sign())) for factor in factors]


def _rank_one(tensor: Tensor) -> list[Tensor]:
    """Vectors ``[n_k]`` of equal norm whose outer product is near ``tensor [n_1, ..., n_d]``."""
    vectors = [
        tensor.sum([j for j in range(tensor.ndim) if j != k]) if tensor.ndim > 1 else tensor
        for k in range(tensor.ndim)
    ]
    norm = tensor.new_ones(())
    for _ in range(SWEEPS if tensor.ndim > 1 else 1):
        for k in range(tensor.ndim):
            rest = tensor
            for j in reversed(range(tensor.ndim)):
                if j != k:
                    rest = torch.tensordot(rest, vectors[j], dims=([j], [0]))
            norm = rest.norm()
            vectors[k] = rest / norm.clamp_min(torch.finfo(rest.dtype).tiny)
    return [vector * norm.pow(1 / tensor.ndim) for vector in vectors]


def apply_product(factors: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """Multiply ``matrix [prod n_k, m]`` from the left by the Kronecker product of ``[m_k, n_k]``.

    The product itself is never built. Diagonal factors may be given as diagonals ``[n_k]``.
    """
    result, before = matrix, 1
    for factor in factors:
        result = multiply_mode(result.reshape(before, factor.shape[-1], -1), factor, 1)
        before *= factor.shape[0]
    return result.reshape(before, matrix.shape[1])


def multiply_mode(tensor: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiply a dimension of size ``n`` by ``factor [m, n]``, or by a diagonal ``[n]``."""
    if factor.ndim == 1:
        return tensor * factor.reshape([-1 if j == dim else 1 for j in range(tensor.ndim)])
    product: Tensor = torch.tensordot(factor, tensor, dims=([1], [dim]))
    return product.movedim(0, dim)
