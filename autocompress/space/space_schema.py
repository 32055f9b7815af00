"""The keys of a search space file, and the frozen objects that they become."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from autocompress.records import Role
from autocompress.space.method_keys import METHOD_NAMES, CodeBits, Fraction, MethodsKeys
from autocompress.space.schema import Strict, one_of
from autocompress.space.space import Group, Match


def _glob_as_mapping(value: object) -> object:
    return {"names": [value]} if isinstance(value, str) else value


RoleName = Annotated[str, one_of(*(role.value for role in Role))]
PartName = Annotated[str, one_of(*dict.fromkeys(role.part for role in Role))]
MethodName = Annotated[str, one_of(*METHOD_NAMES)]
Version = Annotated[int, one_of(1)]
Text = Annotated[str, Field(min_length=1)]


class MatchKeys(Strict):
    """``match`` of a rule."""

    names: list[Text] = Field(default=[], min_length=1)
    roles: list[RoleName] = Field(default=[], min_length=1)
    parts: list[PartName] = Field(default=[], min_length=1)
    depths: list[Annotated[int, Field(ge=0)]] = Field(default=[], min_length=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a glob over names, or some of names, roles, parts, depths")
        return self

    def match(self) -> Match:
        """Frozen form."""
        return Match(
            tuple(self.names),
            tuple(Role(role) for role in self.roles),
            tuple(self.parts),
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
