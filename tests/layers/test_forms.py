"""What only some of the layers promise: how they compute, and what they never do."""

from __future__ import annotations

import pytest
import torch

from autocompress.layers import contraction
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.packed import Factor, PackedTable, table_shape
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.layers.tucker import TuckerMatrix
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from tests.methods.matrices import problem_of, spec_of


def filled(layer: CompressedMatrix) -> CompressedMatrix:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return layer


def million(form: str) -> CompressedMatrix:
    """A matrix of a million by a million: 4 TB if made dense, and a thousandth is too much."""
    modes = (100, 100, 100)
    settings = {
        "out_modes": modes,
        "in_modes": modes,
        "bits": 0,
        "bias": False,
        "dtype": torch.float32,
    }
    if form == "tensor_train":
        return filled(TensorTrainMatrix(10**6, 10**6, ranks=(2, 2), **settings))
    return filled(TuckerMatrix(10**6, 10**6, ranks=(2,) * 6, **settings))


@pytest.mark.parametrize("form", ["tensor_train", "tucker"])
def test_folded_forms_never_become_dense(form: str) -> None:
    layer = million(form)
    ids = torch.tensor([0, 123_456, 999_999])
    rows = layer.rows(ids)
    assert rows.shape == (3, 10**6)
    x = torch.zeros(2, 10**6)
    x[0, 7], x[1, 765_432] = 1.0, 1.0
    torch.testing.assert_close(layer(x)[:, ids], rows[:, [7, 765_432]].T)


def test_large_batches_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = TensorTrain.uniform((60, 40), order=2, rank=5).build(problem_of(spec_of(60, 40)))
    x = torch.randn(37, 40)
    whole = layer(x)
    monkeypatch.setattr(contraction, "WORK_ELEMENTS", 1)
    torch.testing.assert_close(layer(x), whole)
    assert layer(x[:0]).shape == (0, 60)


def test_products_of_factors_stay_thin(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Svd(3).build(problem_of(spec_of(60, 40)))
    monkeypatch.setattr(layer, "to_dense", lambda: pytest.fail("multiplied out"))
    assert layer(torch.randn(2, 40)).shape == (2, 60)
    assert layer.rows(torch.tensor([4])).shape == (1, 40)


def test_rows_unpack_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Quantize(3, 8).build(problem_of(spec_of(500, 16)))
    monkeypatch.setattr(PackedTable, "read", lambda *_: pytest.fail("unpacked everything"))
    assert layer.rows(torch.tensor([[4, 499]])).shape == (1, 2, 16)


def test_scales_stay_as_stored_when_the_model_is_cast() -> None:
    table = PackedTable(4, 8, bits=4)
    table.scales.data.fill_(0.1)
    before = table.scales.data.clone()
    for dtype in (torch.float64, torch.bfloat16):
        table.to(dtype)
        assert torch.equal(table.scales, before)
    assert table.to("meta").scales.is_meta


def test_factor_is_kept_or_packed() -> None:
    kept, packed = (Factor(4, 16, bits=bits, dtype=torch.bfloat16) for bits in (0, 8))
    assert list(kept.state_dict()) == ["weight"]
    assert list(packed.state_dict()) == ["packed.scales", "packed.codes"]


@pytest.mark.parametrize(
    ("shape", "bits", "table"),
    [
        ((16, 8, 1, 4), 8, (16, 32, 0)),
        ((16, 1, 8, 8), 4, (16, 64, 0)),
        ((16, 1, 32, 8), 4, (16, 256, 64)),
        ((2, 3), 8, (1, 6, 0)),
    ],
)
def test_rows_of_a_core_are_long_enough_for_their_scales(
    shape: tuple[int, ...], bits: int, table: tuple[int, int, int]
) -> None:
    assert table_shape(shape, bits) == table
