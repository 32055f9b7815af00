"""Store a matrix as a Tucker decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
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
from autocompress.methods.core_fitting import Part, store_fitted
from autocompress.methods.folding import check_modes, check_ranks, fitting_modes, folded_label
from autocompress.numerics.shapes import (
    balanced_modes,
    feasible_tucker_ranks,
    tucker_rank_limits,
)
from autocompress.numerics.tucker import TuckerForm
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
        return cls((rank,) * (2 * order), out_modes, in_modes, bits).feasible()

    def feasible(self) -> Tucker:
        """The same with ranks that its modes and its other ranks allow."""
        modes = self.out_modes + self.in_modes
        return replace(self, ranks=feasible_tucker_ranks(self.ranks, modes))

    def fitting(self, spec: LayerSpec) -> Tucker:
        """The same with the nearest modes that fit a matrix, and ranks that they allow."""
        out_modes, in_modes = fitting_modes(spec, self.out_modes, self.in_modes)
        return replace(self, out_modes=out_modes, in_modes=in_modes).feasible()

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, ranks must not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or ranks that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        limits = tucker_rank_limits(self.out_modes + self.in_modes)
        check_ranks(self, spec, self.ranks, limits, self.feasible().ranks)

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
        """Decompose the whitened matrix, improve the parts, and round them if asked to."""
        form = TuckerForm(self.ranks, self.out_modes, self.in_modes)
        order, ranks = len(self.out_modes), self.ranks
        core_shape = math.prod(ranks[:order]), math.prod(ranks[order:])
        parts = [Part("core", tuple(range(len(ranks))), core_shape)]
        for k, mode in enumerate(self.out_modes):
            parts.append(Part(f"out_factors.{k}", (0, 1), (mode, ranks[k])))
        for k, mode in enumerate(self.in_modes):
            parts.append(Part(f"in_factors.{k}", (1, 0), (ranks[order + k], mode)))
        return store_fitted(problem, form, parts, self.bits)

    def __str__(self) -> str:
        return folded_label("tucker", self.out_modes, self.ranks, self.bits)
