"""The methods there are, by the name that recipes and search spaces use.

Packages add methods of their own through the entry point group ``autocompress.methods``: the name
of an entry is that of the method, and the object is its class.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.cp import Cp
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.sparse import Sparse
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.methods.tucker import Tucker

GROUP = "autocompress.methods"
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Keep,
        Quantize,
        Trellis,
        QuantizePlusLowRank,
        Sparse,
        Svd,
        TensorTrain,
        Tucker,
        Cp,
    )
}
PACKAGES: dict[str, str] = {}  # method -> the package that brings it
BROKEN: dict[str, str] = {}  # method that an installed package should bring -> why it does not
_log = logging.getLogger(__name__)


def _add_installed() -> None:
    """Add the methods of installed packages; one that cannot be used is known with the reason."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist else entry.value.partition(":")[0]
        if entry.name in METHODS:
            other = PACKAGES.get(entry.name, "autocompress itself")
            _log.warning(
                "method %r of the package %s is left out: %s has one of that name",
                *(entry.name, package, other),
            )
            continue
        try:
            METHODS[entry.name] = _load(entry)
        except Exception as error:  # noqa: BLE001 - whatever a foreign package raises; it is told where the method is asked for
            BROKEN[entry.name] = f"the package {package} has it, but {_reason(error)}"
            _log.warning(missing_method(entry.name))
        else:
            PACKAGES[entry.name] = package


def _load(entry: EntryPoint) -> type[Method]:
    method = entry.load()
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise MethodError(f"{entry.value} is no subclass of autocompress.methods.Method")
    if not dataclasses.is_dataclass(method) or not method.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise MethodError(f"{entry.value} is no frozen dataclass")
    if getattr(method, "name", None) != entry.name:
        raise MethodError(f"the name of {entry.value} is not {entry.name!r}, as its entry point's")
    return method


def _reason(error: Exception) -> str:
    if isinstance(error, MethodError):
        return error.what
    return f"loading it failed ({type(error).__name__}: {error})"


def version_of(method: str) -> str:
    """The version of the package that brings a method; empty for those of autocompress itself."""
    return version(PACKAGES[method]) if method in PACKAGES else ""


def missing_method(name: object, packages: Mapping[str, str] | None = None) -> str:
    """Say why a method is not there and what to do, or nothing where its name is just unknown.

    Args:
        name: of the method.
        packages: what a recipe says of the packages that its methods come from.
    """
    key = str(name)
    if key in BROKEN:
        return f"{key!r} cannot be used: {BROKEN[key]}."
    package = (packages or {}).get(key)
    return f"{key!r} comes from the package {package}: install it." if package else ""


def method_from_dict(data: dict[str, Any], packages: Mapping[str, str] | None = None) -> Method:
    """Make a method from ``{"method": name, **settings}``, the inverse of ``Method.to_dict``.

    Args:
        data: the mapping.
        packages: see ``missing_method``.

    Raises:
        MethodError: an unknown method or setting.
    """
    settings = dict(data)
    name = settings.pop("method", None)
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = missing_method(name, packages) or (f"Did you mean {near[0]!r}?" if near else "")
        raise MethodError("unknown method", got=repr(name), wanted=", ".join(METHODS), hint=hint)
    return METHODS[name].from_settings(settings)


_add_installed()  # last, so that a package may import from here
