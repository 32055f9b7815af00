"""Affine rounding of a matrix to few bits, one scale per group of neighbours in a row.

An element is stored as a code ``q`` of ``0 .. 2**bits - 1`` and read back as ``scale * (q -
zero)``. Scales are fp16, since a code is chosen for the scale as it is stored and only its range
matters; bf16, of as many bytes, where a matrix is beyond the range of fp16. Zero points are stored
on a grid finer than the codes where codes are few: with 2 bits a zero at half a step leaves the
grid symmetric, which suits weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.numerics.packing import pack, packed_length, unpack

# Bits of a stored zero point, and its unit in steps of the codes.
ZERO_BITS = {8: 8, 4: 4, 3: 4, 2: 4}
ZERO_STEP = {8: 1.0, 4: 1.0, 3: 0.5, 2: 0.25}
# Shares of a group's range that are tried: few bits gain from cutting off the tails, 8 bits do not.
CLIP_SHARES = {
    8: (1.0,),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65),
    3: (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52),
    2: (1.0, 0.92, 0.84, 0.76, 0.69, 0.62, 0.56, 0.5, 0.44, 0.38),
}
SCALE_TYPES = (torch.float16, torch.bfloat16)
# Below it the steps of fp16, which then are all 2**-24 wide, are coarser than those of bf16.
FINEST_HALF = 2.0**-16
_SEARCH_ROWS = 2**18  # elements searched at a time, so that the work stays in the processor's cache


@dataclass(frozen=True)
class Grid:
    """The values that the elements of a matrix ``[out, in]`` may take.

    Attributes:
        scale: fp16 or bf16 ``[out, groups]``.
        zero: uint8 ``[out, groups]`` in units of ``ZERO_STEP``, or ``None`` for a symmetric grid.
        bits: bits of a code.
    """

    scale: Tensor
    zero: Tensor | None
    bits: int

    @property
    def centre(self) -> Tensor | float:
        """The code that stands for zero, ``[out, groups]`` in fp32, or one number for all."""
        return (
            symmetric_centre(self.bits)
            if self.zero is None
            else self.zero.float() * ZERO_STEP[self.bits]
        )

    def dequantize(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes ``[out, in]``, computed in fp32 and returned in ``dtype``."""
        centre = self.centre
        centre = centre[..., None] if isinstance(centre, Tensor) else centre
        values = in_groups(codes, self.scale.shape[1]).to(torch.float32, copy=True)
        return values.sub_(centre).mul_(self.scale.float()[..., None]).flatten(-2).to(dtype)

    def round(self, weight: Tensor) -> Tensor:
        """Codes uint8 ``[out, in]`` of the nearest values to ``weight [out, in]``."""
        scale = self.scale.float()
        inverse = torch.where(scale > 0, 1 / scale, 0.0)[..., None]
        grouped = in_groups(weight, scale.shape[1])
        centre = self.centre[..., None] if isinstance(self.centre, Tensor) else self.centre
        codes = (grouped * inverse).add_(centre).round_().clamp_(0, 2**self.bits - 1)
        return codes.to(torch.uint8).flatten(-2)


def symmetric_centre(bits: int) -> float:
    """The code that stands for zero when no zero point is stored.

    With many codes zero itself is one of them, as the many small elements of cores and factors
    want; with few the codes lie on both sides of it and none is wasted.
    """
    return 2.0 ** (bits - 1) if bits >= 4 else (2**bits - 1) / 2


def in_groups(matrix: Tensor, groups: int) -> Tensor:
    """Cut each row of ``[out, in]`` into groups: ``[out, groups, in / groups]``."""
    return matrix.reshape(matrix.shape[0], groups, -1)


def group_length(columns: int, group_size: int) -> int:
    """Length of a group in rows of ``columns`` elements; 0 asks for the whole row.

    Raises:
        MethodError: the group size does not divide the row.
    """
    if group_size == 0:
        return columns
    if columns % group_size:
        divisors = [str(d) for d in range(1, columns + 1) if columns % d == 0 and d >= 8] or [
            str(columns)
        ]
        raise MethodError(
            f"group size does not divide the {columns} columns",
            got=group_size,
            wanted=f"one of {', '.join(divisors)}, or 0 for the whole row",
        )
    return group_size


def find_grid(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    importance: Tensor | None = None,
    clip: bool = True,
) -> Grid:
    """Choose scale and zero point of every group.

    They are those of least weighted squared error over a few clipped ranges.

    Args:
        weight: ``[out, in]`` in fp32.
        bits: 2, 3, 4 or 8.
        group_size: neighbours in a row that share a scale; 0 for the whole row.
        symmetric: leave zero points out.
        importance: ``[in]``, weight of a column's squared error; all equal when left out.
        clip: whether to try narrower ranges at all; without it every element is within half a step
            of its value.

    Raises:
        MethodError: the group size does not divide the row, or the weights exceed what a bf16
            scale can reach.
    """
    group = group_length(weight.shape[1], group_size)
    shares = CLIP_SHARES[bits] if clip else (1.0,)
    rows = max(1, _SEARCH_ROWS // weight.shape[1])
    columns = None if importance is None else importance.to(weight).reshape(-1, group)
    exact = [_scale_of(*_range(part, group), bits, symmetric) for part in torch.split(weight, rows)]
    kind = scale_type(torch.cat(exact))
    found = [
        _search(
            in_groups(part, weight.shape[1] // group),
            bits,
            shares,
            symmetric=symmetric,
            importance=columns,
            kind=kind,
        )
        for part in torch.split(weight, rows)
    ]
    scale = torch.cat([part.scale for part in found])
    if not bool(torch.isfinite(scale).all()):
        raise MethodError(
            f"quantize to {bits} bits",
            got=f"weights up to {float(weight.abs().max()):.3g}",
            wanted="weights whose scale fits bf16",
        )
    zeros = [part.zero for part in found if part.zero is not None]
    return Grid(scale, torch.cat(zeros) if zeros else None, bits)


def scale_type(scale: Tensor) -> torch.dtype:
    """The type to store scales of these sizes in: fp16 or bf16, two bytes both.

    fp16 is the finer one between 2**-16 and its largest number. Groups without content count not.
    """
    present = scale[scale > 0]
    if not present.numel():
        return torch.float16
    large = float(present.max()) > torch.finfo(torch.float16).max
    small = float(present.median()) < FINEST_HALF
    return torch.bfloat16 if large or small else torch.float16


def _search(
    groups: Tensor,
    bits: int,
    shares: tuple[float, ...],
    *,
    symmetric: bool,
    importance: Tensor | None,
    kind: torch.dtype,
) -> Grid:
    low, high = _range(groups.flatten(-2), groups.shape[-1])
    best = _grid_of_range(low, high, bits, symmetric=symmetric, kind=kind)
    if len(shares) == 1:
        return best
    flat = groups.flatten(-2)
    least = _squared_error(flat, best, importance)
    for share in shares[1:]:
        grid = _grid_of_range(low * share, high * share, bits, symmetric=symmetric, kind=kind)
        error = _squared_error(flat, grid, importance)
        better = error < least
        least = torch.where(better, error, least)
        zero = (
            None
            if best.zero is None or grid.zero is None
            else torch.where(better, grid.zero, best.zero)
        )
        best = Grid(torch.where(better, grid.scale, best.scale), zero, bits)
    return best


def _squared_error(weight: Tensor, grid: Grid, importance: Tensor | None) -> Tensor:
    """Squared rounding error per group, ``[out, groups]``; ``importance [groups, group]``."""
    scale = grid.scale.float()[..., None]
    grouped = in_groups(weight, grid.scale.shape[1])
    centre = grid.centre[..., None] if isinstance(grid.centre, Tensor) else grid.centre
    rounded = grouped / scale.clamp_min(torch.finfo(torch.float32).tiny)
    rounded = rounded.add_(centre).round_().clamp_(0, 2**grid.bits - 1).sub_(centre).mul_(scale)
    error = rounded.sub_(grouped).square_()
    return error.sum(-1) if importance is None else error.mul_(importance).sum(-1)


def _range(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group, zero among them."""
    groups = in_groups(weight, weight.shape[1] // group)
    return groups.amin(-1).clamp_max_(0), groups.amax(-1).clamp_min_(0)


def _scale_of(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """The scale in fp32 that covers a range just so."""
    last: int = 2**bits - 1
    if not symmetric:
        return (high - low) / last
    centre = symmetric_centre(bits)
    return torch.maximum(-low / centre, high / (last - centre))


def _grid_of_range(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool, kind: torch.dtype
) -> Grid:
    scale = _round_up(_scale_of(low, high, bits, symmetric), kind)
    if symmetric:
        return Grid(scale, None, bits)
    step, most = ZERO_STEP[bits], 2 ** ZERO_BITS[bits] - 1
    zero = (-low / (scale.float() * step)).nan_to_num_(0.0).round_().clamp_(0, most)
    return Grid(scale, zero.to(torch.uint8), bits)


def _round_up(scale: Tensor, kind: torch.dtype) -> Tensor:
    """The next fp16 or bf16 at or above each scale, so that a group's range is covered in full."""
    stored = scale.to(kind)
    short = stored.float() < scale
    bits = stored.view(torch.int16)
    return torch.where(short, bits + 1, bits).view(kind)


def pack_grid(grid: Grid, codes: Tensor) -> dict[str, Tensor]:
    """``codes [out, bytes]``, ``scales [out, groups]`` and, unless symmetric, ``zeros``, as stored.

    Zero points are packed along the rows, ``[groups, bytes]``, so that few groups in a row waste no
    bits.
    """
    stored = {"codes": pack(codes, grid.bits), "scales": grid.scale.contiguous()}
    if grid.zero is not None:
        stored["zeros"] = pack(grid.zero.T.contiguous(), ZERO_BITS[grid.bits])
    return stored


def unpack_zeros(zeros: Tensor, bits: int, rows: int) -> Tensor:
    """Undo the packing of zero points: uint8 ``[groups, bytes]`` to uint8 ``[out, groups]``."""
    return unpack(zeros, ZERO_BITS[bits], rows).T


def zeros_shape(rows: int, groups: int, bits: int) -> tuple[int, int]:
    """Shape of the packed zero points."""
    return groups, packed_length(rows, ZERO_BITS[bits])


def largest_group(columns: int, most: int) -> int:
    """The largest group size up to ``most`` that divides the row and is worth a scale.

    A quarter of ``most`` or more is worth one. Returns 0, the whole row, when there is none or the
    row is no longer than ``most``.
    """
    if columns <= most:
        return 0
    for size in range(most, math.ceil(most / 4) - 1, -1):
        if columns % size == 0:
            return size
    return 0
