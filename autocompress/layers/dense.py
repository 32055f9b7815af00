"""A matrix kept as it is."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from autocompress.layers.base import CompressedMatrix


class DenseMatrix(CompressedMatrix):
    """``W [out, in]`` in its own floating-point type, which follows casts of the model.

    Attributes:
        weight: parameter ``[out, in]``.
    """

    keeps_types: ClassVar[bool] = False

    def __init__(
        self, out_features: int, in_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.weight = nn.Parameter(
            torch.zeros(out_features, in_features, dtype=dtype), requires_grad=False
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        return linear(x, self.weight.to(x.dtype))

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` in the type of W."""
        return self.weight[ids]

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return self.weight.float()
