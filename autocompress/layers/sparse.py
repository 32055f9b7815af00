"""A matrix of which only some elements are kept."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.packed import Factor
from autocompress.numerics.packing import pack, packed_length, unpack
from autocompress.numerics.pruning import GROUP, KEPT_OF_GROUP

POSITION_BITS = 2  # a place among four
# Rows rebuilt at a time: positions take 8 bytes an element while in use, and few rows stay in the
# processor's cache, which makes a product at batch 1 up to seven times as fast as with the whole
# matrix at once (2048 x 8192, one core). There is no other way for small batches: torch's CSR
# product, its indices at hand, takes as long as this one at batch 1 and five times as long at 256,
# and the indices are larger than the dense matrix.
ROWS_AT_ONCE = 128


class SparseMatrix(CompressedMatrix):
    """``W [out, in]`` as the kept elements of each row and where they are.

    Attributes:
        values: the kept elements, ``[out, kept]``, in the order of their columns.
        positions: buffer, uint8: places of 2 bits within their group of four, packed
            ``[out, bytes]``, or a mask of 1 bit an element of W.
        kept: elements kept in each row, or ``None`` for the 2:4 pattern.
    """

    positions: Tensor

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        kept: int | None,
        bits: int,
        group_size: int,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.kept = kept
        count = in_features * KEPT_OF_GROUP // GROUP if kept is None else kept
        self.values = Factor(out_features, count, bits=bits, group_size=group_size, dtype=dtype)
        length = (
            packed_length(count, POSITION_BITS) if kept is None else packed_length(in_features, 1)
        )
        self.register_buffer("positions", torch.zeros(out_features, length, dtype=torch.uint8))

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``.

        A few rows of W are dense at a time.
        """
        return torch.cat([x @ self._dense_rows(ids, x.dtype).T for ids in self._few_rows()], -1)

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` in the type of the dense matrix."""
        return self._dense_rows(ids.flatten(), self.dtype).reshape(*ids.shape, self.in_features)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        return torch.cat([self._dense_rows(ids, torch.float32) for ids in self._few_rows()])

    def randomise_(self) -> Self:
        """Fill the stored tensors at random, each row with as many elements as it keeps."""
        super().randomise_()
        if self.kept is not None:
            order = torch.rand(self.out_features, self.in_features).argsort(1)
            self.positions.copy_(pack_positions(order < self.kept, self.kept))
        return self

    def _few_rows(self) -> tuple[Tensor, ...]:
        return torch.split(
            torch.arange(self.out_features, device=self.positions.device), ROWS_AT_ONCE
        )

    def _dense_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``ids [n]`` as ``[n, in]``."""
        values = self._kept_rows(ids, dtype)
        dense = values.new_zeros(len(ids), self.in_features)
        if self.kept is not None:
            mask = unpack(self.positions[ids], 1, self.in_features).bool()
            return dense.masked_scatter_(mask, values)
        places = unpack(self.positions[ids], POSITION_BITS, values.shape[1])
        groups = torch.arange(0, self.in_features, GROUP, device=ids.device)
        return dense.scatter_(1, places + groups.repeat_interleave(KEPT_OF_GROUP), values)

    def _kept_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Kept elements of the rows ``ids [n]``, as ``[n, kept]``."""
        if self.values.packed is not None:
            return self.values.packed.read_rows(ids, dtype)
        assert self.values.weight is not None
        return self.values.weight[ids].to(dtype)


def pack_positions(mask: Tensor, kept: int | None) -> Tensor:
    """The stored form, uint8 ``[out, bytes]``, of a mask ``[out, in]`` of what is kept."""
    if kept is not None:
        return pack(mask.to(torch.uint8), 1)
    places = mask.reshape(-1, GROUP).nonzero()[:, 1].to(torch.uint8)
    return pack(places.reshape(mask.shape[0], -1), POSITION_BITS)
