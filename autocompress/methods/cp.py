"""Store a matrix as a canonical polyadic decomposition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autocompress.layers.cp import CpMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    MatrixProblem,
    Method,
    torch_dtype,
    whole_number,
    whole_numbers,
)
from autocompress.methods.core_fitting import Part, store_fitted
from autocompress.methods.folding import check_modes, check_ranks, fitting_modes, folded_label
from autocompress.numerics.cp import CpForm, cp_rank_limit
from autocompress.numerics.shapes import balanced_modes
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Cp(Method):
    """A sum of ``rank`` outer products of one vector per mode.

    Attributes:
        rank: number of products; it usually exceeds that of the matrix by far.
        out_modes: modes of the rows.
        in_modes: modes of the columns; there may be another number of them.
        bits: 8 or 4 to round the factors, 0 to keep them in the type of the matrix.
    """

    rank: int
    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]
    bits: int = 0
    name: ClassVar[str] = "cp"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number(self.name, "rank", self.rank, least=1)
        for setting in ("out_modes", "in_modes"):
            whole_numbers(self.name, setting, getattr(self, setting))
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)

    @classmethod
    def uniform(cls, shape: tuple[int, int], *, order: int, rank: int, bits: int = 0) -> Cp:
        """``order`` balanced modes a side; the rank is lower where the modes allow less."""
        out_modes, in_modes = balanced_modes(shape[0], order), balanced_modes(shape[1], order)
        return cls(rank, out_modes, in_modes, bits).feasible()

    def feasible(self) -> Cp:
        """The same with a rank that its modes allow."""
        return replace(self, rank=min(self.rank, cp_rank_limit(self.out_modes + self.in_modes)))

    def fitting(self, spec: LayerSpec) -> Cp:
        """The same with the nearest modes that fit a matrix, and a rank that they allow."""
        out_modes, in_modes = fitting_modes(spec, self.out_modes, self.in_modes)
        return replace(self, out_modes=out_modes, in_modes=in_modes).feasible()

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, the rank not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or a rank that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        check_ranks(self, spec, (self.rank,), (cp_rank_limit(self.out_modes + self.in_modes),))

    def rank_share(self, spec: LayerSpec) -> float:
        """Share of the rank at which it stores as many numbers as the matrix has."""
        return min(1.0, self.rank * sum(self.out_modes + self.in_modes) / spec.parameters)

    def skeleton(self, spec: LayerSpec) -> CpMatrix:
        """A layer of factors without content."""
        return CpMatrix(
            *spec.shape,
            rank=self.rank,
            out_modes=self.out_modes,
            in_modes=self.in_modes,
            bits=self.bits,
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Decompose the whitened matrix, improve the factors, and round them if asked to."""
        form = CpForm((self.rank,), self.out_modes, self.in_modes)
        sides = (("out_factors", self.out_modes), ("in_factors", self.in_modes))
        parts = [
            Part(f"{side}.{k}", (0, 1), (mode, self.rank))
            for side, modes in sides
            for k, mode in enumerate(modes)
        ]
        return store_fitted(problem, form, parts, self.bits)

    def __str__(self) -> str:
        return folded_label("cp", self.out_modes, (self.rank,), self.bits)
