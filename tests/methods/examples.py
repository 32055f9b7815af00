"""Settings of every method, one list for all suites: whoever adds a method adds a line here.

The settings fit matrices from 16 rows and columns on whose columns are a multiple of eight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle

from autocompress.methods.base import Method
from autocompress.methods.cp import Cp
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.sparse import Sparse
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.methods.tucker import Tucker
from autocompress.surgery.inventory import Inventory

Shape = tuple[int, int]
Choose = Callable[[Shape], Method]  # the method for a matrix of a shape


def any_shape(*methods: Method) -> list[Choose]:
    """Settings that do not depend on the matrix."""
    return [lambda _shape, method=method: method for method in methods]


EXAMPLES: dict[str, list[Choose]] = {
    "keep": any_shape(Keep()),
    "quantize": any_shape(
        Quantize(8, 8, symmetric=True),
        Quantize(4, 8),
        Quantize(3, 0),
        Quantize(3, 4),
        Quantize(2, 8, symmetric=True),
        Quantize(2, 0),
    ),
    "trellis": any_shape(Trellis(4), Trellis(3, 8), Trellis(2), Trellis(1, 8)),
    "quantize_plus_low_rank": any_shape(
        QuantizePlusLowRank(2, 8, 4), QuantizePlusLowRank(3, 0, 8, 4, symmetric=True)
    ),
    "sparse": any_shape(
        Sparse("2:4"),
        Sparse("2:4", bits=4),
        Sparse("unstructured", 0.4, 8),
        Sparse("unstructured", 0.15),
    ),
    "svd": any_shape(Svd(8), Svd(5, "input", 8), Svd(12, "plain", 4)),
    "tensor_train": [
        partial(TensorTrain.uniform, order=2, rank=4),
        partial(TensorTrain.uniform, order=3, rank=5, bits=8),
        partial(TensorTrain.uniform, order=3, rank=4, bits=4),
    ],
    "tucker": [
        partial(Tucker.uniform, order=2, rank=4),
        partial(Tucker.uniform, order=2, rank=3, bits=8),
        partial(Tucker.uniform, order=3, rank=3, bits=4),
    ],
    "cp": [
        partial(Cp.uniform, order=2, rank=24),
        partial(Cp.uniform, order=3, rank=40, bits=8),
        partial(Cp.uniform, order=2, rank=30, bits=4),
    ],
}


def plan_of(inventory: Inventory, name: str) -> Plan:
    """One method for every matrix, embedding and head among them, with its settings in turn."""
    turns = zip(inventory.layers, cycle(EXAMPLES[name]), strict=False)
    return Plan.of({spec.name: choose(spec.shape) for spec, choose in turns})
