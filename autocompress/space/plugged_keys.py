"""The keys that describe a method of another package in a search space file.

They are the settings of the method, each with a list of the values to offer.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.space.families.base import Family
from autocompress.space.families.product import ProductFamily
from autocompress.space.method_entry import default_of, number_for_word
from autocompress.space.schema import Strict


class _ProductKeys(Strict):
    method: ClassVar[type[Method]]

    def family(self) -> Family:
        """Frozen form."""
        settings = tuple((name, tuple(getattr(self, name))) for name in type(self).model_fields)
        return ProductFamily(self.method, settings)

    @model_validator(mode="after")
    def _some_combination(self) -> Self:
        family = self.family()
        assert isinstance(family, ProductFamily)
        try:
            found = list(family.methods())
        except MethodError as error:
            raise ValueError(f"settings that go together ({error.what}: {error.got})") from error
        if not found:
            raise ValueError("settings that go together")
        return self


def plugged_keys(method: type[Method]) -> type[Strict]:
    """The keys of a method: each of its settings, as a list of values."""
    hints = get_type_hints(method)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        read = BeforeValidator(partial(_setting, field.name))
        value: Any = Annotated[hints[field.name], read]
        default = default_of(field)
        key = Field(min_length=1) if default is ... else Field(default=[default], min_length=1)
        fields[field.name] = list[value], key
    keys = create_model(f"{method.__name__}Keys", __base__=_ProductKeys, **fields)
    keys.method = method
    return keys


def _setting(name: str, value: object) -> object:
    return tuple(value) if isinstance(value, list) else number_for_word(name, value)
