"""A matrix as a canonical polyadic decomposition, used without being multiplied out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.layers.folded import FoldedMatrix
from autocompress.layers.packed import Cores
from autocompress.numerics.tensors.cp import CpForm, khatri_rao


class CpMatrix(FoldedMatrix):
    """``W[o, i] = sum_r A_1[o_1, r] .. A_d[o_d, r] B_1[i_1, r] .. B_e[i_e, r]``, both sides folded.

    Attributes:
        out_factors: factors ``[o_k, r]``.
        in_factors: factors ``[i_k, r]``.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        rank: int,
        out_modes: Sequence[int],
        in_modes: Sequence[int],
        bits: int,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            out_features,
            in_features,
            out_modes=out_modes,
            in_modes=in_modes,
            bias=bias,
            dtype=dtype,
        )
        self.rank = rank
        self.out_factors = Cores(((n, rank) for n in out_modes), bits=bits, dtype=dtype)
        self.in_factors = Cores(((n, rank) for n in in_modes), bits=bits, dtype=dtype)

    @property
    def form(self) -> CpForm:
        """See ``FoldedMatrix``."""
        return CpForm((self.rank,), self.out_modes, self.in_modes)

    def form_cores(self) -> list[Tensor]:
        """See ``FoldedMatrix``."""
        return [*self.out_factors.read(torch.float32), *self.in_factors.read(torch.float32)]

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, ``[..., out]`` in the dtype of ``x [..., in]``, through the rank."""
        ranks = _project(self.padded(x), self.in_factors.read(x.dtype))
        return self.unpadded(_expand(ranks, self.out_factors.read(x.dtype)), x)

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` from rows of the factors."""
        digits = torch.unravel_index(ids.flatten(), self.out_modes)
        factors = self.out_factors.read(torch.float32)
        weights = factors[0][digits[0]]
        for factor, digit in zip(factors[1:], digits[1:], strict=True):
            weights = weights * factor[digit]
        return self.looked_up(_expand(weights, self.in_factors.read(torch.float32)), ids)


def _project(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply ``x [n, prod n_k]`` by the Khatri-Rao product of ``[n_k, r]``: ``[n, r]``.

    The product is built only for more inputs than its last mode, where that takes less work.
    """
    last = factors[-1]
    if not 0 < len(x) <= len(last):
        return x @ khatri_rao(factors)
    result = x.reshape(len(x), -1, len(last)) @ last
    for factor in reversed(factors[:-1]):
        result = (result.reshape(len(x), -1, *factor.shape) * factor).sum(2)
    return result[:, 0]


def _expand(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply ``weights [n, r]`` by the transposed Khatri-Rao product: ``[n, prod n_k]``."""
    last = factors[-1]
    if not 0 < len(weights) <= len(last):
        return weights @ khatri_rao(factors).T
    count, result = len(weights), weights[:, None]
    for factor in factors[:-1]:
        result = (result[:, :, None] * factor).flatten(1, 2)
    return (result @ last.T).reshape(count, math.prod(len(factor) for factor in factors))
