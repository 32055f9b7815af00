from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.calibration.statistics import stream_sums
from autocompress.calibration.weight_gradients import WeightGradient
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.records import Kind
from autocompress.surgery.inventory import take_inventory
from autocompress.surgery.placement import weight_path
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY

TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (1, n), generator=generator) for n in (12, 12, 7)]


def loss(batch: int, _start: int, logits: Tensor) -> Tensor:
    return (1 + batch) * logits.float().square().sum()


def streamed(model: Any, specs: Sequence[Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
        for name, places in done.items():
            totals = [half for place in places for half in place.halves if half is not None]
            found[name] = torch.stack(totals).sum(0)

    stream_sums(model, specs, WeightGradient, batches(), keep, loss)
    return found


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "mixtral", "gemma2", "opt"])
def test_they_are_those_of_autograd(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    specs = take_inventory(model).layers
    found = streamed(model, specs)
    assert set(found) == {spec.name for spec in specs}
    model.requires_grad_(True)
    for batch, ids in enumerate(batches()):
        loss(batch, 0, model(input_ids=ids).logits).backward()
    for spec in specs:
        path = weight_path(model, spec)
        gradient = model.get_parameter(path).grad
        assert gradient is not None
        if gradient.ndim == 3:  # a stack of experts
            gradient = gradient[int(spec.name.rpartition(".")[2])]
        elif spec.kind is Kind.CONV1D:
            gradient = gradient.T
        torch.testing.assert_close(found[spec.name], gradient, **TOLERANCE)


def test_inside_a_compressed_model_they_are_at_its_weights(tiny_model: Any) -> None:
    model = tiny_model("llama")
    workbench = Workbench(model)
    specs = workbench.inventory.layers
    plan = Plan.of({spec.name: Quantize(bits=4, group_size=16) for spec in specs})
    layers = {name: method.build(workbench.problem(name)) for name, method in plan.items()}
    with workbench.applied(plan, lambda name, _method: layers[name]):
        found = streamed(model, specs)
    dense = tiny_model("llama")
    for spec in specs:
        dense.get_submodule(spec.name).weight.data = layers[spec.name].to_dense()
    dense.tie_weights()
    for name, gradient in streamed(dense, specs).items():
        torch.testing.assert_close(found[name], gradient, **TOLERANCE)
