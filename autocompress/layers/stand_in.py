"""What stands in a model for a dense module, and how it takes casts of that model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """A module in the place of a dense one, with a type of its own beside its stored tensors.

    Attributes:
        dtype: the type of the dense module. What the module returns has it unless inputs say
            otherwise. A cast of the model changes it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def show_weight_(self, dense: nn.Module) -> None:
        """Have a ``weight`` without content, like that of the dense module.

        Some models ask a layer for the type or shape of its weight (T5: ``wo.weight.dtype``), and
        transformers walks over ``weight`` when it initialises what a checkpoint lacks. A tensor on
        the meta device answers that, and any attempt to compute with it fails. It is no parameter,
        so it is neither stored nor counted.
        """
        weight = dense.weight
        assert isinstance(weight, Tensor)
        if not hasattr(self, "weight"):
            self.weight = self._shown(weight.shape, weight.dtype)

    def _shown(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return initialised(torch.empty(shape, dtype=dtype, device="meta"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = _unwrapped(fn)(torch.empty(0, dtype=self.dtype)).dtype
        weight = self.__dict__.get("weight")
        if weight is not None:
            self.weight = self._shown(weight.shape, self.dtype)
        return self


class KeepingTypes:
    """What ``Module.to`` and its kin do to a tensor, but for the type, which stays.

    Codes belong to their very scales, and factors lose digits in a narrower type: neither follows
    a cast of the model, as neither does when a folder is loaded in another type.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.fn = _unwrapped(fn)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Move a tensor."""
        moved = self.fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def _unwrapped(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return fn.fn if isinstance(fn, KeepingTypes) else fn


def initialised(weight: Tensor) -> Tensor:
    """The weight, marked as one that transformers need not initialise."""
    weight._is_hf_initialized = True  # type: ignore[attr-defined]
    return weight
