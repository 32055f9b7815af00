"""A matrix as the product of two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.bonds import LowRankBond
from autocompress.layers.packed import Factor
from autocompress.numerics.metric import Metric
from autocompress.numerics.svd import Whitening


class LowRankMatrix(CompressedMatrix):
    """``W [out, in] = left.T @ right``, never multiplied out.

    Both factors hold one rank vector per row, so that packed factors have their scales along a rank
    vector.

    Attributes:
        left: ``[rank, out]``.
        right: ``[rank, in]``.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        rank: int,
        bits: int,
        groups: tuple[int, int] = (0, 0),
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        """Make the layer; ``groups``: group sizes of left and right, 0 for whole rank vectors."""
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.left = Factor(rank, out_features, bits=bits, group_size=groups[0], dtype=dtype)
        self.right = Factor(rank, in_features, bits=bits, group_size=groups[1], dtype=dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ right.T @ left``, ``[..., out]`` in the dtype of ``x [..., in]``."""
        return self.left.combine(self.right.multiply(x))

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` in the type of the dense matrix."""
        left, right = self.left.read(torch.float32), self.right.read(torch.float32)
        return (
            (left[:, ids.flatten()].T @ right).to(self.dtype).reshape(*ids.shape, self.in_features)
        )

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return self.left.read(torch.float32).T @ self.right.read(torch.float32)

    def bonds(self, metric: Metric | None = None) -> LowRankBond:
        """See ``CompressedMatrix``."""
        if metric is None:
            return LowRankBond(self.left, self.right, None)
        whitening = Whitening.of(metric.rows, metric.columns)
        plain = Whitening(whitening.rows.float(), whitening.columns.float())
        return LowRankBond(self.left, self.right, plain)
