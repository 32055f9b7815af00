"""Mixture-of-experts layers that stack their experts in one tensor, taken apart into matrices.

transformers 5 holds the experts of a layer as parameters with three dimensions of one module. The
classes that do so keep to one interface (``use_experts_implementation`` in
``transformers.integrations.moe``): where the matrices are, whether they are transposed, what comes
between the two. That interface is all that is relied upon here, and the class of Llama 4, which is
given its tokens sorted by expert; stacks of other kinds are left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.dense import DenseMatrix
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.roles import depth_of, role_of
from autocompress.surgery.stored_types import dtype_name

_SORTED = "Llama4TextExperts"
_INTERFACE = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate")


@dataclass(frozen=True)
class Slot:
    """Where one expert's matrix is; ``model.layers.0.mlp.experts.gate_up_proj.3`` names it.

    Attributes:
        experts: path of the module that holds the stack, dense or taken apart.
        stack: name of the parameter that stacks the matrices, such as ``gate_up_proj``.
        index: which of them.
    """

    experts: str
    stack: str
    index: int

    @property
    def stack_path(self) -> str:
        """Path of the stack, which is the name of its tensor in a dense checkpoint."""
        return f"{self.experts}.{self.stack}"


@dataclass(frozen=True)
class Layout:
    """How a module stacks the matrices of its experts.

    Attributes:
        stacks: names of the two parameters, in order of use.
        transposed: whether a matrix is stored ``[in, out]``.
        bias: whether each matrix has a bias.
        sorted: whether the module is given all tokens once per expert, zeros where one is not
            chosen, instead of tokens and choices.
    """

    stacks: tuple[str, str]
    transposed: bool
    bias: bool
    sorted: bool = False


def layout_of(module: nn.Module) -> Layout | None:
    """How a module stacks the matrices of its experts; ``None`` for any other module."""
    layout = None
    if any(kind.__name__ == _SORTED for kind in type(module).__mro__):
        layout = Layout(("gate_up_proj", "down_proj"), transposed=True, bias=False, sorted=True)
    elif all(hasattr(module, name) for name in _INTERFACE):
        first = "gate_up_proj" if module.has_gate else "up_proj"
        layout = Layout((first, "down_proj"), bool(module.is_transposed), bool(module.has_bias))
    if layout is None:
        return None
    weights = [module._parameters.get(name) for name in layout.stacks]
    return layout if all(each is not None and each.ndim == 3 for each in weights) else None


def stacks_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that stack the matrices of a module's experts, in order of use.

    Empty for any other module.
    """
    layout = layout_of(module)
    return () if layout is None else layout.stacks


def bias_name(stack: str) -> str:
    """Name of the parameter ``[experts, out]`` with the biases that belong to a stack."""
    return f"{stack}_bias"


def slot_of(model: nn.Module, name: str) -> Slot | None:
    """The place of a matrix among experts, taken apart or not; ``None`` if it is a layer's own."""
    stack_path, _, index = name.rpartition(".")
    path, _, stack = stack_path.rpartition(".")
    if not index.isdigit():
        return None
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    stacks = module.stacks if isinstance(module, LoopedExperts) else stacks_of(module)
    return Slot(path, stack, int(index)) if stack in stacks else None


def expert_specs(path: str, module: nn.Module, stack: str) -> list[LayerSpec]:
    """What there is to know of each matrix of a stack.

    Args:
        path: of the module.
        module: holds the stack.
        stack: its name, one of ``stacks_of(module)``.
    """
    weights, layout = module.get_parameter(stack), layout_of(module)
    assert layout is not None
    sides = (weights.shape[2], weights.shape[1]) if layout.transposed else weights.shape[1:]
    names = [f"{path}.{stack}.{index}" for index in range(len(weights))]
    return [
        LayerSpec(
            name=name,
            role=role_of(name),
            kind=Kind.CONV1D if layout.transposed else Kind.LINEAR,
            out_features=sides[0],
            in_features=sides[1],
            dtype=dtype_name(weights.dtype),
            bias=layout.bias,
            depth=depth_of(name),
        )
        for name in names
    ]


def taken_apart(dense: nn.Module) -> LoopedExperts:
    """The experts of a dense module, each matrix a module of its own."""
    layout = layout_of(dense)
    assert layout is not None
    return SortedExperts(dense) if layout.sorted else LoopedExperts(dense)


class LoopedExperts(nn.Module):
    """The experts of one layer, each matrix a module of its own, in the place of the dense module.

    It computes what the eager forward of the dense class does: a loop over the experts that some
    token is routed to. Every matrix starts as a view of the dense stack, so nothing is copied.

    Attributes:
        stacks: names of the two lists of matrices, those of the dense module's parameters.
    """

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.stacks = stacks_of(dense)
        for name, child in dense.named_children():  # an activation, a norm after each expert
            self.add_module(name, child)
        for stack in self.stacks:
            self.add_module(stack, nn.ModuleList(_matrices(dense, stack)))
        # In a tuple it is no submodule: it lends its gate, and holds none of the weights.
        self._dense = (_without_weights(dense),)
        self.train(dense.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Weighted sum of what the chosen experts make of each token.

        Args:
            hidden_states: ``[tokens, hidden]``.
            top_k_index: ``[tokens, k]``, the experts that each token is routed to.
            top_k_weights: ``[tokens, k]``, how much each of them counts.
        """
        first, last = (self.get_submodule(stack) for stack in self.stacks)
        assert isinstance(first, nn.ModuleList)
        assert isinstance(last, nn.ModuleList)
        wide = torch.promote_types(hidden_states.dtype, top_k_weights.dtype)
        total = torch.zeros_like(hidden_states, dtype=wide)
        for index in torch.unique(top_k_index).tolist():
            if index >= len(first):  # how expert parallelism marks tokens of another device
                continue
            tokens, position = torch.where(top_k_index == index)
            y = self._between(first[index](hidden_states[tokens]))
            y = self._after(last[index](y)) * top_k_weights[tokens, position, None]
            total = total.index_add(0, tokens, y.to(wide))
        return total.to(hidden_states.dtype)

    def _between(self, x: Tensor) -> Tensor:
        dense: Any = self._dense[0]
        return dense._apply_gate(x) if dense.has_gate else dense.act_fn(x)  # type: ignore[no-any-return]

    def _after(self, x: Tensor) -> Tensor:
        dense: Any = self._dense[0]
        return dense.post_expert_norm(x) if dense.has_post_expert_norm else x


class SortedExperts(LoopedExperts):
    """Those of Llama 4, which are given every token once per expert.

    A row of zeros is a token for which that expert is not chosen. It gives zeros, and is left out,
    so that statistics are of the chosen tokens alone.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """What each expert makes of its rows.

        Args:
            hidden_states: ``[experts * tokens, hidden]``, sorted by expert.
        """
        first, last = (self.get_submodule(stack) for stack in self.stacks)
        assert isinstance(first, nn.ModuleList)
        assert isinstance(last, nn.ModuleList)
        parts = hidden_states.view(len(first), -1, hidden_states.shape[-1])
        outputs = []
        for expert, x in enumerate(parts):
            (chosen,) = torch.where(x.any(-1))
            y = torch.zeros_like(x)
            if len(chosen):
                made = last[expert](self._between(first[expert](x[chosen])))
                y = y.index_copy(0, chosen, made.to(y.dtype))
            outputs.append(y)
        return torch.cat(outputs)

    def _between(self, x: Tensor) -> Tensor:
        dense: Any = self._dense[0]
        gate, up = x.chunk(2, dim=-1)
        return up * dense.act_fn(gate)  # type: ignore[no-any-return]


def _matrices(dense: nn.Module, stack: str) -> Iterator[CompressedMatrix]:
    """Each matrix of a stack as a dense layer whose tensors are views of the stack's."""
    weights, layout = dense.get_parameter(stack).detach(), layout_of(dense)
    assert layout is not None
    biases = dense.get_parameter(bias_name(stack)).detach() if layout.bias else None
    for index in range(len(weights)):
        weight = weights[index].T if layout.transposed else weights[index]
        with torch.device("meta"):
            matrix = DenseMatrix(*weight.shape, bias=biases is not None, dtype=weight.dtype)
        matrix.weight = nn.Parameter(weight, requires_grad=False)
        if biases is not None:
            matrix.bias = nn.Parameter(biases[index], requires_grad=False)
        yield matrix


def _without_weights(dense: nn.Module) -> nn.Module:
    shell = copy.copy(dense)
    shell._parameters = {}
    return shell
