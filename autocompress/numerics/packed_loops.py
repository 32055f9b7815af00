"""Products of few fp32 inputs with packed codes, compiled for the processor by numba.

One row of codes is unpacked at a time, into a buffer that stays in the processor's first cache, and
multiplied from there. So a product reads the packed bytes and nothing else from memory, where
operations on whole matrices go over unpacked copies of it several times.
"""

from __future__ import annotations

import numpy as np
from numba import uintp
from numpy.typing import NDArray

from autocompress.numerics.compiled import compiled

Codes = NDArray[np.uint8]
Array = NDArray[np.float32]
# Sums may be reordered, as vector instructions need; NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz"}


# Unsigned indices: numba lets others count from the end, which no vector instruction does.
@compiled(nogil=True, fastmath=_FAST)
def multiply_packed(
    codes: Codes, bits: int, scales: Array, centres: Array, x: Array, y: Array
) -> None:
    """Compute ``x @ W.T`` for ``W = scales * (codes - centres)``, a group of columns at a time.

    Args:
        codes: uint8 ``[out, bytes]``, as ``numerics.packing`` packs them.
        bits: of a code: 2, 3, 4 or 8.
        scales: fp32 ``[out, groups]``.
        centres: fp32 ``[out, groups]``, the codes of zero.
        x: fp32 ``[n, in]``.
        y: fp32 ``[n, out]``, written.
    """
    columns, groups = x.shape[1], scales.shape[1]
    length = uintp(columns // groups)
    row = np.empty(columns + 7, np.float32)  # segments are padded to whole bytes
    for out in range(len(codes)):
        if bits != 8:
            _unpack_row(codes, out, bits, columns, row)
        for n in range(len(x)):
            total = np.float32(0)
            for group in range(groups):
                first, centre = uintp(group) * length, centres[out, group]
                part = np.float32(0)
                if bits == 8:
                    for i in range(first, first + length):
                        part += x[n, i] * (np.float32(codes[out, i]) - centre)
                else:
                    for i in range(first, first + length):
                        part += x[n, i] * (row[i] - centre)
                total += scales[out, group] * part
            y[n, out] = total


@compiled(nogil=True)
def _unpack_row(codes: Codes, out: int, bits: int, columns: int, row: Array) -> None:
    """Unpack a row of codes of 2, 3 or 4 bits to fp32."""
    if bits == 3:  # 2 low bits of eight segments in two runs of bytes, then a high bit in one
        length = uintp((columns + 7) // 8)
        for segment in range(8):
            shift, first = 2 * (segment % 4), uintp(segment) * length
            low, high = uintp(segment // 4) * length, uintp(2) * length
            for i in range(length):
                plane = codes[out, high + i] >> segment & 1
                row[first + i] = (codes[out, low + i] >> shift & 3) + 4 * plane
    else:
        segments, mask = 8 // bits, (1 << bits) - 1
        length = uintp((columns + segments - 1) // segments)
        for segment in range(segments):
            shift, first = bits * segment, uintp(segment) * length
            for i in range(length):
                row[first + i] = codes[out, i] >> shift & mask
