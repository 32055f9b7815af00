"""Tells what a module computes with its weight: a linear map, a lookup, or something else.

Of ``nn.Linear``, ``Conv1D`` and ``nn.Embedding`` themselves that is known. A subclass is tried: its
own forward, without hooks, on small random weights and inputs. The weights of the model are not
read, so a module on the meta device will do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from autocompress.records import Kind

KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind.LINEAR,
    Conv1D: Kind.CONV1D,
    nn.Embedding: Kind.EMBEDDING,
}
ROWS = 16  # of the random weights, at most
INPUT_SCALES = (0.01, 1.0, 100.0)  # so that a map that clips its inputs is no linear one
AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative, between two ways to multiply
AGREEMENT_HALF = 2e-2
# What the forward of a module that wants other arguments, or has other tensors, may raise.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Form:
    """What a module computes.

    Attributes:
        kind: a linear map or a lookup.
        factor: of a lookup by a subclass, which returns the row times this; ``None`` for modules
            that return the row itself.
    """

    kind: Kind
    factor: float | None = None


def form_of(module: nn.Module, factor: float | None = None) -> Form | None:
    """What a module computes with its weight, ``None`` where that is none of the known forms.

    Args:
        module: any module.
        factor: of a lookup, where it is known already, as of an exported model that is loaded.
    """
    if type(module) in KINDS:
        return Form(KINDS[type(module)])
    base = next((kind for kind in KINDS if isinstance(module, kind)), None)
    if base is None or not _has_only_a_matrix(module):
        return None
    with torch.device("cpu"):  # transformers builds what it loads within the meta device
        if base is nn.Embedding:
            found = _factor_of(module) if factor is None else factor
            return None if found is None else Form(Kind.EMBEDDING, found)
        return Form(KINDS[base]) if _is_linear(module, transposed=base is Conv1D) else None


def _has_only_a_matrix(module: nn.Module) -> bool:
    """Whether a weight and a bias are all that a module stores: the rest would be lost."""
    parameters = {name for name, each in module._parameters.items() if each is not None}
    stored = {
        name
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
    weight = module._parameters.get("weight")
    return (
        parameters <= {"weight", "bias"}
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and weight.dtype.is_floating_point
        and weight.dtype.itemsize > 1
        and not stored
        and not module._modules
    )


def _is_linear(module: nn.Module, *, transposed: bool) -> bool:
    weight: Any = module._parameters["weight"]
    columns, rows = weight.shape if transposed else reversed(weight.shape)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(min(rows, ROWS), columns, generator=generator)
    bias = None
    if module._parameters.get("bias") is not None:
        bias = torch.randn(len(matrix), generator=generator).to(weight.dtype)
    matrix = matrix.to(weight.dtype)
    twin = _twin(module, {"weight": matrix.T if transposed else matrix, "bias": bias})
    limit = AGREEMENT.get(weight.dtype, AGREEMENT_HALF)
    for scale in INPUT_SCALES:
        x = (scale * torch.randn(2, 3, columns, generator=generator)).to(weight.dtype)
        y = _forward(twin, x)
        expected = functional.linear(x, matrix, bias)
        if not _alike(y, expected):
            return False
        if (y - expected).float().norm() > limit * expected.float().norm():
            return False
    return True


def _factor_of(module: nn.Module) -> float | None:
    """The constant by which an embedding multiplies its rows, exact in the type of its weight."""
    weight: Any = module._parameters["weight"]
    rows = torch.randn(ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    rows = rows.to(weight.dtype)
    ids = torch.tensor([[3, 0, 7, 7, 12], [15, 1, 0, 9, 3]])
    given = _forward(_twin(module, {"weight": rows}), ids)
    if not _alike(given, rows[ids]):
        return None
    # In the type of the weight a factor may be rounded before it is used, or only afterwards.
    for dtype in (weight.dtype, torch.float64):
        ones = _forward(_twin(module, {"weight": torch.ones_like(rows, dtype=dtype)}), ids)
        factor = float(ones.reshape(-1)[0]) if isinstance(ones, Tensor) else math.nan
        if factor and math.isfinite(factor) and torch.equal(rows[ids] * factor, given):
            return factor
    return None


def _twin(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """A copy of a module with other parameters, which shares all the rest."""
    twin = copy.copy(module)
    twin._parameters = {
        name: None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        for name, tensor in tensors.items()
    }
    if all(buffer is None or buffer.device.type != "meta" for buffer in module._buffers.values()):
        twin._buffers = {n: None if b is None else b.cpu() for n, b in module._buffers.items()}
    return twin


def _forward(twin: nn.Module, given: Tensor) -> Any:
    """What the class's own forward gives, ``None`` where it cannot take this."""
    try:
        with torch.no_grad():
            return type(twin).forward(twin, given)
    except _FAILURES:
        return None


def _alike(output: Any, expected: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.shape == expected.shape
        and output.dtype == expected.dtype
        and output.device == expected.device
    )


def factors_by_path(forms: Mapping[str, Form]) -> tuple[tuple[str, float], ...]:
    """The factors of those modules that have one, as a record keeps them."""
    return tuple((path, form.factor) for path, form in forms.items() if form.factor is not None)
