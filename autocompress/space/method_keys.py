"""The keys that describe each method in a search space file, and the families they become."""

from __future__ import annotations

from typing import Annotated, Any, Self, get_args

from pydantic import BeforeValidator, Field, create_model, model_validator

from autocompress.methods.cp import Cp
from autocompress.methods.grouping import WHOLE_ROW
from autocompress.methods.quantize_plus_low_rank import CORRECTOR_BITS
from autocompress.methods.registry import METHODS, PACKAGES
from autocompress.methods.sparse import Pattern
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.randomised import (
    OVERSAMPLING,
    POWER_ITERATIONS,
    SKETCHES,
    Sketching,
    SketchKind,
)
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.svd import MetricKind, Solver
from autocompress.numerics.trellis import TRELLIS_BITS
from autocompress.space.families.base import Family, Ranks
from autocompress.space.families.codes import QuantizeFamily, TrellisFamily
from autocompress.space.families.low_rank import QuantizePlusLowRankFamily, SvdFamily
from autocompress.space.families.sparse import SparseFamily
from autocompress.space.families.tensors import Modes, Split, TensorFamily
from autocompress.space.plugged_keys import plugged_keys
from autocompress.space.schema import Strict, one_of

SMALLEST_GROUP = 2


def _fraction(value: object) -> object:
    if not isinstance(value, float) or not 0 < value <= 1:
        raise ValueError(
            "a share with a decimal point, more than 0.0 and at most 1.0 "
            "(whole ranks go under `ranks`)"
        )
    return value


def _share(value: object) -> object:
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError("a share with a decimal point, between 0.0 and 1.0")
    return value


def _pattern(value: object) -> object:
    if value not in get_args(Pattern):  # without quotes 2:4 is 2 minutes and 4 seconds in YAML
        raise ValueError('"2:4" (with its quotes) or unstructured')
    return value


def _group_size(value: object) -> object:
    if value == "row":
        return WHOLE_ROW
    if not isinstance(value, int) or isinstance(value, bool) or value < SMALLEST_GROUP:
        raise ValueError(f"a whole number from {SMALLEST_GROUP}, or row")
    return value


MetricName = Annotated[MetricKind, one_of(*get_args(MetricKind))]
CodeBits = Annotated[int, one_of(*PACKED_BITS)]
TrellisBits = Annotated[int, one_of(*TRELLIS_BITS)]
CorrectorBits = Annotated[int, one_of(*CORRECTOR_BITS)]
GramName = Annotated[GramKind, one_of(*get_args(GramKind))]
SolverName = Annotated[Solver, one_of(*get_args(Solver))]
SketchName = Annotated[SketchKind, one_of(*SKETCHES)]
FactorBits = Annotated[int, one_of(8, 4, none=0)]
SparsePattern = Annotated[Pattern, BeforeValidator(_pattern)]
SplitName = Annotated[Split, one_of(*get_args(Split))]
GroupSize = Annotated[int, BeforeValidator(_group_size)]
Fraction = Annotated[float, BeforeValidator(_fraction)]
Share = Annotated[float, BeforeValidator(_share)]
Count = Annotated[int, Field(ge=1)]


class QuantizeKeys(Strict):
    """``methods.quantize``."""

    bits: list[CodeBits] = Field(min_length=1)
    group_sizes: list[GroupSize] = Field(min_length=1)
    symmetric: list[bool] = Field(default=[False], min_length=1)
    grams: list[GramName] = Field(default=["full"], min_length=1)

    def family(self) -> Family:
        """Frozen form."""
        return QuantizeFamily(
            tuple(self.bits), tuple(self.group_sizes), tuple(self.symmetric), tuple(self.grams)
        )


class TrellisKeys(Strict):
    """``methods.trellis``."""

    bits: list[TrellisBits] = Field(min_length=1)
    group_sizes: list[GroupSize] = Field(default=[WHOLE_ROW], min_length=1)
    grams: list[GramName] = Field(default=["full"], min_length=1)

    def family(self) -> Family:
        """Frozen form."""
        return TrellisFamily(tuple(self.bits), tuple(self.group_sizes), tuple(self.grams))


class SparseKeys(Strict):
    """``methods.sparse``."""

    patterns: list[SparsePattern] = Field(min_length=1)
    densities: list[Share] = Field(default=[], min_length=1)
    bits: list[FactorBits] = Field(default=[0], min_length=1)

    @model_validator(mode="after")
    def _density_where_it_is_free(self) -> Self:
        if ("unstructured" in self.patterns) != bool(self.densities):
            raise ValueError("`densities` with the unstructured pattern, and only with it")
        return self

    def family(self) -> Family:
        """Frozen form."""
        return SparseFamily(tuple(self.patterns), tuple(self.densities), tuple(self.bits))


class _RankKeys(Strict):
    """Keys of every method that cuts ranks."""

    ranks: list[Count] = Field(default=[], min_length=1)
    rank_fractions: list[Fraction] = Field(default=[], min_length=1)
    bits: list[FactorBits] = Field(default=[0], min_length=1)

    @model_validator(mode="after")
    def _some_rank(self) -> Self:
        if not self.ranks and not self.rank_fractions:
            raise ValueError("`ranks`, `rank_fractions`, or both")
        return self

    def typed_ranks(self) -> Ranks:
        return Ranks(tuple(self.ranks), tuple(self.rank_fractions))


class SvdKeys(_RankKeys):
    """``methods.svd``."""

    metrics: list[MetricName] = Field(default=["two_sided"], min_length=1)
    grams: list[GramName] = Field(default=["full"], min_length=1)
    solver: SolverName = "exact"
    sketch: SketchName = "gaussian"
    oversampling: Annotated[int, Field(ge=0)] = OVERSAMPLING
    power_steps: Annotated[int, Field(ge=0)] = POWER_ITERATIONS

    @model_validator(mode="after")
    def _projections_where_there_are_some(self) -> Self:
        given = self.model_fields_set & {"sketch", "oversampling", "power_steps"}
        if given and self.solver != "randomised":
            raise ValueError(f"`solver: randomised` beside `{sorted(given)[0]}`")
        return self

    def family(self) -> Family:
        """Frozen form."""
        return SvdFamily(
            self.typed_ranks(),
            tuple(self.metrics),
            tuple(self.bits),
            tuple(self.grams),
            None
            if self.solver == "exact"
            else Sketching(self.sketch, self.oversampling, self.power_steps),
        )


class QuantizePlusLowRankKeys(_RankKeys):
    """``methods.quantize_plus_low_rank``."""

    bits: list[CodeBits] = Field(min_length=1)
    group_sizes: list[GroupSize] = Field(min_length=1)
    factor_bits: list[CorrectorBits] = Field(default=[8], min_length=1)
    symmetric: list[bool] = Field(default=[False], min_length=1)
    grams: list[GramName] = Field(default=["full"], min_length=1)

    def family(self) -> Family:
        """Frozen form."""
        return QuantizePlusLowRankFamily(
            tuple(self.bits),
            tuple(self.group_sizes),
            self.typed_ranks(),
            tuple(self.factor_bits),
            tuple(self.symmetric),
            tuple(self.grams),
        )


class ModesKeys(Strict):
    """One entry of ``modes``: how rows and columns are split."""

    rows: list[Count] = Field(min_length=1)
    columns: list[Count] = Field(min_length=1)


class _TensorKeys(_RankKeys):
    """Keys of the tensor decompositions."""

    orders: list[Annotated[int, Field(ge=2, le=8)]] = Field(default=[], min_length=1)
    splits: list[SplitName] = Field(default=["balanced"], min_length=1)
    modes: list[ModesKeys] = Field(default=[], min_length=1)

    @model_validator(mode="after")
    def _some_split(self) -> Self:
        if not self.orders and not self.modes:
            raise ValueError("`orders` (split automatically), `modes`, or both")
        return self

    def arguments(self) -> dict[str, Any]:
        modes = tuple(Modes(tuple(entry.rows), tuple(entry.columns)) for entry in self.modes)
        return {
            "ranks": self.typed_ranks(),
            "orders": tuple(self.orders),
            "splits": tuple(self.splits),
            "modes": modes,
            "bits": tuple(self.bits),
        }


class TensorTrainKeys(_TensorKeys):
    """``methods.tensor_train``."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if any(len(entry.rows) != len(entry.columns) for entry in self.modes):
            raise ValueError("`modes` with as many rows as columns")
        return self

    def family(self) -> Family:
        """Frozen form."""
        return TensorFamily(TensorTrain, **self.arguments())


class TuckerKeys(_TensorKeys):
    """``methods.tucker``."""

    def family(self) -> Family:
        """Frozen form."""
        return TensorFamily(Tucker, **self.arguments())


class CpKeys(_TensorKeys):
    """``methods.cp``."""

    def family(self) -> Family:
        """Frozen form."""
        return TensorFamily(Cp, **self.arguments())


_installed: dict[str, Any] = {name: (plugged_keys(METHODS[name]) | None, None) for name in PACKAGES}
_Plugged: Any = create_model("_Plugged", __base__=Strict, **_installed)


class MethodsKeys(_Plugged):  # type: ignore[misc]  # its fields are those of installed packages
    """``methods``."""

    keep: bool = True
    quantize: QuantizeKeys | None = None
    trellis: TrellisKeys | None = None
    quantize_plus_low_rank: QuantizePlusLowRankKeys | None = None
    sparse: SparseKeys | None = None
    svd: SvdKeys | None = None
    tensor_train: TensorTrainKeys | None = None
    tucker: TuckerKeys | None = None
    cp: CpKeys | None = None

    def families(self) -> tuple[Family, ...]:
        """Frozen form."""
        given = (getattr(self, name) for name in METHOD_NAMES[1:])
        return tuple(keys.family() for keys in given if keys is not None)


METHOD_NAMES = tuple(METHODS)  # ``keep`` first
