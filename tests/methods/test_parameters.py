"""How many weights each method stores."""

from __future__ import annotations

import pytest

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
from autocompress.records import Kind, LayerSpec, Role

SPEC = LayerSpec("up", Role.UP, Kind.LINEAR, 48, 32, bias=True)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (Keep(), 48 * 32),
        (Quantize(4, 16), 48 * 32),
        (Trellis(3, 0), 48 * 32),
        (Svd(rank=4), 4 * (48 + 32)),
        (Svd(rank=4, bits=8), 4 * (48 + 32)),
        (QuantizePlusLowRank(2, 16, 4), 48 * 32 + 4 * (48 + 32)),
        (Sparse("2:4"), 48 * 32 // 2),
        (Sparse("unstructured", 0.25), 48 * 32 // 4),
        (TensorTrain((5,), (6, 8), (4, 8)), 5 * (6 * 4 + 8 * 8)),
        (TensorTrain((5,), (6, 8), (4, 8), bits=4), 5 * (6 * 4 + 8 * 8)),
        (Tucker((2, 3, 2, 3), (6, 8), (4, 8)), 36 + 2 * 6 + 3 * 8 + 2 * 4 + 3 * 8),
        (Cp(7, (6, 8), (4, 8)), 7 * (6 + 8 + 4 + 8)),
    ],
    ids=str,
)
def test_parameters(method, count):
    assert method.parameters(SPEC) == count
    assert Plan.of({"up": method}).parameters((SPEC,)) == count
