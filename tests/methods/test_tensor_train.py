"""Trains of unequally many modes, and trains that are drawn instead of fitted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from autocompress.errors import MethodError
from autocompress.methods.registry import method_from_dict
from autocompress.methods.tensor_train import TensorTrain
from tests.methods.matrices import problem_of, spec_of

SPEC = spec_of(27, 64)
UNEVEN = {
    "method": "tensor_train",
    "ranks": [3, 9, 2],
    "out_modes": [3, 3, 3],
    "in_modes": [4, 4, 2, 2],
}


def drawn(seed: int = 0, bits: int = 0) -> TensorTrain:
    return TensorTrain((12, 12), (3, 3, 3), (4, 4, 4), bits, "random", seed)


def test_the_shorter_side_is_padded_with_modes_of_one():
    method = method_from_dict(UNEVEN)
    assert method == TensorTrain((3, 9, 2), (3, 3, 3, 1), (4, 4, 2, 2))
    assert method_from_dict(method.to_dict()) == method
    wide = TensorTrain((3, 9, 2), (4, 4, 2, 2), (3, 3, 3))
    assert wide.in_modes == (3, 3, 3, 1)
    with pytest.raises(MethodError, match=r"2 ranks for 3 out .* and 4 in modes, .* 3$"):
        method_from_dict(UNEVEN | {"ranks": [2, 2]})


@pytest.mark.parametrize("spec", [SPEC, spec_of(64, 27)], ids=str)
def test_an_uneven_train_computes_what_it_stores(spec):
    modes = (UNEVEN["out_modes"], UNEVEN["in_modes"])
    out, into = modes if spec == SPEC else modes[::-1]
    method = TensorTrain((8, 8, 2), tuple(out), tuple(into))
    layer = method.build(problem_of(spec))
    assert sum(t.numel() * t.element_size() for t in layer.state_dict().values()) == method.cost(
        spec
    )
    x = torch.randn(5, spec.in_features, generator=torch.Generator().manual_seed(0))
    bias = 0 if layer.bias is None else layer.bias
    assert_close(layer(x), x @ layer.to_dense().T + bias, atol=1e-4, rtol=1e-4)
    ids = torch.tensor([0, 7, spec.out_features - 1])
    assert_close(layer.rows(ids), layer.to_dense()[ids])


def test_an_uneven_train_of_full_ranks_is_exact():
    problem = problem_of(SPEC)
    layer = TensorTrain((12, 12, 2), (3, 3, 3), (4, 4, 2, 2)).build(problem)
    assert_close(layer.to_dense(), problem.weight32, atol=1e-4, rtol=1e-4)


def test_random_cores_are_drawn_by_seed_and_layer_in_the_size_of_the_matrix():
    problem, other = problem_of(SPEC), problem_of(replace(SPEC, name="other"))
    first = drawn().build(problem).to_dense()
    assert_close(drawn().build(problem_of(SPEC)).to_dense(), first, atol=0, rtol=0)
    assert not torch.allclose(drawn(1).build(problem).to_dense(), first)
    assert not torch.allclose(drawn().build(other).to_dense(), first)
    assert 0.5 < float(first.norm() / problem.weight32.norm()) < 2
    assert problem.loss_increase(first) > problem.loss_increase(
        torch.zeros_like(first)
    )  # nothing is fitted


@pytest.mark.parametrize("bits", [8, 4])
def test_random_cores_are_rounded_as_they_are(bits):
    problem = problem_of(SPEC)
    exact, rounded = (drawn(bits=b).build(problem).to_dense() for b in (0, bits))
    assert float((rounded - exact).norm() / exact.norm()) < (0.02 if bits == 8 else 0.3)


def test_init_and_seed_are_written_for_random_cores_alone():
    fitted = TensorTrain((4,), (3, 9), (8, 8))
    assert set(fitted.to_dict()) == {"method", "ranks", "out_modes", "in_modes", "bits"}
    assert drawn(3).to_dict() | {"init": "random", "seed": 3} == drawn(3).to_dict()
    assert method_from_dict(drawn(3).to_dict()) == drawn(3)
    assert str(drawn(3)).endswith("random 3")
    for wrong, message in (({"init": "randon"}, "svd, random"), ({"seed": 1}, "init: random")):
        with pytest.raises(MethodError, match=message):
            method_from_dict(fitted.to_dict() | wrong)
