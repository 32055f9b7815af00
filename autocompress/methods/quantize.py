"""Round a matrix to few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.quantized import QuantizedMatrix
from autocompress.methods.base import MatrixProblem, Method, torch_dtype, whole_number
from autocompress.numerics.feedback import round_with_feedback
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.refinement import refine_codes, row_terms
from autocompress.numerics.rounding import find_grid, group_length, pack_grid
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Quantize(Method):
    """Codes of few bits, packed, with an fp16 scale and a small zero point per group of a row.

    Attributes:
        bits: bits of a code: 8, 4, 3 or 2.
        group_size: neighbours in a row that share a scale; 0 for the whole row.
        symmetric: whether to do without zero points.
    """

    bits: int
    group_size: int = 64
    symmetric: bool = False
    name: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        whole_number(self.name, "bits", self.bits, allowed=PACKED_BITS)
        whole_number(self.name, "group_size", self.group_size, least=0)
        if not isinstance(self.symmetric, bool):
            raise MethodError(
                "method quantize, symmetric", got=repr(self.symmetric), wanted="true or false"
            )

    def check(self, spec: LayerSpec) -> None:
        """The group size must divide the row.

        Raises:
            MethodError: it does not; the message names those that do.
        """
        try:
            group_length(spec.in_features, self.group_size)
        except MethodError as error:
            raise error.within(f"layer {spec}, {self}") from error

    def skeleton(self, spec: LayerSpec) -> QuantizedMatrix:
        """A quantized layer without content."""
        return QuantizedMatrix(
            *spec.shape,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Round with error feedback where the inputs' Gram matrix is full, else to the nearest."""
        return self.round(problem, nearest=problem.metric.columns.ndim == 1)

    def round(self, problem: MatrixProblem, *, nearest: bool) -> dict[str, Tensor]:
        """Round to the grid's nearest values, or with error feedback and refined codes."""
        weight, gram = problem.weight32, problem.metric.columns.to(problem.weight.device).float()
        grid = find_grid(
            weight,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            importance=gram if gram.ndim == 1 else gram.diagonal(),
        )
        if nearest:
            codes = grid.round(weight)
        else:
            codes = round_with_feedback(weight, gram, grid)
            codes = refine_codes(weight, grid, codes, row_terms(problem.metric, weight.device))
        return {f"table.{name}": tensor for name, tensor in pack_grid(grid, codes).items()}

    @property
    def form(self) -> str:
        """The bits of a code: ``3 bit``."""
        return f"{self.bits} bit"

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"quantize {self.bits} bit {group}" + (" symmetric" if self.symmetric else "")
