"""Products on PyTorch's kernels: the same map, only where they fit, never stored."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from autocompress.layers import kernels, packed
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.layers.packed import PackedTable
from autocompress.layers.quantized import QuantizedMatrix
from tests.layers.test_forms import filled

ON_KERNELS = pytest.mark.skipif(
    not kernels.kernels_take(torch.ones(1, dtype=torch.bfloat16)), reason="no kernels in bf16"
)


def table(
    rows: int, columns: int, bits: int, group_size: int = 0, *, symmetric: bool = False
) -> PackedTable:
    generator = torch.Generator().manual_seed(0)
    made = PackedTable(rows, columns, bits=bits, group_size=group_size, symmetric=symmetric)
    for buffer in made.buffers():
        buffer.random_(0, 256, generator=generator)
    made.scales.data.uniform_(0.001, 0.01, generator=generator)
    return made


def assert_kernel_product(made: PackedTable, count: int = 3) -> None:
    x = torch.randn(count, made.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    y, wanted = made.multiply(x), x.float() @ made.read(torch.float32).T
    assert made.kernel_bytes
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))


@ON_KERNELS
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(64, 256, 0), (50, 40, 0), (33, 192, 96), (17, 512, 64)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_kernels_multiply_by_the_stored_matrix(
    bits: int, shape: tuple[int, int, int], symmetric: bool
) -> None:
    rows, columns, group_size = shape
    made = table(rows, columns, bits, group_size, symmetric=symmetric)
    made.use_kernels = True
    assert_kernel_product(made)


@ON_KERNELS
def test_layouts_longer_than_one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CONVERTED_ROWS", 64)
    assert_kernel_product(table(200, 64, 4, 32))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(64, 256, 0), (50, 37, 0), (33, 192, 96), (17, 512, 64)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_few_fp32_inputs_are_multiplied_by_the_codes_as_they_are_stored(
    bits: int, shape: tuple[int, int, int], symmetric: bool
) -> None:
    rows, columns, group_size = shape
    made = table(rows, columns, bits, group_size, symmetric=symmetric)
    x = torch.randn(2, 2, columns, generator=torch.Generator().manual_seed(1))
    assert kernels.loop_takes(x)
    wanted = x @ made.read(torch.float32).T
    atol = 1e-5 * float(wanted.abs().max())
    torch.testing.assert_close(made.multiply(x), wanted, rtol=0, atol=atol)
    assert made.kernel_bytes == 2 * 4 * made.scales.numel()
    made.scales.data = 2 * made.scales.data
    torch.testing.assert_close(made.multiply(x), 2 * wanted, rtol=1e-2, atol=2 * atol)


def test_the_loop_leaves_nan_where_it_is() -> None:
    x = torch.randn(2, 64)
    x[0, 3] = torch.nan
    y = table(64, 64, 4, 32).multiply(x)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_the_loop_is_left_out_with_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: kernels.LOOP_THREADS + 1)
    assert not kernels.loop_takes(torch.randn(1, 64))


def test_products_that_no_kernel_takes_are_unpacked() -> None:
    made, x = table(64, 64, 4, 32), torch.randn(3, 64)
    made.multiply(torch.randn(40, 64))
    made.multiply(torch.randn(40, 64).bfloat16())  # many inputs
    trained = x.bfloat16().requires_grad_()
    made.multiply(trained).sum().backward()
    assert trained.grad is not None
    made.use_kernels = False
    made.multiply(x.bfloat16())
    assert made.kernel_bytes == 0
    odd = table(64, 48, 4, 24)
    odd.multiply(x[:, :48].bfloat16())
    assert odd.kernel_bytes == 0


def test_two_and_three_bits_are_widened_on_request() -> None:
    layer = QuantizedMatrix(
        64, 64, bits=3, group_size=0, symmetric=True, bias=False, dtype=torch.bfloat16
    )
    layer(torch.zeros(1, 64, dtype=torch.bfloat16))
    assert layer.cached_bytes == 0
    assert layer.widen_().table.use_kernels
    assert not layer.widen_(False).table.use_kernels


@ON_KERNELS
def test_layouts_follow_the_stored_tensors() -> None:
    made, other = table(64, 64, 4, 32), table(64, 64, 4, 32)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    before = made.multiply(x)
    with torch.no_grad():
        made.scales.mul_(2)
    torch.testing.assert_close(made.multiply(x), 2 * before)
    made.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(made.multiply(x), before)


@ON_KERNELS
def test_layouts_are_neither_stored_nor_copied() -> None:
    made = table(64, 64, 8)
    names = list(made.state_dict())
    assert_kernel_product(made)
    assert list(made.state_dict()) == names
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again.kernel_bytes == 0
        assert_kernel_product(again)


@ON_KERNELS
def test_layouts_are_dropped_when_the_layer_is_moved() -> None:
    made = table(64, 64, 8)
    assert_kernel_product(made)
    assert made.kernel_bytes
    assert made.cpu().kernel_bytes == 0
    assert_kernel_product(made)


@ON_KERNELS
def test_packed_factors_run_on_kernels() -> None:
    layer = LowRankMatrix(70, 96, rank=24, bits=8, bias=False, dtype=torch.bfloat16)
    for buffer in layer.buffers():
        buffer.random_(0, 256)
    filled(layer)
    x = torch.randn(2, 96).bfloat16()
    y, wanted = layer(x), x.float() @ layer.to_dense().T
    assert layer.cached_bytes > 24 * (70 + 96)
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=2e-2 * float(wanted.abs().max()))


def test_unpacking_goes_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = table(50, 24, 3, 12), torch.randn(5, 24)
    whole, product = made.read(torch.float32), made.multiply(x)
    monkeypatch.setattr(packed, "BLOCK_ELEMENTS", 100)
    assert torch.equal(made.read(torch.float32), whole)
    torch.testing.assert_close(made.multiply(x), product)


def test_a_dense_copy_is_asked_for_and_counted() -> None:
    layer = filled(LowRankMatrix(20, 30, rank=4, bits=0, bias=False, dtype=torch.float32))
    x = torch.randn(2, 30)
    wanted = layer(x)
    assert layer.cached_bytes == 0
    layer.cache_dense_(torch.float32)
    torch.testing.assert_close(layer(x), wanted)
    assert layer.cached_bytes == 20 * 30 * 4
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})
    torch.testing.assert_close(layer(x), 4 * wanted)
    assert "left.weight" in layer.state_dict()
    assert len(layer.state_dict()) == 2
    layer.cache_dense_(None)
    assert layer.cached_bytes == 0
