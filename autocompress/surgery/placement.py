"""Reads the matrices of a model and puts compressed ones in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead
from autocompress.layers.stand_in import StandIn
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.experts import LoopedExperts, bias_name, layout_of, slot_of, taken_apart
from autocompress.surgery.tied import TiedEmbedding


def home_of(model: nn.Module, name: str) -> str:
    """Path of the module that holds a matrix: the layer itself, or the experts it is one of."""
    slot = slot_of(model, name)
    return slot.experts if slot else name


def weight_of(home: nn.Module, spec: LayerSpec) -> Tensor:
    """The matrix ``[out, in]`` that a dense module holds, a view of its weight."""
    weight = _tensor_of(home, spec, "weight")
    assert isinstance(weight, Tensor)
    return weight.detach().T if spec.kind is Kind.CONV1D else weight.detach()


def bias_of(home: nn.Module, spec: LayerSpec) -> Tensor | None:
    """The bias ``[out]`` of a matrix that a dense module holds, if it has one."""
    bias = _tensor_of(home, spec, "bias") if spec.bias else None
    return bias.detach() if isinstance(bias, Tensor) else None


def read_weight(model: nn.Module, spec: LayerSpec) -> Tensor:
    """The matrix ``[out, in]`` of a layer, a view of the model's own weight."""
    return weight_of(model.get_submodule(home_of(model, spec.name)), spec)


def read_bias(model: nn.Module, spec: LayerSpec) -> Tensor | None:
    """The bias ``[out]`` of a layer, if it has one."""
    return bias_of(model.get_submodule(home_of(model, spec.name)), spec)


def weight_path(model: nn.Module, spec: LayerSpec) -> str:
    """Name of the tensor that holds a matrix in the dense ``state_dict()``."""
    slot = slot_of(model, spec.name)
    return slot.stack_path if slot else f"{spec.name}.weight"


def dense_names(model: nn.Module, spec: LayerSpec) -> tuple[str, ...]:
    """Names of the tensors that hold a matrix and its bias in the dense ``state_dict()``.

    For an expert these are the stacks, which hold the matrices of the other experts as well.
    """
    slot = slot_of(model, spec.name)
    if slot:
        return slot.stack_path, f"{slot.experts}.{bias_name(slot.stack)}"
    return f"{spec.name}.bias", *(f"{path}.weight" for path in (spec.name, *spec.tied))


def place(model: nn.Module, spec: LayerSpec, matrix: CompressedMatrix) -> None:
    """Put a compressed matrix in the place of a layer, and of every module that is tied to it.

    The first of some experts takes their module apart; the others stay dense. What the matrix
    returns has the type of the dense weight, whatever type it is stored in.
    """
    slot = slot_of(model, spec.name)
    if slot:
        _take_apart(model, slot.experts)
    dtype = _weight_at(model, spec).dtype
    for part in matrix.modules():
        if isinstance(part, StandIn):
            part.dtype = dtype
    if slot:
        set_module(model, spec.name, matrix.train(model.training))
        return
    owner: StandIn = matrix
    if spec.kind is Kind.EMBEDDING:
        owner = CompressedEmbedding(matrix, dtype=dtype, factor=spec.factor_of(spec.name))
    replacements = {spec.name: owner}
    for path in spec.tied:
        tied = model.get_submodule(path)
        replacements[path] = _tied_to(matrix, tied, dtype, spec.factor_of(path))
    for path, module in replacements.items():
        module.show_weight_(model.get_submodule(path))
        module.train(model.training)
        set_module(model, path, module)


@contextmanager
def experts_apart(model: nn.Module, specs: Iterable[LayerSpec]) -> Iterator[None]:
    """Make every expert's matrix a module at its own path for a while, so that it can be hooked."""
    slots = [slot for spec in specs if (slot := slot_of(model, spec.name))]
    dense = {slot.experts: model.get_submodule(slot.experts) for slot in slots}
    try:
        for path in dense:
            _take_apart(model, path)
        yield
    finally:
        for path, module in dense.items():
            set_module(model, path, module)


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule at a path. The order of the siblings stays."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, module)


def prefix_of(spec: LayerSpec) -> str:
    """What stands before the names of a placed matrix's tensors in the model's ``state_dict()``."""
    return f"{spec.name}.matrix." if spec.kind is Kind.EMBEDDING else f"{spec.name}."


def _tensor_of(home: nn.Module, spec: LayerSpec, which: str) -> object:
    if layout_of(home) is None:
        return getattr(home, which, None)
    *_, stack, index = spec.name.split(".")
    return home.get_parameter(stack if which == "weight" else bias_name(stack))[int(index)]


def _weight_at(model: nn.Module, spec: LayerSpec) -> Tensor:
    """The weight of the dense module of a layer; of an expert one that was taken apart."""
    weight = model.get_submodule(spec.name).weight
    assert isinstance(weight, Tensor)
    return weight


def _take_apart(model: nn.Module, path: str) -> None:
    experts = model.get_submodule(path)
    if not isinstance(experts, LoopedExperts):
        set_module(model, path, taken_apart(experts))


def _tied_to(
    matrix: CompressedMatrix, dense: nn.Module, dtype: torch.dtype, factor: float
) -> StandIn:
    if isinstance(dense, nn.Embedding):
        return TiedEmbedding(matrix, dtype=dtype, factor=factor)
    bias = dense.bias
    return TiedHead(matrix, bias if isinstance(bias, nn.Parameter) else None)
