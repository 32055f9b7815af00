"""Checking plain values against pydantic models, with problems that a person can act on."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from autocompress.space.document import Document, Path_
from autocompress.space.problems import Problem, nearest_name, shown

M = TypeVar("M", bound=BaseModel)

_PLAIN_NAMES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "finite_number": "a finite number",
    "missing": "a value; this key is required",
}


def one_of(*values: int | str, **words: int) -> BeforeValidator:
    """Allow these values and no others, not even ``8.0`` or ``true`` for a whole number.

    Args:
        values: what may stand there.
        words: words that may stand there as well, and the number that each means.
    """
    expected = ", ".join(map(str, (*words, *values)))

    def check_value(value: object) -> object:
        if isinstance(value, str) and value in words:
            return words[value]
        if any(type(value) is type(known) and value == known for known in values):
            return value
        raise PydanticCustomError("literal_error", "{expected}", {"expected": expected})

    return BeforeValidator(check_value)


class Strict(BaseModel):
    """A mapping of known keys only, whose values are of the written type: no text for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def check(model: type[M], value: object, document: Document, at: Path_ = ()) -> M | None:
    """Check a value at a key; on problems, note them all in the document and return ``None``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        document.problems.extend(_problems(model, error.errors(include_url=False), document, at))
        return None


def _problems(
    model: type[BaseModel], errors: list[ErrorDetails], document: Document, at: Path_
) -> Iterator[Problem]:
    for error in errors:
        loc, kind = tuple(error["loc"]), error["type"]
        path, context = (*at, *loc), error.get("ctx", {})
        if kind == "extra_forbidden":
            names = sorted(_fields_at(model, loc[:-1]))
            yield document.problem(
                path, "an unknown key", ", ".join(names) or "no key", nearest_name(loc[-1], names)
            )
        elif kind == "missing":
            yield document.problem(path, "nothing", _PLAIN_NAMES[kind])
        elif kind == "literal_error":
            names = re.split(", | or ", str(context["expected"]))
            # Words with a colon keep their quotes: YAML reads 2:4 without them as a number.
            names = [name if ":" in name else name.strip("'") for name in names]
            yield document.problem(
                path,
                shown(error["input"]),
                ", ".join(names),
                nearest_name(error["input"], names),
            )
        else:
            yield document.problem(
                path, shown(error["input"]), _allowed(kind, error["msg"], context)
            )


def _allowed(kind: str, message: str, context: dict[str, Any]) -> str:
    match kind:
        case "greater_than":
            return f"more than {context['gt']}"
        case "greater_than_equal":
            return f"{context['ge']} or more"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "too_short":
            return f"at least {context['min_length']} of them"
        case "value_error":
            return str(context["error"])
        case _:
            return _PLAIN_NAMES.get(kind, message)


def _fields_at(model: type[BaseModel], loc: Path_) -> tuple[str, ...]:
    """Names of the fields of the model that stands at a location inside another."""
    current: Any = model
    for part in loc:
        if isinstance(part, int) or not (
            isinstance(current, type) and issubclass(current, BaseModel)
        ):
            continue
        current = (
            _model_in(current.model_fields[part].annotation)
            if part in current.model_fields
            else current
        )
    return (
        tuple(current.model_fields)
        if isinstance(current, type) and issubclass(current, BaseModel)
        else ()
    )


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside an optional or a list; the annotation itself when there is none."""
    if get_origin(annotation) in (Union, types.UnionType, list, tuple):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if isinstance(found, type) and issubclass(found, BaseModel):
                return found
    return annotation
