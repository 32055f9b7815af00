"""Store a matrix as two thin factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, get_args

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    MatrixProblem,
    Method,
    one_of,
    torch_dtype,
    whole_number,
)
from autocompress.methods.shared_work import feedback_of, gram_label, metric_of
from autocompress.numerics.factor_rounding import Rounded, factor_groups, round_left, round_right
from autocompress.numerics.rounding import Grid, pack_grid
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.svd import MetricKind, Spectrum, decompose, grams_of
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Svd(Method):
    """The best product of two factors of a given rank.

    Attributes:
        rank: rows of each factor.
        metric: what the fit minimises: the change of the matrix (``plain``), of the layer's outputs
            (``input``), or of the loss (``two_sided``).
        bits: 8 or 4 to round the factors, 0 to keep them in the type of the matrix.
        gram: how far to trust the calibrated Gram matrices.
    """

    rank: int
    metric: MetricKind = "two_sided"
    bits: int = 0
    gram: GramKind = "full"
    name: ClassVar[str] = "svd"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number(self.name, "rank", self.rank, least=1)
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        one_of(self.name, "metric", self.metric, get_args(MetricKind))
        one_of(self.name, "gram", self.gram, get_args(GramKind))

    def check(self, spec: LayerSpec) -> None:
        """The rank must not exceed the smaller side of the matrix.

        Raises:
            MethodError: it does.
        """
        if self.rank > min(spec.shape):
            raise MethodError(
                f"layer {spec}, {self}: rank", got=self.rank, wanted=f"at most {min(spec.shape)}"
            )

    def fitting(self, spec: LayerSpec) -> Svd:
        """The same with a rank that a matrix can have."""
        return replace(self, rank=min(self.rank, *spec.shape))

    def rank_share(self, spec: LayerSpec) -> float:
        """Share of the largest rank."""
        return self.rank / min(spec.shape)

    def skeleton(self, spec: LayerSpec) -> LowRankMatrix:
        """A low-rank layer without content."""
        return LowRankMatrix(
            *spec.shape,
            rank=self.rank,
            bits=self.bits,
            groups=self._groups(spec),
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    @classmethod
    def prepare(cls, problem: MatrixProblem, methods: Sequence[Self]) -> None:
        """Round the right factor of the highest rank, from which the lower ones are cut."""
        for method in sorted(methods, key=lambda svd: svd.rank, reverse=True):
            if method.bits:
                method._rounded_right(problem)

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Cut the decomposition, which all ranks share, and round the factors if asked to."""
        if not self.bits:
            spectrum, dtype = self.spectrum(problem), torch_dtype(problem.spec)
            return {
                "left.weight": spectrum.left[: self.rank].to(dtype, copy=True),
                "right.weight": spectrum.right[: self.rank].to(dtype, copy=True),
            }
        right = grid, codes = self._rounded_right(problem)
        left = round_left(
            problem.weight32,
            grid.dequantize(codes),
            self._grams(problem)[1],
            bits=self.bits,
            group_size=self._groups(problem.spec)[0],
        )
        return {
            f"{side}.packed.{name}": tensor
            for side, factor in (("left", left), ("right", right))
            for name, tensor in pack_grid(*factor).items()
        }

    def spectrum(self, problem: MatrixProblem) -> Spectrum:
        """The decomposition of the problem's matrix in this metric, computed once for all ranks."""
        return problem.once(
            ("svd", self.metric, self.gram),
            lambda: decompose(problem.weight32, *self._grams(problem)),
        )

    def _rounded_right(self, problem: MatrixProblem) -> Rounded:
        key = ("right factor", self.metric, self.gram, self.bits)
        known: Rounded | None = problem.memo.get(key)
        if known is None or len(known[1]) < self.rank:
            known = problem.memo[key] = round_right(
                self.spectrum(problem).right[: self.rank],
                self._grams(problem)[1],
                None if self.metric == "plain" else feedback_of(problem, self.gram),
                bits=self.bits,
                group_size=self._groups(problem.spec)[1],
            )
        grid, codes = known
        return Grid(grid.scale[: self.rank], None, grid.bits), codes[: self.rank]

    def _grams(self, problem: MatrixProblem) -> tuple[Tensor, Tensor]:
        return grams_of(metric_of(problem, self.gram), self.metric, problem.weight)

    def _groups(self, spec: LayerSpec) -> tuple[int, int]:
        return factor_groups(spec.shape, self.bits)

    def __str__(self) -> str:
        metric = "" if self.metric == "two_sided" else f" {self.metric}"
        metric += gram_label(self.gram)
        return f"svd r{self.rank}{metric}" + (f" int{self.bits}" if self.bits else "")
