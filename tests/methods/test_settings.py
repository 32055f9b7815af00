"""Wrong settings are named errors; labels are short; ranks and modes keep to what shapes allow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.registry import method_from_dict
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from tests.methods.matrices import linear_metric, problem_of, spec_of


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "quantise", "bits": 4}, "Did you mean 'quantize'"),
        ({"method": None}, "unknown method"),
        ({"method": "quantize"}, "bits"),
        ({"method": "quantize", "bits": 5}, "one of 2, 3, 4, 8"),
        ({"method": "quantize", "bits": 4.0}, "got 4.0"),
        ({"method": "quantize", "bits": True}, "got True"),
        ({"method": "quantize", "bits": "4"}, "got '4'"),
        ({"method": "quantize", "bits": 4, "group_size": -1}, "at least 0"),
        ({"method": "quantize", "bits": 4, "symmetric": 1}, "true or false"),
        ({"method": "quantize", "bits": 4, "groups": 8}, "no setting 'groups'"),
        ({"method": "svd", "rank": 0}, "at least 1"),
        ({"method": "svd", "rank": 4, "metric": "output"}, "plain, input, two_sided"),
        ({"method": "svd", "rank": 4, "bits": 2}, "one of 0, 8, 4"),
        (
            {"method": "tensor_train", "ranks": 4, "out_modes": [4, 4], "in_modes": [4, 4]},
            "a list of whole numbers",
        ),
        (
            {"method": "tensor_train", "ranks": [4], "out_modes": [], "in_modes": [4, 4]},
            "a list of whole numbers",
        ),
        (
            {"method": "tensor_train", "ranks": [4, 4], "out_modes": [4, 4], "in_modes": [4, 4]},
            "2 ranks",
        ),
        (
            {"method": "tensor_train", "ranks": [4], "out_modes": [4, 4], "in_modes": [4, 0]},
            "got 0",
        ),
        (
            {"method": "tucker", "ranks": [4], "out_modes": [4, 4], "in_modes": [4, 4]},
            "one per mode, 4",
        ),
    ],
)
def test_impossible_settings_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_from_dict(data)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            Quantize(4, 64),
            r"does not divide the 96 columns: "
            r"got 64, wanted one of 8, 12, 16, 24, 32, 48, 96, or 0",
        ),
        (Svd(65), "got 65, wanted at most 64"),
        (TensorTrain((4,), (8, 7), (12, 8)), r"out_modes do not fit the side of 64: .*\[8, 8\]"),
        (TensorTrain((4,), (8, 8), (12, 9)), "in_modes do not fit the side of 96"),
        (TensorTrain((97,), (8, 8), (12, 8)), "rank: got 97, wanted at most 64"),
        (Tucker((4, 4, 4, 4), (8, 8), (12, 7)), "in_modes do not fit"),
        (Tucker((9, 4, 4, 4), (8, 8), (12, 8)), "at most 8, 8, 12, 8"),
        (TensorTrain((4, 32), (16, 2, 2), (2, 2, 24)), "got 4, 32, wanted 4, 16"),
        (Tucker((8, 1, 2, 2), (8, 8), (12, 8)), "got 8, 1, 2, 2, wanted 4, 1, 2, 2"),
    ],
)
def test_settings_that_miss_the_shape_are_named(method: Any, message: str) -> None:
    spec = spec_of(64, 96)
    with pytest.raises(MethodError, match=message):
        method.check(spec)
    with pytest.raises(MethodError, match=r"layer block\.matrix \[64 x 96\]"):
        method.build(problem_of(spec))
    with pytest.raises(MethodError):
        method.cost(spec)


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (Keep(), "keep"),
        (Quantize(3), "quantize 3 bit g64"),
        (Quantize(4, 0), "quantize 4 bit row"),
        (Quantize(2, 32, symmetric=True), "quantize 2 bit g32 symmetric"),
        (Svd(32, bits=8), "svd r32 int8"),
        (Svd(32, "plain"), "svd r32 plain"),
        (TensorTrain((8, 8), (16, 16, 16), (4, 8, 8)), "tt 16x16x16 r8"),
        (TensorTrain((4, 8), (16, 16, 16), (4, 8, 8), 4), "tt 16x16x16 r4,8 int4"),
        (Tucker((8, 8, 8, 8), (16, 16), (16, 16)), "tucker 16x16 r8"),
    ],
)
def test_labels_are_short(method: Any, label: str) -> None:
    assert str(method) == label


def test_weights_that_are_not_finite_are_refused() -> None:
    problem = problem_of(spec_of(8, 8))
    problem.weight[2, 3] = float("nan")
    with pytest.raises(MethodError, match="weights: got NaN or infinity"):
        Quantize(4, 8).build(problem)


def test_a_bias_that_is_missing_is_refused() -> None:
    problem = problem_of(spec_of(8, 8, bias=True))
    problem.bias = None
    with pytest.raises(MethodError, match="bias"):
        Quantize(4, 8).build(problem)


def test_uniform_3_bit_rows_are_a_tenth_of_fp32() -> None:
    spec = spec_of(704, 256)
    cost = Quantize(3, 0).cost(spec)
    assert cost * 8 / spec.parameters <= 3 + 24 / 256
    assert spec.parameters * 4 / cost > 10


def test_ranks_share_one_decomposition() -> None:
    spec = spec_of(32, 24)
    problem = problem_of(spec, metric=linear_metric(32, 24))
    wide, thin = Svd(12).build(problem).state_dict(), Svd(4).build(problem).state_dict()
    assert torch.equal(wide["left.weight"][:4], thin["left.weight"])
    assert Svd(12).spectrum(problem) is Svd(4).spectrum(problem)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_uniform_settings_fit_their_shape(order: int) -> None:
    for shape in ((4096, 256), (704, 256), (50257, 768), (97, 31)):
        TensorTrain.uniform(shape, order=order, rank=64).check(spec_of(*shape))
        Tucker.uniform(shape, order=order, rank=64).check(spec_of(*shape))


def test_plans_hash_alike_whatever_the_order_and_the_kept() -> None:
    a = Plan.of({"x": Quantize(4), "y": Svd(3), "z": Keep()})
    b = Plan.of({"y": Svd(3), "x": Quantize(4)})
    assert a.hash == b.hash != Plan.of({"x": Quantize(3), "y": Svd(3)}).hash
    assert Plan.from_recipe(a.to_recipe()) == a
