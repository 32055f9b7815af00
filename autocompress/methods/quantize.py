"""Round a matrix to few bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self, get_args

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.quantized import QuantizedMatrix
from autocompress.methods.base import MatrixProblem, Method, one_of, torch_dtype, whole_number
from autocompress.methods.listing import (
    GRAMS,
    GROUP_SIZE,
    SYMMETRIC,
    USUAL_GROUP,
    WHOLE_ROW,
    Baseline,
    Choice,
    Key,
    check_group,
    group_label,
    named_group,
    usual_group,
)
from autocompress.methods.shared_work import gram_label, grid_of, left_by_feedback, round_on
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.rounding import Grid, pack_grid
from autocompress.numerics.shrinkage import GramKind
from autocompress.records import LayerSpec

MOST_STACKED = 2**22  # elements rounded at a time: beyond it memory, not the steps, takes the time


@dataclass(frozen=True)
class Quantize(Method):
    """Codes of few bits, packed, with a 16-bit scale and a small zero point per group of a row.

    Attributes:
        bits: bits of a code: 8, 4, 3 or 2.
        group_size: neighbours in a row that share a scale; 0 for the whole row.
        symmetric: whether to do without zero points.
        gram: how far to trust the calibrated Gram matrices.
    """

    bits: int
    group_size: int = 64
    symmetric: bool = False
    gram: GramKind = "full"
    name: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        whole_number(self.name, "bits", self.bits, allowed=PACKED_BITS)
        whole_number(self.name, "group_size", self.group_size, least=0)
        if not isinstance(self.symmetric, bool):
            raise MethodError(
                "method quantize, symmetric", got=repr(self.symmetric), wanted="true or false"
            )
        one_of(self.name, "gram", self.gram, get_args(GramKind))

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """See ``Listable``."""
        return {
            "bits": Key("bits", Choice(PACKED_BITS)),
            "group_sizes": Key("group_size", GROUP_SIZE),
            "symmetric": SYMMETRIC,
            "grams": GRAMS,
        }

    @classmethod
    def baselines(cls, share: float) -> Iterator[Baseline]:  # noqa: ARG003 - it cuts no ranks
        """Every bit width with the usual and with the cheapest grouping."""

        def usual(spec: LayerSpec, bits: int) -> Quantize:
            return cls(bits, usual_group(spec.in_features))

        for bits in reversed(PACKED_BITS):
            yield Baseline(f"{bits} bit, groups of {USUAL_GROUP}", partial(usual, bits=bits))
            yield Baseline.alike(f"{bits} bit, whole rows", cls(bits, WHOLE_ROW))

    def offered_to(self, spec: LayerSpec) -> Quantize:
        """See ``Listable``."""
        return replace(self, group_size=named_group(spec.in_features, self.group_size))

    def check(self, spec: LayerSpec) -> None:
        """The group size must divide the row.

        Raises:
            MethodError: it does not; the message names those that do.
        """
        check_group(self, spec, self.group_size)

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

    @classmethod
    def prepare(cls, problem: MatrixProblem, methods: Sequence[Self]) -> None:
        """Round a small matrix on many grids at a time; a large one gains nothing by that."""
        at_once = max(1, MOST_STACKED // problem.weight.numel())
        by_gram: dict[GramKind, list[Self]] = {}
        for method in methods:
            by_gram.setdefault(method.gram, []).append(method)
        for chosen in by_gram.values():
            for start in range(0, len(chosen), at_once) if at_once > 1 else ():
                some = chosen[start : start + at_once]
                grids = [method.grid(problem) for method in some]
                codes = round_on(problem, problem.weight32, grids, some[0].gram)
                problem.memo.update(zip(some, zip(grids, codes, strict=True), strict=True))

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Round with error feedback where the inputs' Gram matrix is full, else to the nearest."""
        if self in problem.memo:
            grid, codes = problem.memo.pop(self)
        else:
            grid = self.grid(problem)
            (codes,) = round_on(problem, problem.weight32, [grid], self.gram)
        return {f"table.{name}": tensor for name, tensor in pack_grid(grid, codes).items()}

    def expected_loss_increase(self, problem: MatrixProblem) -> float:
        """What error feedback leaves of the errors of rounding each element to the nearest."""
        grid = self.grid(problem)
        errors = grid.dequantize(grid.round(problem.weight32)).sub_(problem.weight32)
        return left_by_feedback(problem, self.gram, errors.square_())

    def grid(self, problem: MatrixProblem) -> Grid:
        """Scales and zero points for the problem's matrix."""
        return grid_of(
            problem,
            problem.weight32,
            self.gram,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
        )

    @property
    def form(self) -> str:
        """The bits of a code: ``3 bit``."""
        return f"{self.bits} bit"

    def __str__(self) -> str:
        group = group_label(self.group_size)
        return (
            f"quantize {self.bits} bit {group}"
            + (" symmetric" if self.symmetric else "")
            + gram_label(self.gram)
        )
