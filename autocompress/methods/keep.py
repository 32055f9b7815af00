"""Keep a matrix as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.layers.dense import DenseMatrix
from autocompress.methods.base import MatrixProblem, Method, torch_dtype
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Keep(Method):
    """The matrix in its own type, bit for bit."""

    name: ClassVar[str] = "keep"

    def check(self, spec: LayerSpec) -> None:
        """Any matrix can be kept."""

    def skeleton(self, spec: LayerSpec) -> DenseMatrix:
        """A dense layer of the spec's type."""
        return DenseMatrix(*spec.shape, bias=spec.bias, dtype=torch_dtype(spec))

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """The matrix itself; shares its memory where it is contiguous."""
        return {"weight": problem.weight.detach().to(torch_dtype(problem.spec))}

    def __str__(self) -> str:
        return "keep"
