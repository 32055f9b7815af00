"""The gradient of a loss by every matrix of a model, one block in memory at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.gram_sums import input_of, with_gradient
from autocompress.layers.base import CompressedEmbedding
from autocompress.records import LayerSpec
from autocompress.surgery.tied import TiedEmbedding

LOOKUPS = (nn.Embedding, CompressedEmbedding, TiedEmbedding)


class WeightGradient:
    """The gradient by a matrix ``W [out, in]`` at one place where it is used, summed over a text.

    It is ``sum g x^T`` over the inputs ``x`` and the gradients ``g`` of the outputs, for a lookup
    the sum of the gradients of each row. The module may hold the dense matrix or a compressed one.

    Passes in turn count for one half and for the other, so that the two tell how far chance goes.

    Attributes:
        module: where the matrix is used.
        halves: ``[out, in]`` in fp32, where the inputs are; ``None`` while nothing has passed.
    """

    def __init__(self, spec: LayerSpec, path: str, module: nn.Module) -> None:
        self.module = module
        self.halves: list[Tensor | None] = [None, None]
        self._passes = 0
        self._shape, self._factor = spec.shape, spec.factor_of(path)
        self._lookup = isinstance(module, LOOKUPS)

    def take(self, half: int) -> Tensor | None:
        """Hand over the sum of a half, which is nobody else's from then on."""
        total, self.halves[half] = self.halves[half], None
        return total

    def watch(self) -> Any:
        """Hook the module; the handle removes the hook."""

        def forward(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            given = input_of(args, kwargs).detach()
            output = with_gradient(output)
            half = self._passes % 2
            self._passes += 1
            output.register_hook(lambda gradient: self._add(half, given, gradient))  # type: ignore[no-untyped-call]
            return output

        return self.module.register_forward_hook(forward, with_kwargs=True)

    def _add(self, half: int, given: Tensor, gradient: Tensor) -> None:
        out_features, in_features = self._shape
        total = self.halves[half]
        if total is None:
            total = self.halves[half] = torch.zeros(self._shape, device=given.device)
        if self._lookup:
            rows = gradient.detach().reshape(-1, in_features).float() * self._factor
            total.index_add_(0, given.reshape(-1), rows)
            return
        gradients = gradient.detach().reshape(-1, out_features).float()
        total.addmm_(gradients.T, given.reshape(-1, in_features).float(), alpha=self._factor)
