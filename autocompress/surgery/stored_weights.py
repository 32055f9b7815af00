"""The tensors of a checkpoint, put to use in place of what methods would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from autocompress.errors import RecipeError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.numerics.rounding import SCALE_TYPES
from autocompress.records import LayerSpec
from autocompress.surgery.placement import prefix_of


class StoredWeights:
    """Stored tensors by their names in a checkpoint.

    Args:
        tensors: those of whole compressed matrices, and of parameters beside them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._others = dict(tensors)

    def matrix(
        self, spec: LayerSpec, method: Method, device: torch.device
    ) -> CompressedMatrix | None:
        """The matrix of a layer, or ``None`` if nothing of it is here. Asked for once a layer.

        Raises:
            RecipeError: the tensors are not what the method stores.
        """
        prefix = prefix_of(spec)
        own = {name for name in self._others if name.startswith(prefix)}
        if not own:
            return None
        tensors = {name.removeprefix(prefix): self._others.pop(name) for name in sorted(own)}
        with torch.device("meta"):
            layer = method.skeleton(spec)
        wanted = {name: _form(name, tensor) for name, tensor in layer.state_dict().items()}
        got = {name: _form(name, tensor) for name, tensor in tensors.items()}
        if wanted != got:
            differing = sorted(
                name for name in {*wanted, *got} if wanted.get(name) != got.get(name)
            )
            raise RecipeError(
                f"the stored weights of layer {spec} are not those of {method}",
                got=f"{differing[0]}: {got.get(differing[0], 'nothing')}",
                wanted=f"{wanted.get(differing[0], 'nothing')}",
                hint="They belong to another plan.",
            )
        layer.load_state_dict(tensors, assign=True)
        return layer.to(device).requires_grad_(False)

    def others(self, model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """What no matrix has taken, as parameters with the modules and names they belong to.

        Raises:
            RecipeError: the model has no such parameter.
        """
        for path, tensor in self._others.items():
            parent, _, name = path.rpartition(".")
            try:
                module = model.get_submodule(parent)
                known = module.get_parameter(name)
            except AttributeError as error:
                raise RecipeError(f"the model has no parameter {path}") from error
            if known.shape != tensor.shape:
                raise RecipeError(
                    f"the stored weights of {path}",
                    got=f"shape {list(tensor.shape)}",
                    wanted=f"{list(known.shape)}",
                )
            yield module, name, nn.Parameter(tensor.to(known), requires_grad=False)


def _form(name: str, tensor: Tensor) -> tuple[torch.Size, object]:
    """Shape and type of a stored tensor; scales are of one of two types of two bytes."""
    scales = name.rpartition(".")[2] == "scales" and tensor.dtype in SCALE_TYPES
    return tensor.shape, SCALE_TYPES if scales else tensor.dtype
