"""What healing lowers: the divergence from the dense model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.blocks import block_paths
from autocompress.healing.hardware import full_precision
from autocompress.healing.teacher import DenseTeacher, outputs_of


class Losses:
    """Losses of a compressed model on some windows, against the dense one.

    Args:
        dense: the dense model.
        student: the compressed model.
        lm: share of the loss on the text itself, where the objective has one.
        teacher: the dense model's outputs, where others use them too.
    """

    def __init__(
        self, dense: Any, student: Any, lm: float = 0.0, teacher: DenseTeacher | None = None
    ) -> None:
        self.dense, self.student, self.lm = dense, student, lm
        self.teacher = teacher or DenseTeacher(dense)

    def on_outputs(self, ids: Tensor) -> Tensor:
        """Mean over the compared rows of the windows ``ids [b, length]``.

        ``(1 - lm) divergence + lm loss``, both of the objective.
        """
        wanted = self.teacher.rows(ids)  # first, when no activations are held for gradients
        objective, compared = self.teacher.objective, self.teacher.compared(ids)
        returned = self.student(input_ids=ids, use_cache=False)
        outputs = objective.prepared(outputs_of(objective, returned, compared).flatten(0, 1))
        divergence = wanted.divergence(0, outputs).mean()
        if not self.lm:
            return divergence
        losses = objective.losses(outputs, ids[:, -len(compared) :].flatten())
        loss = divergence if losses is None else losses.mean()
        return (1 - self.lm) * divergence + self.lm * loss

    def on_blocks(self, ids: Tensor) -> Tensor:
        """Relative squared error of each block's output, averaged over the blocks and windows.

        Each block is fed by the compressed ones before it, whose own training does not see it.
        """
        with torch.no_grad(), full_precision(ids.device):
            wanted = _block_outputs(self.dense, self._blocks, ids, cut=False)
        seen = _block_outputs(self.student, self._blocks, ids, cut=True)
        errors = [
            _energy(ours.float() - theirs.float()) / _energy(theirs.float())
            for ours, theirs in zip(seen, wanted, strict=True)
        ]
        return torch.stack(errors).mean()

    @cached_property
    def _blocks(self) -> Sequence[str]:
        return block_paths(self.dense)  # of the student, cores are lists of modules too


def _energy(hidden: Tensor) -> Tensor:
    """Sum of squares of each window ``[b, length, n]``: ``[b]``."""
    return hidden.square().sum((1, 2))


def _block_outputs(
    model: Any, blocks: Sequence[str], ids: Tensor, *, cut: bool
) -> Sequence[Tensor]:
    """Hidden states after each block; with ``cut`` a block's loss does not train those before."""
    outputs: list[Tensor] = []

    def after(_block: nn.Module, _inputs: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden)
        if not cut:
            return None
        rest = hidden.detach()
        return (rest, *output[1:]) if isinstance(output, tuple) else rest

    handles = [model.get_submodule(path).register_forward_hook(after) for path in blocks]
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
