from __future__ import annotations

import math

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.numerics.metric import Curvature, Metric
from tests.calibration.counting import METHODS


def assert_same_layers(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert torch.equal(one.to_dense(), other.to_dense())


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_is_the_same_from_memory_from_the_cache_and_built_afresh(make_builder, method):
    first, second, elsewhere = make_builder(), make_builder(), make_builder(folder="other")
    name = first.workbench.inventory.layers[1].name
    built = first.build(name, method)
    assert_same_layers(first.build(name, method), built)
    assert_same_layers(second.build(name, method), built)
    assert_same_layers(elsewhere.build(name, method), built)
    assert (first.fits.total(), second.fits.total(), elsewhere.fits.total()) == (1, 0, 1)


def test_memory_gives_back_the_layer_itself_until_it_is_full(make_builder):
    builder = make_builder()
    name = builder.workbench.inventory.layers[1].name
    assert builder.build(name, METHODS[1]) is builder.build(name, METHODS[1])
    small = make_builder(memory_bytes=1)
    first = small.build(name, METHODS[1])
    small.build(name, METHODS[2])
    again = small.build(name, METHODS[1])
    assert again is not first
    assert_same_layers(again, first)
    assert small.fits.total() == 1  # the second from this cache, the first from the other builder's


def test_another_metric_is_another_layer(make_builder):
    builder = make_builder()
    name = builder.workbench.inventory.layers[1].name
    other = make_builder(metrics={})
    builder.build(name, Quantize(3, 16))
    other.build(name, Quantize(3, 16))
    assert builder.key(name, Quantize(3, 16)) != other.key(name, Quantize(3, 16))
    assert other.fits.total() == 1


def test_a_new_version_of_a_method_is_fitted_again_and_the_others_are_not(
    make_builder, monkeypatch
):
    first, name = make_builder(), make_builder().workbench.inventory.layers[1].name
    first.build(name, Quantize(3, 16))
    first.build(name, Svd(3))
    monkeypatch.setattr(Svd, "version", Svd.version + 1)
    later = make_builder()
    later.build(name, Quantize(3, 16))
    later.build(name, Svd(3))
    assert later.fits == {(name, Svd(3)): 1}


def test_a_corrupt_layer_is_built_again_with_a_warning(make_builder, tmp_path, caplog):
    builder = make_builder()
    name = builder.workbench.inventory.layers[1].name
    built = builder.build(name, Quantize(3, 16))
    (path,) = (tmp_path / "cache" / "layers").iterdir()
    cut = path.read_bytes()[:50]
    path.unlink()  # the built layer is memory-mapped from it
    path.write_bytes(cut)
    again = make_builder()
    assert_same_layers(again.build(name, Quantize(3, 16)), built)
    assert again.fits.total() == 1
    assert "computed again" in caplog.text
    assert make_builder().build(name, Quantize(3, 16)) is not None


def test_an_error_of_torch_in_what_is_prepared_names_the_layer(make_builder, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("shape '[2, 768]' is invalid")

    monkeypatch.setattr("autocompress.methods.svd.decompose", fail)
    name = next(iter(make_builder.metrics))
    with pytest.raises(MethodError, match=rf"{name}.*svd.*shape '\[2, 768\]' is invalid"):
        make_builder().prepare(name, [Svd(4, bits=8)])


def test_metrics_that_are_not_finite_are_refused_before_fits_are_prepared(make_builder):
    metrics = dict(make_builder.metrics)
    name, metric = next((n, m) for n, m in metrics.items() if m.columns.ndim == 2)
    broken = torch.full_like(metric.columns, math.nan)
    metrics[name] = Metric((Curvature(metric.rows, broken),))
    with pytest.raises(MethodError, match=f"{name}.*Gram matrix of the columns"):
        make_builder(metrics, "broken").prepare(name, [Svd(4, bits=8)])
