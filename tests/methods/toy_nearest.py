"""One more method, in a file of its own: three bits by rounding to the nearest, no metric asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.layers.quantized import QuantizedMatrix
from autocompress.methods import LayerSpec, MatrixProblem, Method
from autocompress.methods.base import torch_dtype
from autocompress.numerics.rounding import find_grid, pack_grid


@dataclass(frozen=True)
class Nearest(Method):
    """Codes of 3 bits with a scale a row."""

    symmetric: bool = False
    name: ClassVar[str] = "nearest"

    def check(self, spec: LayerSpec) -> None:
        """Any matrix will do."""

    def skeleton(self, spec: LayerSpec) -> QuantizedMatrix:
        dtype = torch_dtype(spec)
        return QuantizedMatrix(
            *spec.shape, bits=3, group_size=0, symmetric=self.symmetric, bias=spec.bias, dtype=dtype
        )

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        weight = problem.weight32
        grid = find_grid(weight, bits=3, group_size=0, symmetric=self.symmetric, clip=False)
        stored = pack_grid(grid, grid.round(weight))
        return {f"table.{name}": tensor for name, tensor in stored.items()}
