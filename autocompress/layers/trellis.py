"""A matrix rounded jointly, a few bits an element."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.latent import TrellisLatent
from autocompress.layers.packed import PackedCodes
from autocompress.numerics.trellis import (
    CHAIN_ROWS,
    chain_memory,
    dequantize,
    scaled_levels,
    states_of,
)


class TrellisTable(PackedCodes):
    """Codes whose values depend on the codes above them in the same column, without zero points."""

    def new_latent(self) -> TrellisLatent:
        """See ``PackedCodes``."""
        return TrellisLatent(self.unpacked(), self.scales, self.bits)

    def _read(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.unpacked(), self.scales, self.bits).to(dtype)

    def _read_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        aged = []
        for age in range(chain_memory(self.bits) + 1):
            codes = self.unpacked((ids - age).clamp_min(0))
            codes[ids % CHAIN_ROWS < age] = 0
            aged.append(codes)
        return scaled_levels(states_of(aged, self.bits), self.scales[ids]).to(dtype)


class TrellisMatrix(CompressedMatrix):
    """``W [out, in]`` as codes whose values depend on the codes above them in the same column.

    The matrix is unpacked for each product and dropped again, so one layer at a time is dense in
    memory.

    Attributes:
        table: the packed codes, ``[out, in]``, and their scales.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        bits: int,
        group_size: int,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.table = TrellisTable(out_features, in_features, bits=bits, group_size=group_size)

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        return x @ self.to_dense().to(x.dtype).T

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]``, from these rows and the few above."""
        return self.table.read_rows(ids.flatten(), self.dtype).reshape(*ids.shape, self.in_features)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return self.table.read(torch.float32)
