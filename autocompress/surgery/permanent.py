"""Compresses a model in memory for good: as if it had been exported and loaded again."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.compressed_model import (
    adopt_class,
    attach_quantizer,
    dense_class,
)
from autocompress.surgery.quantizer import (
    QUANT_METHOD,
    AutocompressConfig,
    AutocompressQuantizer,
    factors_in,
    forget_ties,
    state_ties,
)
from autocompress.surgery.stored_types import dtype_name
from autocompress.surgery.workbench import Build, Workbench


def compressed_copy(
    workbench: Workbench,
    plan: Plan | Compressed,
    build: Build,
) -> PreTrainedModel:
    """Return the model with a plan applied; the model of the workbench stays dense.

    The modules are copied, the tensors are not: what is not compressed is shared by both models.

    Args:
        workbench: holds the dense model.
        plan: layers that it keeps, or does not name, stay as they are.
        build: makes the compressed matrix of a layer by a method.

    Raises:
        RecipeError: the plan names a layer that the model lacks, or the weights do not fit it.
    """
    dense = workbench.model
    assert isinstance(dense, PreTrainedModel)
    before = _parameter_names(dense)
    compressed = _applied_copy(workbench, plan, build)
    ties = state_ties(dense, compressed.config)
    gone = before - _parameter_names(compressed)
    _adopt(compressed, Compressed.of(plan).plan, gone, ties, factors_in(workbench.inventory))
    return compressed


def compress_(workbench: Workbench, plan: Plan, build: Build) -> PreTrainedModel:
    """Put a plan into the model of a workbench itself, and return that model.

    The dense matrices are freed once nothing else refers to them, the workbench included, which is
    of no use afterwards.

    Args:
        workbench: see ``compressed_copy``.
        plan: layers that it keeps, or does not name, stay as they are.
        build: see ``compressed_copy``.
    """
    model = workbench.model
    assert isinstance(model, PreTrainedModel)
    before, ties = _parameter_names(model), state_ties(model, model.config)
    _take_over(model, _applied_copy(workbench, plan, build))
    gone = before - _parameter_names(model)
    _adopt(model, plan, gone, ties, factors_in(workbench.inventory))
    return model


def _applied_copy(
    workbench: Workbench,
    plan: Plan | Compressed,
    build: Build,
) -> PreTrainedModel:
    """Copy the modules of the model under a plan; other tensors are shared."""
    dense = workbench.model
    with workbench.applied(plan, build):
        tensors = {id(tensor): tensor for tensor in chain(dense.parameters(), dense.buffers())}
        compressed = copy.deepcopy(dense, tensors)
    assert isinstance(compressed, PreTrainedModel)
    return compressed


def _take_over(model: nn.Module, compressed: nn.Module) -> None:
    """Move the modules that are of another kind in the compressed model to their places."""
    for name, theirs in list(compressed.named_children()):
        own = model.get_submodule(name)
        if dense_class(type(own)) is dense_class(type(theirs)):
            _take_over(own, theirs)
        else:
            model.register_module(name, theirs)


def _adopt(
    model: Any,
    plan: Plan,
    gone: set[str],
    ties: dict[str, str] | None,
    factors: dict[str, float],
) -> None:
    """Let a model be what ``from_pretrained`` makes of an exported folder.

    ``save_pretrained`` then writes a folder that loads again.
    """
    adopt_class(model)
    dtype = dtype_name(model.dtype)
    config = AutocompressConfig(plan.to_recipe(), dtype, ties=ties, factors=factors)
    quantizer = AutocompressQuantizer(config)
    quantizer.stored = tuple(name for name, method in plan.items() if method != Keep())
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD
    model.config.quantization_config = config
    attach_quantizer(model)
    forget_ties(model, gone)


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}
