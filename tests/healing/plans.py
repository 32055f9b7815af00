"""Layers that are built once, and steps of training on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress.healing.losses import Losses
from autocompress.healing.optimiser import Optimiser
from autocompress.healing.student import Student
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY


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
    losses, optimiser = Losses(dense, student.model), Optimiser(student)
    for step in range(1, steps + 1):
        losses.on_outputs(ids).backward()  # type: ignore[no-untyped-call]
        optimiser.step(0.02)
        student.after_step_(step)
    student.settle_()
