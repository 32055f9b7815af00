"""A matrix rounded to few bits."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.packed import KERNEL_BITS, PackedTable


class QuantizedMatrix(CompressedMatrix):
    """``W [out, in]`` as codes with a scale, and unless symmetric a zero point, per group of a row.

    Products of few bf16 inputs with 8 or 4 bits run on PyTorch's kernels; others unpack a block of
    rows at a time, so that the dense matrix is never in memory.

    Attributes:
        table: the packed codes, ``[out, in]``.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        bits: int,
        group_size: int,
        symmetric: bool,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.table = PackedTable(
            out_features, in_features, bits=bits, group_size=group_size, symmetric=symmetric
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        return self.table.multiply(x)

    def widen_(self, on: bool = True) -> Self:
        """Let codes of 2 and 3 bits run on the 4-bit kernel too, at 4 more bits of memory each."""
        self.table.use_kernels = on or self.table.bits in KERNEL_BITS
        return self

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` in the type of the dense matrix."""
        return self.table.read_rows(ids.flatten(), self.dtype).reshape(*ids.shape, self.in_features)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return self.table.read(torch.float32)
