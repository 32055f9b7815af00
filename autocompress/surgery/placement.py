"""Reads the matrices of a model and puts compressed ones in their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead
from autocompress.methods.base import torch_dtype
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.tied import TiedEmbedding


def weight_of(module: nn.Module, spec: LayerSpec) -> Tensor:
    """The matrix ``[out, in]`` that a dense module holds, a view of its weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().T if spec.kind is Kind.CONV1D else weight.detach()


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias ``[out]`` of a dense module, if it has one."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def read_weight(model: nn.Module, spec: LayerSpec) -> Tensor:
    """The matrix ``[out, in]`` of a layer, a view of the model's own weight."""
    return weight_of(model.get_submodule(spec.name), spec)


def read_bias(model: nn.Module, spec: LayerSpec) -> Tensor | None:
    """The bias ``[out]`` of a layer, if it has one."""
    return bias_of(model.get_submodule(spec.name))


def place(model: nn.Module, spec: LayerSpec, matrix: CompressedMatrix) -> None:
    """Put a compressed matrix in the place of a layer, and of every module that is tied to it."""
    owner: nn.Module = matrix
    if spec.kind is Kind.EMBEDDING:
        owner = CompressedEmbedding(matrix, dtype=torch_dtype(spec))
    replacements = {spec.name: owner}
    for path in spec.tied:
        replacements[path] = _tied_to(matrix, model.get_submodule(path), spec)
    for path, module in replacements.items():
        _show_weight(module, model.get_submodule(path))
        module.train(model.training)
        set_module(model, path, module)


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule at a path. The order of the siblings stays."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, module)


def prefix_of(spec: LayerSpec) -> str:
    """What stands before the names of a placed matrix's tensors in the model's ``state_dict()``."""
    return f"{spec.name}.matrix." if spec.kind is Kind.EMBEDDING else f"{spec.name}."


def _tied_to(matrix: CompressedMatrix, dense: nn.Module, spec: LayerSpec) -> nn.Module:
    if isinstance(dense, nn.Embedding):
        return TiedEmbedding(matrix, dtype=torch_dtype(spec))
    bias = dense.bias
    return TiedHead(matrix, bias if isinstance(bias, nn.Parameter) else None)


def _show_weight(module: nn.Module, dense: nn.Module) -> None:
    # Some models ask a layer for the type or shape of its weight (T5: ``wo.weight.dtype``), and
    # transformers walks over ``weight`` when it initialises what a checkpoint lacks. A tensor on
    # the meta device answers that, and any attempt to compute with it fails. It is no parameter, so
    # it is neither stored nor counted.
    if hasattr(module, "weight"):
        return
    weight = dense.weight
    assert isinstance(weight, Tensor)
    shown = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    shown._is_hf_initialized = True  # type: ignore[attr-defined]
    module.weight = shown
