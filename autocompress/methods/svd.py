"""Store a matrix as two thin factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.methods.base import FACTOR_BITS, MatrixProblem, Method, torch_dtype, whole_number
from autocompress.numerics.factor_rounding import FACTOR_GROUPS, round_factors
from autocompress.numerics.rounding import largest_group, pack_grid
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
    """

    rank: int
    metric: MetricKind = "two_sided"
    bits: int = 0
    name: ClassVar[str] = "svd"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number(self.name, "rank", self.rank, least=1)
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        if self.metric not in get_args(MetricKind):
            raise MethodError(
                "method svd, metric", got=repr(self.metric), wanted=", ".join(get_args(MetricKind))
            )

    def check(self, spec: LayerSpec) -> None:
        """The rank must not exceed the smaller side of the matrix.

        Raises:
            MethodError: it does.
        """
        if self.rank > min(spec.shape):
            raise MethodError(
                f"layer {spec}, {self}: rank", got=self.rank, wanted=f"at most {min(spec.shape)}"
            )

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

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Cut the decomposition, which all ranks share, and round the factors if asked to."""
        spectrum = self.spectrum(problem)
        left, right = spectrum.left[: self.rank], spectrum.right[: self.rank]
        if not self.bits:
            dtype = torch_dtype(problem.spec)
            return {
                "left.weight": left.to(dtype, copy=True),
                "right.weight": right.to(dtype, copy=True),
            }
        _, columns = grams_of(problem.metric, self.metric, problem.weight)
        factors = round_factors(
            problem.weight32, right, columns, bits=self.bits, groups=self._groups(problem.spec)
        )
        return {
            f"{side}.packed.{name}": tensor
            for side, (grid, codes) in zip(("left", "right"), factors, strict=True)
            for name, tensor in pack_grid(grid, codes).items()
        }

    def spectrum(self, problem: MatrixProblem) -> Spectrum:
        """The decomposition of the problem's matrix in this metric, computed once for all ranks."""
        key = ("svd", self.metric)
        if key not in problem.memo:
            problem.memo[key] = decompose(
                problem.weight32, *grams_of(problem.metric, self.metric, problem.weight)
            )
        found = problem.memo[key]
        assert isinstance(found, Spectrum)
        return found

    def _groups(self, spec: LayerSpec) -> tuple[int, int]:
        most = FACTOR_GROUPS.get(self.bits, 0)
        return (
            (largest_group(spec.out_features, most), largest_group(spec.in_features, most))
            if most
            else (0, 0)
        )

    def __str__(self) -> str:
        metric = "" if self.metric == "two_sided" else f" {self.metric}"
        return f"svd r{self.rank}{metric}" + (f" int{self.bits}" if self.bits else "")
