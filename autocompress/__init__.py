"""Finds, layer by layer, how to store each weight matrix of a transformer under a budget of memory or latency.

Importing the package is cheap: torch and transformers are imported when something is used that needs them. It also
arranges that ``AutoModelForCausalLM.from_pretrained`` loads exported folders, whichever is imported first.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import wrapt

__version__ = "0.1.0"

# Public name -> module that defines it, imported on first use (PEP 562).
_PUBLIC = {
    "load": "autocompress.surgery.loading",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def _register_quantizer(_: ModuleType) -> None:
    # Importing it registers it. When it is itself what imports transformers, it registers at its own end.
    importlib.import_module("autocompress.surgery.quantizer")


wrapt.register_post_import_hook(_register_quantizer, "transformers.quantizers.auto")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
