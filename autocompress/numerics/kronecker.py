"""Kronecker products of positive vectors: the only row and column weights that cores can absorb."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.numerics.metric import Metric
from autocompress.numerics.svd import SHRINKAGE, shrunk

Roots = list[Tensor]  # one vector per mode


def scalings(
    metric: Metric, out_modes: Sequence[int], in_modes: Sequence[int]
) -> list[tuple[Roots, Roots]]:
    """Scales of the rows and columns worth trying: none, of the columns alone, and of both.

    A diagonal that is far from a Kronecker product (token frequencies in the order of the
    vocabulary) is served worse by the nearest one than by none, so that only a fit can tell. Equal
    scalings are listed once.
    """
    ones = (
        [torch.ones(n, dtype=torch.float64) for n in out_modes],
        [torch.ones(n, dtype=torch.float64) for n in in_modes],
    )
    rows, columns = (
        kronecker_roots(metric.rows.cpu(), out_modes),
        kronecker_roots(metric.columns.cpu(), in_modes),
    )
    found: list[tuple[Roots, Roots]] = []
    for candidate in ((ones[0], ones[1]), (ones[0], columns), (rows, columns)):
        if not any(_equal(candidate, other) for other in found):
            found.append(candidate)
    return found


def _equal(one: tuple[Roots, Roots], other: tuple[Roots, Roots]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-6)
        for one_side, other_side in zip(one, other, strict=True)
        for a, b in zip(one_side, other_side, strict=True)
    )


def kronecker_roots(gram: Tensor, modes: Sequence[int]) -> Roots:
    """Vectors ``[n_k]`` whose Kronecker product is near the root of a Gram diagonal, in fp64.

    The logarithm of the diagonal is fitted by a sum over the modes in least squares (its marginal
    means), so that the result is positive whatever the diagonal. Padding counts as average.

    Args:
        gram: ``[n, n]`` or its diagonal ``[n]``.
        modes: product at least ``n``.
    """
    diagonal = shrunk(gram if gram.ndim == 1 else gram.diagonal(), SHRINKAGE)
    logs = 0.5 * diagonal.log()
    size = math.prod(modes)
    logs = torch.cat([logs, logs.mean().expand(size - len(logs))]).reshape(*modes)
    centred = logs - logs.mean()
    return [
        centred.mean([j for j in range(len(modes)) if j != k]).exp()
        if len(modes) > 1
        else centred.exp()
        for k in range(len(modes))
    ]
