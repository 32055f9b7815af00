"""Compresses one layer, without a model around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from autocompress.errors import BudgetUnreachable, ConfigurationError, DataError, ModelError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.keep import Keep
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec
from autocompress.space.document import Document
from autocompress.space.method_entry import read_method
from autocompress.space.problems import RecipeFileError
from autocompress.space.space_file import load_space
from autocompress.surgery.inventory import take_inventory
from autocompress.surgery.placement import place
from autocompress.surgery.workbench import Workbench
from autocompress.units import MEMORY_FORMS, Budget, format_bytes

_NAME = "layer"
# Under a budget the methods from this share of the largest that fits on are fitted and compared.
# Bits go by steps: at a quarter of fp32, codes of 4 bits in an eighth beat factors in a quarter.
COMPARED_FROM = 0.5


@dataclass(frozen=True)
class OneLayerReport:
    """What one layer costs and loses.

    Attributes:
        method: how it is stored.
        bytes: of the stored tensors, the bias included.
        dense_bytes: of the dense layer.
        error: relative error of the layer's outputs on the inputs, ``|X (W - V).T| / |X W.T|``;
            without inputs of the matrix, ``|W - V| / |W|``, in Frobenius norms.
    """

    method: Method
    bytes: int
    dense_bytes: int
    error: float

    def __str__(self) -> str:
        ratio = self.dense_bytes / self.bytes
        return (
            f"{self.method}: {format_bytes(self.bytes)} of {format_bytes(self.dense_bytes)} "
            f"({ratio:.3g}x), relative error {self.error:.3g}"
        )


def compress_layer(
    layer: nn.Module,
    method: Method | Mapping[str, Any] | str | None = None,
    *,
    budget: str | None = None,
    inputs: Tensor | None = None,
    space: str = "default",
) -> nn.Module:
    """Compress one layer, by a method or to a budget; the layer itself stays as it is.

    What is returned computes ``layer(x)`` from the stored form, and says in ``report`` (a
    ``OneLayerReport``) how it is stored, its bytes and its error.

    Args:
        layer: ``nn.Linear``, ``Conv1D`` of transformers, or ``nn.Embedding``.
        method: how to store it: a method such as ``autocompress.methods.Svd(32)``, or as in a
            recipe, ``{"method": "svd", "rank": 32}``, also as text: ``"method: svd, rank: 32"``.
        budget: most bytes instead, of which the method with the least error makes use: ``4x``,
            ``25%``, ``100kB``.
        inputs: what goes into the layer, ``[..., in]``, of an embedding token ids ``[...]``. The
            error of the outputs on them is made small. Without inputs it is that of the matrix.
        space: under a budget, the search space whose methods are tried: a name or a file.

    Raises:
        ConfigurationError: neither or both of method and budget, or one that is not understood.
        MethodError: the method does not fit the layer.
        ModelError: the layer is of another kind, or too small.
        DataError: the inputs do not fit the layer.
        BudgetUnreachable: no method of the space is that small; the message says the smallest.
    """
    if (method is None) == (budget is None):
        raise ConfigurationError(
            "one layer is compressed by a method or to a budget",
            got="neither" if method is None else "both",
            wanted="one of method= and budget=",
        )
    holder = nn.ModuleDict({_NAME: layer})
    spec = _spec_of(holder, layer)
    metric = None if inputs is None else _metric_of(spec, inputs)
    problem = Workbench(holder).problem(_NAME, metric)
    if budget is None:
        chosen = _method_of(method)
        built = chosen.build(problem)
    else:
        chosen, built = _best_within(problem, _bytes_of(budget, spec), space)
    report = OneLayerReport(chosen, chosen.cost(spec), Keep().cost(spec), _error(problem, built))
    place(holder, spec, built.train(layer.training))
    compressed = holder[_NAME]
    compressed.report = report  # type: ignore[assignment]
    return compressed


def _spec_of(holder: nn.ModuleDict, layer: nn.Module) -> LayerSpec:
    try:
        inventory = take_inventory(holder)
        return inventory[_NAME]
    except (ModelError, ConfigurationError) as error:
        raise ModelError(
            "this layer cannot be compressed",
            got=repr(layer),
            wanted="nn.Linear, Conv1D or nn.Embedding with floating-point weights",
            hint=error.hint,
        ) from error


def _method_of(method: Method | Mapping[str, Any] | str | None) -> Method:
    if isinstance(method, Method):
        return method
    value: Any = method
    if isinstance(method, str):
        try:
            settings = method if ":" in method else f"method: {method}"
            value = yaml.safe_load(settings if "{" in settings else f"{{{settings}}}")
        except yaml.YAMLError:
            value = method
    document = Document(Path("method"), value)
    found = read_method(dict(value) if isinstance(value, Mapping) else value, document, ())
    if found is None:
        raise RecipeFileError("the method", document.problems)
    return found


def _metric_of(spec: LayerSpec, inputs: Tensor) -> Metric:
    """The squared change of the outputs on the inputs, as a metric of the matrix."""
    if spec.kind is Kind.EMBEDDING:
        return _lookups(spec, inputs)
    if inputs.ndim == 0 or inputs.shape[-1] != spec.in_features or not inputs.numel():
        raise DataError(
            "the inputs do not fit the layer",
            got=f"{list(inputs.shape)}",
            wanted=f"[..., {spec.in_features}]",
        )
    flat = inputs.detach().reshape(-1, spec.in_features).float()
    if not bool(torch.isfinite(flat).all()):
        raise DataError("the inputs hold NaN or infinity", wanted="finite numbers")
    gram = flat.T @ flat / len(flat)
    if not bool(gram.any()):
        raise DataError("the inputs are all zero", wanted="inputs as the layer gets them")
    return Metric((Curvature(torch.ones(spec.out_features), gram, len(flat)),))


def _lookups(spec: LayerSpec, ids: Tensor) -> Metric:
    whole = not ids.is_floating_point() and ids.numel()
    if not whole or not 0 <= int(ids.min()) <= int(ids.max()) < spec.out_features:
        raise DataError(
            "the inputs of an embedding are token ids",
            got=f"{ids.dtype} {list(ids.shape)}",
            wanted=f"whole numbers from 0 to {spec.out_features - 1}",
        )
    counts = torch.bincount(ids.flatten().long().cpu(), minlength=spec.out_features).float()
    return Metric((Curvature(counts / counts.sum(), torch.ones(spec.in_features), ids.numel()),))


def _bytes_of(budget: str, spec: LayerSpec) -> int:
    limit = Budget.parse(memory=budget).limits(Keep().cost(spec), 1.0).memory_bytes
    if limit is None:
        raise ConfigurationError("budget of a layer", got=repr(budget), wanted=MEMORY_FORMS)
    return limit


def _best_within(problem: MatrixProblem, limit: int, space: str) -> tuple[Method, CompressedMatrix]:
    """The method of least error among those that make use of so many bytes."""
    spec = problem.spec
    options = load_space(space).options(spec)
    within = [option for option in options if option.cost(spec) <= limit]
    if not within:
        smallest = min(options, key=lambda option: option.cost(spec))
        raise BudgetUnreachable(
            "no method of the space makes this layer so small",
            got=format_bytes(limit),
            wanted=f"at least {format_bytes(smallest.cost(spec))} ({smallest})",
            hint="Give more bytes, or another space.",
        )
    least = COMPARED_FROM * max(option.cost(spec) for option in within)
    compared = [option for option in within if option.cost(spec) >= least]
    built = [(option, option.build(problem)) for option in compared]
    return min(built, key=lambda each: problem.loss_increase(each[1].to_dense()))


def _error(problem: MatrixProblem, built: CompressedMatrix) -> float:
    whole = problem.loss_increase(torch.zeros_like(problem.weight32))
    return math.sqrt(problem.loss_increase(built.to_dense()) / whole) if whole else 0.0
