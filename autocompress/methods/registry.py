"""The methods there are, by the name that recipes and search spaces use."""

from __future__ import annotations

import difflib
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


def method_from_dict(data: dict[str, Any]) -> Method:
    """Make a method from ``{"method": name, **settings}``, the inverse of ``Method.to_dict``.

    Raises:
        MethodError: an unknown method or setting.
    """
    settings = dict(data)
    name = settings.pop("method", None)
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise MethodError("unknown method", got=repr(name), wanted=", ".join(METHODS), hint=hint)
    return METHODS[name].from_settings(settings)
