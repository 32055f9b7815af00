"""A matrix rounded jointly, a few bits an element."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.latent import TrellisLatent
from autocompress.layers.packed import PackedTable
from autocompress.numerics.packing import unpack
from autocompress.numerics.trellis import (
    CHAIN_ROWS,
    chain_memory,
    dequantize,
    scaled_levels,
    states_of,
)


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
        self.bits = bits
        self.table = PackedTable(
            out_features, in_features, bits=bits, group_size=group_size, symmetric=True
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        return x @ self.to_dense().to(x.dtype).T

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]``, from these rows and the few above."""
        flat = ids.flatten()
        if self.table.latent is not None:
            rows = self.table.read_rows(flat, self.dtype)
            return rows.reshape(*ids.shape, self.in_features)
        aged = []
        for age in range(chain_memory(self.bits) + 1):
            codes = self._unpack(self.table.codes[(flat - age).clamp_min(0)])
            codes[flat % CHAIN_ROWS < age] = 0
            aged.append(codes)
        rows = scaled_levels(states_of(aged, self.bits), self.table.scales[flat])
        return rows.to(self.dtype).reshape(*ids.shape, self.in_features)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        if self.table.latent is not None:
            return self.table.read(torch.float32)
        return dequantize(self._unpack(self.table.codes), self.table.scales, self.bits)

    def new_latent(self) -> TrellisLatent:
        """Numbers to train the codes by, which read back as they do."""
        return TrellisLatent(self._unpack(self.table.codes), self.table.scales, self.bits)

    def _unpack(self, codes: Tensor) -> Tensor:
        return unpack(codes, self.bits, self.in_features)
