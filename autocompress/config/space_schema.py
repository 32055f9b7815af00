"""The keys of a search space file, and the frozen objects that they become."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from autocompress.config.schema import Strict, one_of
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.svd import MetricKind
from autocompress.records import Role
from autocompress.search.families import (
    WHOLE_ROW,
    Family,
    Modes,
    QuantizeFamily,
    Ranks,
    SvdFamily,
    TensorTrainFamily,
    TuckerFamily,
)
from autocompress.search.space import Group, Match


def _fraction(value: object) -> object:
    if not isinstance(value, float) or not 0 < value <= 1:
        raise ValueError(
            "a share with a decimal point, more than 0.0 and at most 1.0 "
            "(whole ranks go under `ranks`)"
        )
    return value


def _glob_as_mapping(value: object) -> object:
    return {"names": [value]} if isinstance(value, str) else value


def _group_size(value: object) -> object:
    if value == "row":
        return WHOLE_ROW
    if not isinstance(value, int) or isinstance(value, bool) or value < SMALLEST_GROUP:
        raise ValueError(f"a whole number from {SMALLEST_GROUP}, or row")
    return value


SMALLEST_GROUP = 2
METHOD_NAMES = ("keep", "quantize", "svd", "tensor_train", "tucker")
RoleName = Annotated[str, one_of(*(role.value for role in Role))]
BlockName = Annotated[str, one_of(*dict.fromkeys(role.block for role in Role))]
MethodName = Annotated[str, one_of(*METHOD_NAMES)]
MetricName = Annotated[MetricKind, one_of(*get_args(MetricKind))]
CodeBits = Annotated[int, one_of(*PACKED_BITS)]
FactorBits = Annotated[int, one_of(8, 4, none=0)]
GroupSize = Annotated[int, BeforeValidator(_group_size)]
Fraction = Annotated[float, BeforeValidator(_fraction)]
Count = Annotated[int, Field(ge=1)]
Version = Annotated[int, one_of(1)]
Text = Annotated[str, Field(min_length=1)]


class QuantizeKeys(Strict):
    """``methods.quantize``."""

    bits: list[CodeBits] = Field(min_length=1)
    group_sizes: list[GroupSize] = Field(min_length=1)
    symmetric: list[bool] = Field(default=[False], min_length=1)

    def family(self) -> Family:
        """Frozen form."""
        return QuantizeFamily(tuple(self.bits), tuple(self.group_sizes), tuple(self.symmetric))


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

    def family(self) -> Family:
        """Frozen form."""
        return SvdFamily(self.typed_ranks(), tuple(self.metrics), tuple(self.bits))


class ModesKeys(Strict):
    """One entry of ``modes``: how rows and columns are split."""

    rows: list[Count] = Field(min_length=1)
    columns: list[Count] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.rows) != len(self.columns):
            raise ValueError("as many rows as columns")
        return self


class _TensorKeys(_RankKeys):
    """Keys of the tensor decompositions."""

    orders: list[Annotated[int, Field(ge=2, le=8)]] = Field(default=[], min_length=1)
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
            "modes": modes,
            "bits": tuple(self.bits),
        }


class TensorTrainKeys(_TensorKeys):
    """``methods.tensor_train``."""

    def family(self) -> Family:
        """Frozen form."""
        return TensorTrainFamily(**self.arguments())


class TuckerKeys(_TensorKeys):
    """``methods.tucker``."""

    def family(self) -> Family:
        """Frozen form."""
        return TuckerFamily(**self.arguments())


class MethodsKeys(Strict):
    """``methods``."""

    keep: bool = True
    quantize: QuantizeKeys | None = None
    svd: SvdKeys | None = None
    tensor_train: TensorTrainKeys | None = None
    tucker: TuckerKeys | None = None

    def families(self) -> tuple[Family, ...]:
        """Frozen form."""
        given = (self.quantize, self.svd, self.tensor_train, self.tucker)
        return tuple(keys.family() for keys in given if keys is not None)


class MatchKeys(Strict):
    """``match`` of a rule."""

    names: list[Text] = Field(default=[], min_length=1)
    roles: list[RoleName] = Field(default=[], min_length=1)
    blocks: list[BlockName] = Field(default=[], min_length=1)
    depths: list[Annotated[int, Field(ge=0)]] = Field(default=[], min_length=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a glob over names, or some of names, roles, blocks, depths")
        return self

    def match(self) -> Match:
        """Frozen form."""
        return Match(
            tuple(self.names),
            tuple(Role(role) for role in self.roles),
            tuple(self.blocks),
            tuple(self.depths),
        )


class RuleKeys(Strict):
    """One entry of ``rules``; ``pin`` is read as a method entry afterwards."""

    match: Annotated[MatchKeys, BeforeValidator(_glob_as_mapping)]
    methods: list[MethodName] | None = Field(default=None, min_length=1)
    min_bits: CodeBits | None = None
    min_rank_fraction: Fraction | None = None
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    keep: Literal[True] | None = None
    pin: dict[str, Any] | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _one_purpose(self) -> Self:
        given = self.model_fields_set - {"match", "optional"}
        if not given:
            raise ValueError(
                "something to do: methods, min_bits, min_rank_fraction, max_ratio, keep or pin"
            )
        if given & {"keep", "pin"} and len(given) > 1:
            raise ValueError("`keep` or `pin` alone: either decides everything by itself")
        return self


class GroupKeys(Strict):
    """One entry of ``groups``."""

    roles: list[RoleName] = Field(default=[], min_length=2)
    names: list[Text] = Field(default=[], min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.roles) == bool(self.names):
            raise ValueError(
                "either roles (tied within each block) or names (all that match are tied)"
            )
        return self

    def group(self) -> Group:
        """Frozen form."""
        return Group(roles=tuple(Role(role) for role in self.roles), names=tuple(self.names))


class SpaceKeys(Strict):
    """A whole file."""

    version: Version
    name: Text
    description: str = ""
    methods: MethodsKeys
    rules: list[RuleKeys] = Field(default=[])
    groups: list[GroupKeys] = Field(default=[])

    @model_validator(mode="after")
    def _rules_name_what_there_is(self) -> Self:
        offered = {name for name in METHOD_NAMES[1:] if getattr(self.methods, name)}
        for index, rule in enumerate(self.rules):
            missing = [
                name for name in rule.methods or () if name != "keep" and name not in offered
            ]
            if missing:
                raise ValueError(
                    f"in rules[{index}] only methods that `methods` describes "
                    f"({', '.join(sorted(offered))}), which {missing[0]} is not"
                )
        return self
