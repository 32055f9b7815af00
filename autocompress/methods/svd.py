"""Store a matrix as two thin factors."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self, get_args

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
from autocompress.methods.listing import (
    FACTORS,
    GRAMS,
    Baseline,
    Choice,
    Key,
    Listed,
    Ranks,
    Whole,
    rank_keys,
)
from autocompress.methods.shared_work import feedback_of, gram_label, metric_of
from autocompress.numerics.factor_rounding import Rounded, factor_groups, round_left, round_right
from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.randomised import (
    OVERSAMPLING,
    POWER_ITERATIONS,
    SKETCHES,
    Sketching,
    SketchKind,
)
from autocompress.numerics.rounding import Grid, pack_grid
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.svd import (
    MetricKind,
    Solver,
    Spectrum,
    Whitening,
    decompose,
    decompose_whitened,
    grams_of,
    rank_within,
)
from autocompress.numerics.tensors.shapes import aligned_rank
from autocompress.records import LayerSpec

# What each setting of random projections is called here.
_SETTINGS = {
    "kind": "sketch",
    "oversampling": "oversampling",
    "power_iterations": "power_steps",
}


@dataclass(frozen=True)
class Svd(Method):
    """The best product of two factors of a given rank.

    Attributes:
        rank: rows of each factor; 0 where a tolerance says it.
        metric: what the fit minimises: the change of the matrix (``plain``), of the layer's outputs
            (``input``), or of the loss (``two_sided``).
        bits: 8 or 4 to round the factors, 0 to keep them in the type of the matrix.
        gram: how far to trust the calibrated Gram matrices.
        tolerance: take the smallest rank that leaves at most this share of the matrix's norm, both
            in the metric and before factors are rounded. ``settled`` puts the rank in its place.
        solver: ``exact``, or ``randomised``: random projections, faster for few ranks of a large
            matrix (Halko, Martinsson and Tropp 2011, arXiv 0909.4061).
        sketch: of random projections: ``gaussian`` or ``hadamard``.
        oversampling: random vectors beyond the rank.
        power_steps: products with the matrix and its transpose: more bring a slowly falling
            spectrum nearer to exact.
    """

    rank: int = 0
    metric: MetricKind = "two_sided"
    bits: int = 0
    gram: GramKind = "full"
    tolerance: float = 0.0
    solver: Solver = "exact"
    sketch: SketchKind = "gaussian"
    oversampling: int = OVERSAMPLING
    power_steps: int = POWER_ITERATIONS
    name: ClassVar[str] = "svd"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tolerance:
            self._check_tolerance()
        else:
            whole_number(self.name, "rank", self.rank, least=1)
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        one_of(self.name, "metric", self.metric, get_args(MetricKind))
        one_of(self.name, "gram", self.gram, get_args(GramKind))
        one_of(self.name, "solver", self.solver, get_args(Solver))
        one_of(self.name, "sketch", self.sketch, SKETCHES)
        whole_number(self.name, "oversampling", self.oversampling, least=0)
        whole_number(self.name, "power_steps", self.power_steps, least=0)
        if self.sketching is None:
            for setting, default in asdict(Sketching()).items():
                value = getattr(self, _SETTINGS[setting])
                if value != default:
                    raise MethodError(
                        f"method {self.name}, {_SETTINGS[setting]}",
                        got=value,
                        wanted="none without solver: randomised",
                    )

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """See ``Listable``; all options are fitted by the same random projections."""
        return {
            **rank_keys(),
            "bits": FACTORS,
            "metrics": Key("metric", Choice(get_args(MetricKind)), ("two_sided",)),
            "grams": GRAMS,
            "solver": Key("solver", Choice(get_args(Solver)), ("exact",), single=True),
            "sketch": Key("sketch", Choice(SKETCHES), ("gaussian",), single=True),
            "oversampling": Key("oversampling", Whole(0), (OVERSAMPLING,), single=True),
            "power_steps": Key("power_steps", Whole(0), (POWER_ITERATIONS,), single=True),
        }

    @classmethod
    def check_listed(cls, listed: Listed, given: Collection[str]) -> None:
        """See ``Listable``."""
        Ranks.check(listed)
        idle = sorted({*_SETTINGS.values()} & {*given})
        if idle and listed["solver"] == ("exact",):
            raise ValueError(f"`solver: randomised` beside `{idle[0]}`")

    @classmethod
    def candidates(cls, listed: Listed, spec: LayerSpec) -> Iterator[Svd]:
        """See ``Listable``; shares of ranks are of ``min(out, in)``."""
        (solver,), *settings = (listed[key] for key in ("solver", *_SETTINGS.values()))
        sketching = None if solver == "exact" else Sketching(*(value for (value,) in settings))
        for (rank,), metric, bits, gram in itertools.product(
            Ranks.of(listed).within((min(spec.shape),)),
            *(listed[key] for key in ("metrics", "bits", "grams")),
        ):
            yield cls(rank, metric, bits, gram).sketched(sketching)

    @classmethod
    def baselines(cls, share: float) -> Iterator[Baseline]:
        """As many parameters as the share allows."""

        def cut(spec: LayerSpec) -> Svd:
            rank = share * spec.parameters / (spec.out_features + spec.in_features)
            return cls(aligned_rank(rank))

        yield Baseline(f"SVD, {share:.0%} of the parameters", cut)

    @classmethod
    def notices(cls, listed: Listed, spec: LayerSpec) -> Iterator[str]:
        """Yield which whole ranks are above the smaller side."""
        yield from Ranks.of(listed).notices(cls.name, min(spec.shape))

    def sketched(self, sketching: Sketching | None) -> Svd:
        """The same, fitted by random projections unless that is ``None``."""
        if sketching is None:
            return self
        settings = {_SETTINGS[name]: value for name, value in asdict(sketching).items()}
        return replace(self, solver="randomised", **settings)

    def _check_tolerance(self) -> None:
        share = isinstance(self.tolerance, float) and 0 < self.tolerance < 1
        if not share or self.rank:
            raise MethodError(
                f"method {self.name}, tolerance",
                got=f"rank {self.rank} beside it" if share else repr(self.tolerance),
                wanted="a share of the norm between 0.0 and 1.0, in place of a rank",
            )

    @property
    def sketching(self) -> Sketching | None:
        """The random projections that it is fitted by, if it is."""
        if self.solver == "exact":
            return None
        return Sketching(self.sketch, self.oversampling, self.power_steps)

    @property
    def is_open(self) -> bool:
        """Whether the rank is left to the matrix."""
        return bool(self.tolerance)

    def settled(self, problem: MatrixProblem) -> Svd:
        """The same with the rank that its tolerance asks of a matrix."""
        if not self.is_open:
            return self
        rank, _ = problem.once(
            ("rank", self.metric, self.gram, self.tolerance, self.sketching),
            lambda: rank_within(
                problem.weight32,
                Whitening.of(*self._grams(problem)),
                self.tolerance,
                self.sketching,
            ),
        )
        return replace(self, rank=rank, tolerance=0.0)

    def to_dict(self) -> dict[str, Any]:
        """See ``Method.to_dict``; tolerance and random projections are named where they count."""
        settings = super().to_dict()
        del settings["rank" if self.is_open else "tolerance"]
        if self.sketching is None:
            for setting in ("solver", *_SETTINGS.values()):
                del settings[setting]
        return settings

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

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """Its one rank."""
        return (self.rank,)

    def with_ranks(self, ranks: Sequence[int]) -> Svd:
        """See ``Method``."""
        return replace(self, rank=ranks[0])

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
        """The decomposition of the problem's matrix in this metric.

        An exact one is computed once for all ranks; what random projections find depends on how
        many there are.
        """
        if self.sketching is None:
            return problem.once(
                self._key, lambda: decompose(problem.weight32, *self._grams(problem))
            )
        whitening = problem.once(
            ("whitening", self.metric, self.gram), lambda: Whitening.of(*self._grams(problem))
        )
        return problem.once(
            self._key,
            lambda: decompose_whitened(
                problem.weight32, whitening, most_rank=self.rank, sketching=self.sketching
            ),
        )

    def fit_metric(self, problem: MatrixProblem) -> Metric:
        """See ``Method``; its own Gram matrices."""
        return Metric((Curvature(*self._grams(problem)),))

    @property
    def _key(self) -> tuple[Hashable, ...]:
        """Of the decomposition in a problem's memory."""
        exact = "svd", self.metric, self.gram
        return exact if self.sketching is None else (*exact, self.sketching, self.rank)

    def _rounded_right(self, problem: MatrixProblem) -> Rounded:
        key = ("right factor", self._key, self.bits)
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
        rank = f"within {self.tolerance:g}" if self.is_open else f"r{self.rank}"
        bits = f" int{self.bits}" if self.bits else ""
        return f"svd {rank}{metric}{bits}{self._solver_label()}"

    def _solver_label(self) -> str:
        if self.sketching is None:
            return ""
        label = " randomised" if self.sketch == "gaussian" else f" randomised {self.sketch}"
        label += f" +{self.oversampling}" if self.oversampling != OVERSAMPLING else ""
        steps = self.power_steps
        return label + (f" {steps} power steps" if steps != POWER_ITERATIONS else "")
