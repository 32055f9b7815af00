"""A rounded matrix with a low-rank corrector beside it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.layers.quantized import QuantizedMatrix


class CorrectedMatrix(CompressedMatrix):
    """``W [out, in] = codes + left.T @ right``, the sum taken of outputs, never of matrices.

    What can be cut of it is the corrector's.

    Attributes:
        codes: the rounded matrix.
        corrector: the two factors.
    """

    factors_prefix: ClassVar[str] = "corrector."

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        codes: QuantizedMatrix,
        corrector: LowRankMatrix,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        """Make the layer of two without biases of their own."""
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.codes, self.corrector = codes, corrector

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        return self.codes.multiply(x) + self.corrector.multiply(x)

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` in the type of the dense matrix."""
        return self.codes.rows(ids) + self.corrector.rows(ids)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return self.codes.to_dense() + self.corrector.to_dense()

    @property
    def factors(self) -> LowRankMatrix:
        """The corrector."""
        return self.corrector
