"""Kronecker products of positive vectors: the only weights of rows and columns that fold into the cores of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.numerics.svd import SHRINKAGE, shrunk


def kronecker_roots(gram: Tensor, modes: Sequence[int]) -> list[Tensor]:
    """Vectors ``[n_k]`` whose Kronecker product is near the root of a Gram matrix's diagonal, in fp64.

    The logarithm of the diagonal is fitted by a sum over the modes in least squares (its marginal means), so that the
    result is positive whatever the diagonal. Padding counts as average.

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
        centred.mean([j for j in range(len(modes)) if j != k]).exp() if len(modes) > 1 else centred.exp()
        for k in range(len(modes))
    ]
