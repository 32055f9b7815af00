"""Store a matrix as a Tucker decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.tucker import TuckerMatrix
from autocompress.methods.base import MatrixProblem
from autocompress.methods.core_fitting import Part, store_fitted
from autocompress.methods.folding import Folded
from autocompress.numerics.tensors.shapes import feasible_tucker_ranks, tucker_rank_limits
from autocompress.numerics.tensors.tucker import TuckerForm


@dataclass(frozen=True)
class Tucker(Folded):
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
    label: ClassVar[str] = "tucker"
    layer: ClassVar[Callable[..., CompressedMatrix]] = TuckerMatrix

    def __post_init__(self) -> None:
        self.check_settings()
        modes = self.rank_count(len(self.out_modes), len(self.in_modes))
        if len(self.ranks) != modes:
            raise MethodError(
                "method tucker, ranks",
                got=f"{len(self.ranks)} ranks",
                wanted=f"one per mode, {modes}",
            )

    @classmethod
    def rank_count(cls, out_order: int, in_order: int) -> int:
        """One per mode."""
        return out_order + in_order

    @classmethod
    def rank_limits(cls, out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
        """See ``tucker_rank_limits``."""
        return tucker_rank_limits(out_modes + in_modes)

    def feasible(self) -> Tucker:
        """The same with ranks that its modes and its other ranks allow."""
        modes = self.out_modes + self.in_modes
        return replace(self, ranks=feasible_tucker_ranks(self.ranks, modes))

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
