"""Randomised low-rank approximation: a matrix is known by its products with a few random vectors.

Halko, Martinsson and Tropp 2011 (arXiv 0909.4061). Everything is in the type and on the device of
the matrix; seeds are explicit, and drawn on the CPU so that they mean the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

SketchKind = Literal["gaussian", "hadamard"]
OVERSAMPLING = (
    16  # random vectors beyond the rank; the paper takes 5 to 10, multiples of 8 are fast
)
POWER_ITERATIONS = (
    3  # trained weights fall off slowly: each halves what the error is above the least
)
SKETCHES = get_args(SketchKind)
_BLOCK_ELEMENTS = 2**22  # elements transformed at a time by the Hadamard sketch


@dataclass(frozen=True)
class Sketching:
    """How random projections look for the range of a matrix.

    Attributes:
        kind: what is drawn, see ``sketch``.
        oversampling: random vectors beyond the rank.
        power_iterations: products with the matrix and its transpose before the range is taken.
    """

    kind: SketchKind = "gaussian"
    oversampling: int = OVERSAMPLING
    power_iterations: int = POWER_ITERATIONS


def sketch(matrix: Tensor, size: int, *, kind: SketchKind, seed: int) -> Tensor:
    """Return ``matrix [m, n]`` times ``size`` random vectors: ``[m, size]``.

    ``gaussian`` stores them, ``n * size`` numbers. ``hadamard`` is the subsampled randomised
    transform of section 4.6 with the Walsh-Hadamard transform for the Fourier transform: signs are
    flipped, rows transformed, ``size`` of their elements kept. It stores ``n`` signs and ``size``
    indices; rows are padded to the next power of two, a block of them at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = matrix.shape[1]
    if kind == "gaussian":
        vectors = torch.randn(columns, size, generator=generator, dtype=matrix.dtype)
        return matrix @ vectors.to(matrix.device)
    padded = 1 << max(columns - 1, 1).bit_length()
    signs = (torch.randint(2, (columns,), generator=generator) * 2 - 1).to(matrix)
    kept = torch.randperm(padded, generator=generator)[:size].to(matrix.device)
    rows = max(1, _BLOCK_ELEMENTS // padded)
    return torch.cat(
        [
            walsh_hadamard(torch.nn.functional.pad(part * signs, (0, padded - columns)))[:, kept]
            for part in matrix.split(rows)  # type: ignore[no-untyped-call]
        ]
    )


def walsh_hadamard(rows: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of each row of ``[m, n]``, ``n`` a power of two."""
    count, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.reshape(count, -1, 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack((first + second, first - second), 2)
        half *= 2
    return rows.reshape(count, size) / math.sqrt(size)


def find_range(
    matrix: Tensor,
    size: int,
    *,
    kind: SketchKind = "gaussian",
    power_iterations: int = POWER_ITERATIONS,
    seed: int = 0,
) -> Tensor:
    """Orthonormal ``[m, size]`` whose span holds nearly all of ``matrix [m, n]``.

    Algorithm 4.4 (randomised subspace iteration, made stable by QR), for the Hadamard sketch
    algorithm 4.5 in its first step.
    """
    basis = _orthonormal(sketch(matrix, size, kind=kind, seed=seed))
    for _ in range(power_iterations):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    return basis


def find_range_to(
    matrix: Tensor,
    tolerance: float,
    *,
    block: int = 32,
    kind: SketchKind = "gaussian",
    power_iterations: int = POWER_ITERATIONS,
    seed: int = 0,
) -> Tensor:
    """Orthonormal ``[m, k]`` that leaves at most ``tolerance`` of the norm, ``k`` found on the way.

    Algorithm 4.2 in blocks: what is left of the matrix is sketched, and its range added, until its
    Frobenius norm is at most ``tolerance`` times the matrix's. Here the norm is known, being that
    of the matrix less that of its projection, and is not estimated from random vectors.

    Args:
        matrix: ``[m, n]``.
        tolerance: share of the Frobenius norm, in [0, 1).
        block: vectors added at a time, so that ``k`` is a multiple or the smaller side.
        kind: of each block's sketch.
        power_iterations: of each block.
        seed: of the first block; the next ones count up.
    """
    whole = float(matrix.double().square().sum())
    rest, bases, found = matrix, [matrix.new_zeros(matrix.shape[0], 0)], 0
    while found < min(matrix.shape) and float(rest.double().square().sum()) > tolerance**2 * whole:
        size = min(block, min(matrix.shape) - found)
        basis = find_range(
            rest, size, kind=kind, power_iterations=power_iterations, seed=seed + found
        )
        known = torch.cat(bases, 1)
        basis = _orthonormal(basis - known @ (known.T @ basis))
        rest = rest - basis @ (basis.T @ rest)
        bases.append(basis)
        found += size
    return torch.cat(bases, 1)


def randomised_svd(
    matrix: Tensor,
    rank: int,
    *,
    kind: SketchKind = "gaussian",
    oversampling: int = OVERSAMPLING,
    power_iterations: int = POWER_ITERATIONS,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values (algorithm 5.1).

    Returns ``[m, rank]``, ``[rank]`` and ``[rank, n]``.

    The expected error in the Frobenius norm is at most ``sqrt(1 + rank / (oversampling - 1))``
    times the least there is without power iterations (theorem 10.5), and falls to it with them.
    """
    size = min(rank + oversampling, *matrix.shape)
    basis = find_range(matrix, size, kind=kind, power_iterations=power_iterations, seed=seed)
    # The small side by its Gram matrix would square the condition; its QR keeps it.
    orthonormal, triangle = torch.linalg.qr((basis.T @ matrix).T)
    left, values, right = torch.linalg.svd(triangle.T, full_matrices=False)
    return basis @ left[:, :rank], values[:rank], (right @ orthonormal.T)[:rank]


def _orthonormal(vectors: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(vectors)[0]
    return basis
