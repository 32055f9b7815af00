"""One method with its settings, as in recipes and pinned rules: ``{method: quantize, bits: 4}``."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, get_type_hints

from pydantic import create_model

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.folding import Folded
from autocompress.methods.listing import default_of
from autocompress.methods.registry import METHODS, missing_method
from autocompress.space.document import Document, Path_
from autocompress.space.problems import nearest_name, shown
from autocompress.space.schema import Strict, check

# Words that say what the number 0 means in a setting.
WORDS_FOR_ZERO = {"bits": "none", "group_size": "row"}


def read_method(value: object, document: Document, at: Path_) -> Method | None:
    """Turn a value into a method; on problems, note all in the document and return ``None``."""
    if not isinstance(value, dict):
        document.problems.append(
            document.problem(at, shown(value), "a mapping such as {method: quantize, bits: 4}")
        )
        return None
    name = value.get("method")
    if name is None:
        document.problems.append(
            document.problem((*at, "method"), "nothing", f"one of {', '.join(METHODS)}")
        )
        return None
    if not isinstance(name, str) or name not in METHODS:
        packages = document.data.get("packages") if isinstance(document.data, dict) else None
        missing = missing_method(name, packages if isinstance(packages, dict) else None)
        allowed, nearest = ", ".join(METHODS), nearest_name(name, METHODS)
        if missing:
            allowed, nearest = f"{allowed}; {missing.rstrip('.')}", ""
        document.problems.append(document.problem((*at, "method"), shown(name), allowed, nearest))
        return None
    settings = {
        key: number_for_word(key, setting) for key, setting in value.items() if key != "method"
    }
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    one_for_all = _one_for_all(METHODS[name], settings)
    settings = one_for_all or settings
    if check(_settings_model(METHODS[name]), settings, document, at) is None:
        return None
    try:
        method = METHODS[name].from_settings(settings)
        return method.feasible() if one_for_all else method
    except MethodError as error:
        setting = error.what.rpartition(", ")[2]  # "method svd, bits"
        key = (*at, setting) if setting in settings else at
        document.problems.append(
            document.problem(key, str(error.got or error.what), error.wanted or error.what)
        )
        return None


def number_for_word(key: str, setting: Any) -> Any:
    """The number that a word such as ``row`` stands for in a setting; other values as they are."""
    return 0 if isinstance(setting, str) and WORDS_FOR_ZERO.get(key) == setting else setting


def _one_for_all(method: type[Method], settings: dict[str, Any]) -> dict[str, Any] | None:
    """Settings with a rank at every bond, where one number stands for all; ``None`` elsewhere."""
    rank, sides = settings.get("ranks"), [settings.get(side) for side in ("out_modes", "in_modes")]
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    orders = [len(modes) for modes in sides if isinstance(modes, tuple) and modes]
    if not whole or len(orders) < len(sides):
        return None
    if not issubclass(method, Folded) or method.rank_setting != "ranks":
        return None
    return settings | {"ranks": (rank,) * method.rank_count(*orders)}


@cache
def _settings_model(method: type[Method]) -> type[Strict]:
    """The settings of a method as a pydantic model, from the method's own fields."""
    hints = get_type_hints(method)
    fields: dict[str, Any] = {
        field.name: (
            hints[field.name],
            default_of(field),
        )
        for field in dataclasses.fields(method)
    }
    return create_model(f"{method.__name__}Settings", __base__=Strict, **fields)
