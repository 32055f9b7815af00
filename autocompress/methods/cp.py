"""Store a matrix as a canonical polyadic decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.cp import CpMatrix
from autocompress.methods.base import MatrixProblem
from autocompress.methods.core_fitting import (
    Part,
    store_fitted,
    unwhitened,
    whitened,
    whitened_target,
)
from autocompress.methods.folding import Folded
from autocompress.numerics.tensors.cp import CpForm, cp_rank_limit, falling_components
from autocompress.numerics.tensors.tensor_fit import refine
from autocompress.numerics.tensors.tensor_train import even_norms
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Cp(Folded):
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
    label: ClassVar[str] = "cp"
    layer: ClassVar[Callable[..., CompressedMatrix]] = CpMatrix
    rank_setting: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        self.check_settings()

    @classmethod
    def rank_count(cls, out_order: int, in_order: int) -> int:  # noqa: ARG003 - one for all
        """One."""
        return 1

    @classmethod
    def rank_limits(cls, out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
        """See ``cp_rank_limit``."""
        return (cp_rank_limit(out_modes + in_modes),)

    @classmethod
    def largest_ranks(
        cls, out_modes: tuple[int, ...], in_modes: tuple[int, ...], spec: LayerSpec
    ) -> tuple[int, ...]:
        """The rank that takes as many numbers as the matrix; at least 1, as of one of 2 x 2."""
        (most,) = cls.rank_limits(out_modes, in_modes)
        return (max(1, min(most, spec.parameters // sum(out_modes + in_modes))),)

    def feasible(self) -> Cp:
        """The same with a rank that its modes allow."""
        (most,) = self.rank_limits(self.out_modes, self.in_modes)
        return replace(self, rank=min(self.rank, most))

    def rank_share(self, spec: LayerSpec) -> float:
        """Share of the rank at which it stores as many numbers as the matrix has."""
        return min(1.0, self.rank * sum(self.out_modes + self.in_modes) / spec.parameters)

    def factors_anew(self, known: CompressedMatrix, problem: MatrixProblem) -> CompressedMatrix:
        """See ``Method``. The fit starts from the largest components: random ones end elsewhere."""
        assert isinstance(known, CpMatrix)
        order = falling_components(known.bonds(problem.metric).cores())
        kept = [core[:, order[: self.rank]] for core in known.form_cores()]
        form = self._form
        target = whitened_target(problem, form.out_modes, form.in_modes)
        fitted = unwhitened(form, refine(form, whitened(form, kept, target), target), target)
        problem.once(("cores", form), lambda: even_norms(fitted))
        return self.build(problem)

    @property
    def _form(self) -> CpForm:
        return CpForm((self.rank,), self.out_modes, self.in_modes)

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Decompose the whitened matrix, improve the factors, and round them if asked to."""
        sides = (("out_factors", self.out_modes), ("in_factors", self.in_modes))
        parts = [
            Part(f"{side}.{k}", (0, 1), (mode, self.rank))
            for side, modes in sides
            for k, mode in enumerate(modes)
        ]
        return store_fitted(problem, self._form, parts, self.bits)
