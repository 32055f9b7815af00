"""The keys that describe each method in a search space file, as the method itself says them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, create_model, model_validator

from autocompress.methods.base import Method
from autocompress.methods.folding import Modes
from autocompress.methods.keep import Keep
from autocompress.methods.listing import FRACTION, Choice, Key, Reader, Whole
from autocompress.methods.registry import METHODS
from autocompress.numerics.packing import PACKED_BITS
from autocompress.space.family import Family
from autocompress.space.method_entry import number_for_word
from autocompress.space.schema import Strict, one_of

METHOD_NAMES = tuple(METHODS)  # ``keep`` first


class ModesKeys(Strict):
    """One entry of ``modes``: how rows and columns are split."""

    rows: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    columns: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)


class MethodKeys(Strict):
    """The keys of one method, under its name in ``methods``."""

    method: ClassVar[type[Method]]

    def family(self) -> Family:
        """Frozen form."""
        return Family.of(self.method, **{name: self._values(name) for name in self._given})

    @model_validator(mode="after")
    def _what_goes_together(self) -> Self:
        self.method.check_listed(dict(self.family().listed), self._given)
        return self

    @property
    def _given(self) -> set[str]:
        return self.model_fields_set

    def _values(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        several = value if isinstance(value, list) else [value]
        return tuple(
            Modes(tuple(each.rows), tuple(each.columns)) if isinstance(each, ModesKeys) else each
            for each in several
        )


def annotated(values: Any, setting: str = "") -> Any:
    """What pydantic is told of the values of a key.

    Args:
        values: see ``Key``.
        setting: which words may stand for a number of.
    """
    match values:
        case Choice():
            return Annotated[Any, one_of(*values.values, **dict(values.words))]
        case Whole():
            return Annotated[int, Field(ge=values.least, le=values.most)]
        case Reader():
            return Annotated[Any, BeforeValidator(values.read)]
    if values is Modes:
        return ModesKeys
    return Annotated[values, BeforeValidator(partial(_setting, setting))]


def keys_of(method: type[Method]) -> type[MethodKeys]:
    """The model of a method's keys."""
    fields: dict[str, Any] = {name: _field(key) for name, key in method.space_keys().items()}
    keys = create_model(f"{method.__name__}Keys", __base__=MethodKeys, **fields)
    keys.method = method
    return keys


def _field(key: Key) -> tuple[Any, Any]:
    value: Any = annotated(key.values, key.setting)
    if key.single:
        (default,) = key.default or ()
        return value, default
    if key.default is None:
        return list[value], Field(min_length=1)
    return list[value], Field(default=list(key.default), min_length=1)


def _setting(name: str, value: object) -> object:
    return tuple(value) if isinstance(value, list) else number_for_word(name, value)


CodeBits = annotated(Choice(PACKED_BITS))
Fraction = annotated(FRACTION)
_fields: dict[str, Any] = {
    name: (keys_of(method) | None, None) for name, method in METHODS.items() if method != Keep
}
_Methods: Any = create_model("_Methods", __base__=Strict, **_fields)


class MethodsKeys(_Methods):  # type: ignore[misc]  # its fields are the methods there are
    """``methods``."""

    keep: bool = True

    def families(self) -> tuple[Family, ...]:
        """Frozen form."""
        given = (getattr(self, name) for name in METHOD_NAMES[1:])
        return tuple(keys.family() for keys in given if keys is not None)
