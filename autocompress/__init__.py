"""Finds, layer by layer, how to store a transformer's weights under a memory or latency budget.

Importing the package is cheap: torch and transformers are imported when something is used that
needs them. It also arranges that ``AutoModelForCausalLM.from_pretrained`` loads exported folders,
whichever is imported first.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import wrapt

__version__ = "0.1.0"

# Public name -> module that defines it, imported on first use (PEP 562).
_PUBLIC = {
    "AttributeRequest": "autocompress.requests.verbs",
    "CompressRequest": "autocompress.requests.verbs",
    "EvaluateRequest": "autocompress.requests.verbs",
    "ExportRequest": "autocompress.requests.verbs",
    "HealRequest": "autocompress.requests.verbs",
    "LatentCache": "autocompress.runtime.kv_cache",
    "Plan": "autocompress.methods.plan",
    "ProfileRequest": "autocompress.requests.verbs",
    "SearchRequest": "autocompress.requests.verbs",
    "Study": "autocompress.api.study",
    "attribute": "autocompress.api.attribute_function",
    "compress": "autocompress.api.compressing",
    "compress_layer": "autocompress.api.one_layer",
    "evaluate": "autocompress.api.evaluating",
    "export": "autocompress.api.functions",
    "front": "autocompress.api.functions",
    "heal": "autocompress.api.heal_function",
    "load": "autocompress.surgery.loading",
    "lora_config": "autocompress.api.adapters",
    "predict_plan": "autocompress.api.predicting",
    "profile": "autocompress.api.functions",
    "search": "autocompress.api.functions",
    **dict.fromkeys(
        (
            *("Cp", "Keep", "Quantize", "QuantizePlusLowRank", "Sparse", "Svd"),
            *("TensorTrain", "Trellis", "Tucker"),
        ),
        "autocompress.methods",
    ),
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def _register_quantizer(_: ModuleType) -> None:
    # Importing it registers it. When it is itself what imports transformers, it registers at its
    # own end.
    try:
        importlib.import_module("autocompress.surgery.quantizer")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown below
        # Raised in here, it would break transformers too, which shows any error while it is
        # imported as "Could not import module". What needs the module imports it again, and fails
        # with the error itself.
        warnings.warn(
            "autocompress cannot be imported, so transformers will not know how to read the "
            f"folders that it wrote: {type(error).__name__}: {error}",
            stacklevel=2,
        )


wrapt.register_post_import_hook(_register_quantizer, "transformers.quantizers.auto")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
