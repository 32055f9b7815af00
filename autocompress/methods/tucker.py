"""Store a matrix as a Tucker decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.packed import table_shape
from autocompress.layers.tucker import TuckerMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    MatrixProblem,
    Method,
    smallest_share,
    torch_dtype,
    whole_number,
    whole_numbers,
)
from autocompress.methods.folding import check_modes, folded_label, store_core
from autocompress.numerics.kronecker import scalings
from autocompress.numerics.shapes import balanced_modes, tucker_rank_limits
from autocompress.numerics.tucker import decompose_matrix_tucker, tucker_to_matrix
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Tucker(Method):
    """A core and one factor per mode.

    Attributes:
        ranks: one per mode, out modes first.
        out_modes: modes of the rows.
        in_modes: modes of the columns; there may be another number of them.
        bits: 8 or 4 to round core and factors, 0 to keep them in the type of the matrix.
    """

    ranks: tuple[int, ...]
    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]
    bits: int = 0
    name: ClassVar[str] = "tucker"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for setting in ("out_modes", "in_modes", "ranks"):
            whole_numbers(self.name, setting, getattr(self, setting))
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        modes = len(self.out_modes) + len(self.in_modes)
        if len(self.ranks) != modes:
            raise MethodError(
                "method tucker, ranks",
                got=f"{len(self.ranks)} ranks",
                wanted=f"one per mode, {modes}",
            )

    @classmethod
    def uniform(cls, shape: tuple[int, int], *, order: int, rank: int, bits: int = 0) -> Tucker:
        """``order`` balanced modes a side with one rank for every mode.

        The rank is lower where the modes allow less.
        """
        out_modes, in_modes = balanced_modes(shape[0], order), balanced_modes(shape[1], order)
        limits = tucker_rank_limits(out_modes + in_modes)
        return cls(tuple(min(rank, limit) for limit in limits), out_modes, in_modes, bits)

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, ranks must not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or ranks that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        limits = tucker_rank_limits(self.out_modes + self.in_modes)
        if any(rank > limit for rank, limit in zip(self.ranks, limits, strict=True)):
            raise MethodError(
                f"layer {spec}, {self}: ranks", got=self.ranks, wanted=f"at most {limits}"
            )

    def rank_share(self, spec: LayerSpec) -> float:  # noqa: ARG002 - the modes say it all
        """Smallest share of the largest rank of any mode."""
        return smallest_share(self.ranks, tucker_rank_limits(self.out_modes + self.in_modes))

    def skeleton(self, spec: LayerSpec) -> TuckerMatrix:
        """A layer of core and factors without content."""
        return TuckerMatrix(
            *spec.shape,
            ranks=self.ranks,
            out_modes=self.out_modes,
            in_modes=self.in_modes,
            bits=self.bits,
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Decompose the matrix, plain and scaled, and keep the decomposition of least damage.

        The scales are Kronecker products near the metric.
        """
        core, factors = self.parts(problem)
        order = len(self.out_modes)
        parts = {"core": core.reshape(math.prod(self.ranks[:order]), -1)}
        parts |= {f"out_factors.{k}": factor for k, factor in enumerate(factors[:order])}
        parts |= {f"in_factors.{k}": factor.T for k, factor in enumerate(factors[order:])}
        stored: dict[str, Tensor] = {}
        for name, part in parts.items():
            table = part.reshape(table_shape(part.shape, self.bits)[:2])
            stored |= store_core(name, table, self.bits, torch_dtype(problem.spec))
        return stored

    def parts(self, problem: MatrixProblem) -> tuple[Tensor, list[Tensor]]:
        """The best core and factors before rounding; computed once for all bits."""
        key = ("tucker", self.ranks, self.out_modes, self.in_modes)
        if key not in problem.memo:
            fits = [
                decompose_matrix_tucker(
                    problem.weight32, self.ranks, self.out_modes, self.in_modes, scales=out + into
                )
                for out, into in scalings(problem.metric, self.out_modes, self.in_modes)
            ]
            order = len(self.out_modes)
            problem.memo[key] = min(
                fits, key=lambda parts: problem.damage(tucker_to_matrix(parts[0], parts[1], order))
            )
        found: tuple[Tensor, list[Tensor]] = problem.memo[key]
        return found

    def __str__(self) -> str:
        return folded_label("tucker", self.out_modes, self.ranks, self.bits)
