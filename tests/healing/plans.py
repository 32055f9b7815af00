"""One plan for each way to store a matrix, and steps of training on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from autocompress.healing.objective import Objective
from autocompress.healing.optimiser import Optimiser
from autocompress.healing.student import Student
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.methods.cp import Cp
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.sparse import Sparse
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.methods.tucker import Tucker
from autocompress.records import LayerSpec
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY

Choose = Callable[[LayerSpec], Method]
CHOICES: dict[str, list[Choose]] = {
    "quantize": [
        lambda _: Quantize(8, 16, symmetric=True),
        lambda _: Quantize(4, 0),
        lambda _: Quantize(3, 16),
        lambda _: Quantize(2, 16, symmetric=True),
    ],
    "trellis": [lambda _: Trellis(3, 16), lambda _: Trellis(1)],
    "quantize_plus_low_rank": [
        lambda _: QuantizePlusLowRank(2, 16, 4),
        lambda _: QuantizePlusLowRank(3, 0, 4, 4, symmetric=True),
    ],
    "sparse": [
        lambda _: Sparse("2:4"),
        lambda _: Sparse("2:4", bits=4),
        lambda _: Sparse("unstructured", 0.4, 8),
    ],
    "svd": [lambda _: Svd(6), lambda _: Svd(6, bits=8), lambda _: Svd(8, bits=4)],
    "tensor_train": [
        lambda spec: TensorTrain.uniform(spec.shape, order=3, rank=6),
        lambda spec: TensorTrain.uniform(spec.shape, order=2, rank=8, bits=8),
    ],
    "tucker": [
        lambda spec: Tucker.uniform(spec.shape, order=2, rank=4),
        lambda spec: Tucker.uniform(spec.shape, order=2, rank=4, bits=8),
    ],
    "cp": [
        lambda spec: Cp.uniform(spec.shape, order=2, rank=12),
        lambda spec: Cp.uniform(spec.shape, order=2, rank=12, bits=8),
    ],
}


def plan_of(inventory: Inventory, name: str) -> Plan:
    """One method for every matrix, embedding and head among them, with its settings in turn."""
    turns = zip(inventory.layers, cycle(CHOICES[name]), strict=False)
    return Plan.of({spec.name: choose(spec) for spec, choose in turns})


def building(workbench: Workbench) -> Callable[[str, Method], CompressedMatrix]:
    """Build each layer once, as builders with a cache do, without calibration."""
    built: dict[tuple[str, Method], CompressedMatrix] = {}

    def build(name: str, method: Method) -> CompressedMatrix:
        if (name, method) not in built:
            built[name, method] = method.build(workbench.problem(name))
        return built[name, method]

    return build


def some_ids(count: int = 4, length: int = 12) -> Tensor:
    """Token ids ``[count, length]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (count, length), generator=generator)


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """What a model returns, without a gradient."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def take_steps(dense: Any, student: Student, ids: Tensor, steps: int = 3) -> None:
    """Train on the same tokens a few times."""
    objective, optimiser = Objective(dense, student.model), Optimiser(student)
    for step in range(1, steps + 1):
        objective.on_outputs(ids).backward()  # type: ignore[no-untyped-call]
        optimiser.step(0.02)
        student.after_step_(step)
    student.settle_()
