"""The parts of stored forms: a table of packed codes, and a factor that is kept or packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from autocompress.layers.kernels import (
    Kernel,
    KernelCache,
    LoopKernel,
    kernel_of,
    kernels_take,
    loop_takes,
)
from autocompress.layers.latent import GridLatent, Latent
from autocompress.layers.stand_in import KeepingTypes
from autocompress.numerics.factor_rounding import FACTOR_GROUPS
from autocompress.numerics.packing import packed_length, unpack
from autocompress.numerics.rounding import (
    Grid,
    group_length,
    largest_group,
    symmetric_centre,
    unpack_zeros,
    zeros_shape,
)

LEAST_ROW = (
    32  # elements of a core that share a scale at least: fewer, and the scales outweigh the codes
)
# Elements unpacked at a time, so that they stay in the processor's cache between unpacking and use
# (experiments/layer_speed.py: several times faster than all at once).
BLOCK_ELEMENTS = 2**19
KERNEL_BITS = (8, 4)  # whose layout for a kernel is no larger than the codes


class PackedCodes(nn.Module):
    """Codes of a matrix ``[rows, columns]`` and their scales; a subclass says what they stand for.

    Attributes:
        codes: buffer, uint8 ``[rows, bytes]``.
        scales: parameter, fp16 ``[rows, groups]``, or bf16 where the matrix is beyond the range of
            fp16: they have the type that was stored. It stays when the model is cast to another
            type, since the codes belong to these very scales.
        latent: weights behind the codes that are used in their place while they are trained.
    """

    codes: Tensor

    def __init__(self, rows: int, columns: int, *, bits: int, group_size: int = 0) -> None:
        super().__init__()
        self.shape, self.bits = (rows, columns), bits
        groups = columns // group_length(columns, group_size)
        self.register_buffer(
            "codes", torch.zeros(rows, packed_length(columns, bits), dtype=torch.uint8)
        )
        self.scales = nn.Parameter(
            torch.zeros(rows, groups, dtype=torch.float16), requires_grad=False
        )
        self.latent: Latent | None = None

    def new_latent(self) -> Latent:
        """Weights to train these codes by, which read back as they do."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its codes are trained")

    def read(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix ``[rows, columns]`` in ``dtype``."""
        if self.latent is not None:
            return self.latent.values().to(dtype)
        return self._read(dtype)

    def read_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``ids [n]``, as ``[n, columns]`` in ``dtype``; as few others as can be."""
        if self.latent is not None:
            return self.read(dtype)[ids]
        return self._read_rows(ids, dtype)

    def unpacked(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """The codes of some rows as they are counted: uint8 ``[n, columns]``."""
        return unpack(self.codes[ids], self.bits, self.shape[1])

    def _read(self, dtype: torch.dtype) -> Tensor:
        """The matrix of the codes that are stored."""
        raise NotImplementedError

    def _read_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of it."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(KeepingTypes(fn), recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"{self.shape[0]} x {self.shape[1]}, {self.bits} bits, {self.scales.shape[1]} groups"


class PackedTable(PackedCodes):
    """A matrix ``[rows, columns]`` of 2, 3, 4 or 8 bits an element on a uniform grid.

    Attributes:
        zeros: buffer, uint8 ``[groups, bytes]``; ``None`` when symmetric.
        use_kernels: whether products of few inputs may run on the kernels that PyTorch ships. They
            read a layout of their own, made at the first such product and kept in memory beside the
            codes, never stored (``kernel_bytes``). With 2 and 3 bits it has 4 an element, and is
            not made unless this is set.
    """

    zeros: Tensor | None

    def __init__(
        self, rows: int, columns: int, *, bits: int, group_size: int = 0, symmetric: bool = False
    ) -> None:
        super().__init__(rows, columns, bits=bits, group_size=group_size)
        stored = zeros_shape(rows, self.scales.shape[1], bits)
        self.register_buffer("zeros", None if symmetric else torch.zeros(stored, dtype=torch.uint8))
        self.use_kernels = bits in KERNEL_BITS
        self._forget_kernels()

    def new_latent(self) -> GridLatent:
        """See ``PackedCodes``."""
        return GridLatent(self.unpacked(), self._grid(slice(None), self._zeros()))

    def _read(self, dtype: torch.dtype) -> Tensor:
        whole = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        first = 0
        for block in self._blocks(dtype):
            whole[first : first + len(block)] = block
            first += len(block)
        return whole

    def _read_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self._dequantize(ids, self._zeros(), dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ table.T``, ``[..., rows]`` in the dtype of ``x [..., columns]``.

        By a kernel where one fits, else the rows are unpacked a few at a time.
        """
        if self.latent is not None:
            return linear(x, self.read(x.dtype))
        kernel = self._kernel(x, self._by_rows, self._lay_out_rows) or self._loop(x)
        if kernel is not None:
            return kernel.multiply(x)
        return torch.cat([x @ block.T for block in self._blocks(x.dtype)], -1)

    def combine(self, h: Tensor) -> Tensor:
        """Return ``h @ table``, ``[..., columns]`` in the dtype of ``h [..., rows]``.

        The kernels take it where a row has one scale, which then multiplies ``h``.
        """
        if self.latent is None and self.scales.shape[1] == 1 and self.zeros is None:
            kernel = self._kernel(h, self._by_columns, self._lay_out_columns)
            if kernel is not None:
                return kernel.multiply(h * self.scales[:, 0].to(h.dtype))
        return h @ self.read(h.dtype)

    @property
    def kernel_bytes(self) -> int:
        """Memory that layouts of kernels take, beside what is stored."""
        caches = self._by_rows, self._by_columns, self._as_stored
        kernels = [cache.kernel for cache in caches]
        return sum(kernel.memory_bytes for kernel in kernels if kernel is not None)

    def _kernel(
        self, x: Tensor, cache: KernelCache, lay_out: Callable[[], Kernel | None]
    ) -> Kernel | None:
        if not self.use_kernels or not kernels_take(x) or self._trained(x):
            return None
        kernel = cache.get(self._sources(), lay_out)
        return kernel if kernel is not None and x.numel() <= kernel.batch * x.shape[-1] else None

    def _loop(self, x: Tensor) -> Kernel | None:
        if not loop_takes(x) or self._trained(x) or torch.compiler.is_compiling():
            return None
        return self._as_stored.get(self._sources(), self._loop_kernel)

    def _trained(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or self.scales.requires_grad)

    def _sources(self) -> tuple[Tensor, ...]:
        sources = (self.codes, self.scales, self.zeros)
        return tuple(tensor for tensor in sources if tensor is not None)

    def _loop_kernel(self) -> Kernel:
        centre = self._grid(slice(None), self._zeros()).centre
        return LoopKernel.of(self.codes, self.shape[1], self.scales, centre, self.bits)

    def _forget_kernels(self) -> None:
        self._by_rows, self._by_columns = KernelCache(), KernelCache()
        self._as_stored = KernelCache()

    def _lay_out_rows(self) -> Kernel | None:
        centre = self._grid(slice(None), self._zeros()).centre
        return kernel_of(self.unpacked(), self.scales, centre, self.bits)

    def _lay_out_columns(self) -> Kernel | None:
        codes = self.unpacked().T.contiguous()
        ones = torch.ones(self.shape[1], 1, device=codes.device)
        return kernel_of(codes, ones, symmetric_centre(self.bits), self.bits)

    def _blocks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        zeros, rows = self._zeros(), max(1, BLOCK_ELEMENTS // self.shape[1])
        for first in range(0, self.shape[0], rows):
            yield self._dequantize(slice(first, first + rows), zeros, dtype)

    def _dequantize(self, ids: Tensor | slice, zeros: Tensor | None, dtype: torch.dtype) -> Tensor:
        return self._grid(ids, zeros).dequantize(self.unpacked(ids), dtype)

    def _grid(self, ids: Tensor | slice, zeros: Tensor | None) -> Grid:
        return Grid(self.scales[ids], None if zeros is None else zeros[ids], self.bits)

    def _zeros(self) -> Tensor | None:
        return None if self.zeros is None else unpack_zeros(self.zeros, self.bits, self.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._forget_kernels()  # else what moved away stays
        return self


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
        weight = self.weight
        assert weight is not None
        return weight if weight.dtype == dtype else weight.to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ factor.T``, ``[..., rows]`` in the dtype of ``x [..., columns]``."""
        return linear(x, self.read(x.dtype)) if self.packed is None else self.packed.multiply(x)

    def combine(self, h: Tensor) -> Tensor:
        """Return ``h @ factor``, ``[..., columns]`` in the dtype of ``h [..., rows]``."""
        return self.packed.combine(h) if self.packed is not None else h @ self.read(h.dtype)


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
