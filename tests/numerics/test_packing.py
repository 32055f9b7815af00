from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.packing import PACKED_BITS, pack, packed_length, unpack


@settings(max_examples=80, deadline=None)
@given(
    bits=st.sampled_from(PACKED_BITS),
    count=st.integers(1, 70),
    rows=st.integers(0, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_unpacking_undoes_packing(bits: int, count: int, rows: int, seed: int) -> None:
    codes = torch.randint(
        0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_length(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_no_bit_is_wasted_on_a_multiple_of_eight(bits: int) -> None:
    assert packed_length(256, bits) * 8 == 256 * bits
    assert packed_length(1, bits) <= bits


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_every_stored_bit_counts(bits: int) -> None:
    codes = (
        (torch.arange(16, dtype=torch.uint8) * 5 % 2**bits)[None]
        if bits < 8
        else torch.arange(16, dtype=torch.uint8)[None]
    )
    packed = pack(codes, bits)
    for byte in range(packed.shape[1]):
        for bit in range(8):
            flipped = packed.clone()
            flipped[0, byte] ^= 1 << bit
            assert int((unpack(flipped, bits, 16) != codes).sum()) == 1


def test_leading_dimensions_are_kept() -> None:
    codes = torch.randint(0, 8, (2, 3, 20), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, 3), 3, 20), codes)
    assert torch.equal(unpack(pack(codes[0, 0], 3), 3, 20), codes[0, 0])
