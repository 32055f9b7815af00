"""The parts of stored forms: a table of packed codes, and a factor that is kept or packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.numerics.factor_rounding import FACTOR_GROUPS
from autocompress.numerics.packing import packed_length, unpack
from autocompress.numerics.rounding import (
    Grid,
    group_length,
    largest_group,
    unpack_zeros,
    zeros_shape,
)

LEAST_ROW = (
    32  # elements of a core that share a scale at least: fewer, and the scales outweigh the codes
)


class PackedTable(nn.Module):
    """A matrix ``[rows, columns]`` of 2, 3, 4 or 8 bits an element, read back on the fly.

    Attributes:
        codes: buffer, uint8 ``[rows, bytes]``.
        scales: parameter, fp16 ``[rows, groups]``. It stays as it is when the model is cast to
            another type, since the codes belong to these very scales.
        zeros: buffer, uint8 ``[groups, bytes]``; ``None`` when symmetric.
    """

    codes: Tensor
    zeros: Tensor | None

    def __init__(
        self, rows: int, columns: int, *, bits: int, group_size: int = 0, symmetric: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.bits = (rows, columns), bits
        groups = columns // group_length(columns, group_size)
        self.register_buffer(
            "codes", torch.zeros(rows, packed_length(columns, bits), dtype=torch.uint8)
        )
        self.scales = nn.Parameter(
            torch.zeros(rows, groups, dtype=torch.float16), requires_grad=False
        )
        zeros = (
            None if symmetric else torch.zeros(zeros_shape(rows, groups, bits), dtype=torch.uint8)
        )
        self.register_buffer("zeros", zeros)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix ``[rows, columns]`` in ``dtype``."""
        return self._grid().dequantize(unpack(self.codes, self.bits, self.shape[1]), dtype)

    def read_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``ids [n]``, as ``[n, columns]`` in ``dtype``; no other row is unpacked."""
        return self._grid(ids).dequantize(unpack(self.codes[ids], self.bits, self.shape[1]), dtype)

    def _grid(self, ids: Tensor | None = None) -> Grid:
        zeros = None if self.zeros is None else unpack_zeros(self.zeros, self.bits, self.shape[0])
        if ids is None:
            return Grid(self.scales, zeros, self.bits)
        return Grid(self.scales[ids], None if zeros is None else zeros[ids], self.bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scales = self.scales.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales.data = scales.to(self.scales.device)
        return self

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"{self.shape[0]} x {self.shape[1]}, {self.bits} bits, {self.scales.shape[1]} groups"


class Factor(nn.Module):
    """A matrix ``[rows, columns]`` kept in floating point, or packed symmetrically at 8 or 4 bits.

    Attributes:
        weight: parameter ``[rows, columns]``, when kept.
        packed: the table, when packed.
    """

    weight: nn.Parameter | None
    packed: PackedTable | None

    def __init__(
        self, rows: int, columns: int, *, bits: int, group_size: int = 0, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.weight = self.packed = None
        if bits:
            self.packed = PackedTable(
                rows, columns, bits=bits, group_size=group_size, symmetric=True
            )
        else:
            self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=dtype), requires_grad=False)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix ``[rows, columns]`` in ``dtype``."""
        if self.packed is not None:
            return self.packed.read(dtype)
        assert self.weight is not None
        return self.weight.to(dtype)


class Core(Factor):
    """A small tensor of any shape, its elements stored in order in a table (``table_shape``).

    Args:
        shape: shape of the core.
        bits: 8 or 4, or 0 to keep it.
        dtype: type in which it is kept.
    """

    def __init__(self, shape: Sequence[int], *, bits: int, dtype: torch.dtype) -> None:
        rows, columns, group = table_shape(shape, bits)
        super().__init__(rows, columns, bits=bits, group_size=group, dtype=dtype)
        self.core_shape = tuple(shape)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The core in its own shape, in ``dtype``."""
        return super().read(dtype).reshape(self.core_shape)


class Cores(nn.ModuleList):
    """Cores of given shapes."""

    def __init__(self, shapes: Iterable[Sequence[int]], *, bits: int, dtype: torch.dtype) -> None:
        super().__init__(Core(shape, bits=bits, dtype=dtype) for shape in shapes)

    def read(self, dtype: torch.dtype) -> list[Tensor]:
        """Every core in its own shape, in ``dtype``."""
        return [core.read(dtype) for core in self if isinstance(core, Core)]


def table_shape(shape: Sequence[int], bits: int) -> tuple[int, int, int]:
    """Rows, columns and group size of the table that holds a core's elements in their order.

    A row is the shortest run of trailing dimensions with at least ``LEAST_ROW`` elements.
    """
    columns = 1
    for size in reversed(shape):
        if columns >= LEAST_ROW:
            break
        columns *= size
    return (
        math.prod(shape) // columns,
        columns,
        largest_group(columns, FACTOR_GROUPS.get(bits) or columns),
    )
