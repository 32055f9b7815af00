"""One file per way to store a matrix, and the plan that says which matrix is stored how.

The methods and what a method of one's own is made of can be imported from here: ``Quantize``,
``Svd``, ``Method`` and so on. Each is read at its first use, so that this imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "CompressedMatrix": "autocompress.layers.base",
    "Cp": "autocompress.methods.cp",
    "Keep": "autocompress.methods.keep",
    "LayerSpec": "autocompress.records",
    "MatrixProblem": "autocompress.methods.base",
    "Method": "autocompress.methods.base",
    "Plan": "autocompress.methods.plan",
    "Quantize": "autocompress.methods.quantize",
    "QuantizePlusLowRank": "autocompress.methods.quantize_plus_low_rank",
    "Sparse": "autocompress.methods.sparse",
    "Svd": "autocompress.methods.svd",
    "TensorTrain": "autocompress.methods.tensor_train",
    "Trellis": "autocompress.methods.trellis",
    "Tucker": "autocompress.methods.tucker",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
