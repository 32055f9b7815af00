from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.packed_loops import multiply_packed
from autocompress.numerics.packing import PACKED_BITS, pack

SIZES = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PACKED_BITS), SIZES, SIZES, st.integers(1, 4), st.integers(1, 3))
def test_the_product_is_that_of_the_unpacked_matrix(
    bits: int, rows: int, length: int, groups: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(rows * length)
    codes = torch.randint(2**bits, (rows, groups * length), dtype=torch.uint8, generator=generator)
    scales = torch.randn(rows, groups, generator=generator)
    centres = torch.rand(rows, groups, generator=generator) * 2**bits
    x = torch.randn(count, groups * length, generator=generator)
    y = torch.full((count, rows), torch.nan)
    arrays = (t.numpy() for t in (scales, centres, x, y))
    multiply_packed(pack(codes, bits).numpy(), bits, *arrays)
    grouped = codes.reshape(rows, groups, length).double() - centres[..., None]
    matrix = (grouped * scales[..., None]).flatten(1)
    # Each product and each sum is rounded once: n + 1 roundings of the sum of absolute products.
    bound = (groups * length + 3) * 2**-23 * (x.double().abs() @ matrix.abs().T)
    assert bool(((y - x.double() @ matrix.T).abs() <= bound).all())


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_infinity_stays(bits: int) -> None:
    codes = pack(torch.full((3, 8), 2**bits - 1, dtype=torch.uint8), bits).numpy()
    ones, zeros = torch.ones(3, 1).numpy(), torch.zeros(3, 1).numpy()
    x, y = torch.ones(1, 8), torch.zeros(1, 3)
    x[0, 5] = torch.inf
    multiply_packed(codes, bits, ones, zeros, x.numpy(), y.numpy())
    assert y.isinf().all()
