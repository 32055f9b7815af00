"""Integer codes of 1, 2, 3, 4 or 8 bits, packed into bytes without a gap.

A row of ``n`` codes is cut into equal segments, and the codes at the same place of all segments
share bytes. Packing and unpacking are then a handful of byte-wise operations on long contiguous
runs, with no interleaving.
"""

from __future__ import annotations

import torch
from torch import Tensor

PACKED_BITS = (2, 3, 4, 8)  # of codes that stand for themselves; 1 bit serves trellis codes
# Width of the bit planes that a code is cut into, lowest bits first: a code of 3 bits is one of 2
# and one of 1.
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
_SEGMENTS = {1: 8, 2: 4, 3: 8, 4: 2, 8: 1}


def packed_length(count: int, bits: int) -> int:
    """Bytes of a row of ``count`` codes, padded to whole bytes: 8 codes of 3 bits take 3."""
    return _segment_length(count, bits) * bits * _SEGMENTS[bits] // 8


def _segment_length(count: int, bits: int) -> int:
    return -(-count // _SEGMENTS[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes.

    Args:
        codes: uint8 ``[..., n]``, each below ``2**bits``; higher bits are cut off.
        bits: 1, 2, 3, 4 or 8.

    Returns:
        uint8 ``[..., packed_length(n, bits)]``.
    """
    if bits == 8:
        return codes.contiguous()
    segments, length = _SEGMENTS[bits], _segment_length(codes.shape[-1], bits)
    padded = torch.nn.functional.pad(codes, (0, segments * length - codes.shape[-1]))
    pieces = padded.reshape(*codes.shape[:-1], segments, length).unbind(-2)
    packed = []
    low = 0
    for width in _PLANES[bits]:
        per_byte = 8 // width
        for first in range(0, segments, per_byte):
            byte = torch.zeros_like(pieces[0])
            for place, piece in enumerate(pieces[first : first + per_byte]):
                byte |= ((piece >> low) & (2**width - 1)) << (place * width)
            packed.append(byte)
        low += width
    return torch.cat(packed, -1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo ``pack``: uint8 ``[..., packed_length(count, bits)]`` to uint8 ``[..., count]``."""
    if bits == 8:
        return packed
    segments, length = _SEGMENTS[bits], _segment_length(count, bits)
    pieces: list[Tensor] = []
    low, start = 0, 0
    for width in _PLANES[bits]:
        per_byte = 8 // width
        for segment in range(segments):
            if segment % per_byte == 0:
                byte = packed[..., start : start + length].contiguous()
                start += length
            shift = segment % per_byte * width - low
            piece = (byte >> shift if shift >= 0 else byte << -shift) & ((2**width - 1) << low)
            if low:
                pieces[segment] |= piece
            else:
                pieces.append(piece)
        low += width
    return torch.cat(pieces, -1)[..., :count]
