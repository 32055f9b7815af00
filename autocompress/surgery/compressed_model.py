"""What a transformers model with compressed layers answers otherwise than a dense one.

transformers reads the type of a model off its first parameter, which here may be a scale in another
type, refuses ``half()`` and ``float()`` of anything quantized, and resizes embeddings by their
weight. A model is therefore given a class of its own, which differs from the architecture's in
these answers only, and has its name: ``isinstance``, ``save_pretrained`` and hooks go on as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autocompress.errors import ModelError
from autocompress.layers.stand_in import StandIn
from autocompress.surgery.stored_types import dtype_name


class CompressedModel:
    """Mixed into the architecture's class by ``adopt_class``; comes before it."""

    @property
    def dtype(self: Any) -> torch.dtype:
        """The type in which the model computes."""
        for module in self.modules():
            if isinstance(module, StandIn):
                return module.dtype
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    dtype: torch.dtype = parameter.dtype
                    return dtype
        raise ModelError(f"{type(self).__name__} has no floating-point parameter")

    def half(self: Any, *_args: Any) -> Any:
        """Compute in float16 from now on; codes, scales and factors stay as they are stored."""
        return self.to(torch.float16)

    def float(self: Any, *_args: Any) -> Any:
        """Compute in float32 from now on; codes, scales and factors stay as they are stored."""
        return self.to(torch.float32)

    def resize_token_embeddings(
        self: Any,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Resize embeddings that are stored dense.

        Raises:
            ModelError: the embedding or the head is compressed, and would change its size.
        """
        embedding = self.get_input_embeddings()
        rows = embedding.num_embeddings
        wanted = rows if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            wanted += -wanted % pad_to_multiple_of
        if wanted == rows:
            module: nn.Module = embedding
            return module
        for layer in (embedding, self.get_output_embeddings()):
            if isinstance(layer, StandIn):
                raise ModelError(
                    "the token embedding or the head of this model is compressed, and cannot "
                    "change its size",
                    got=f"{wanted} tokens",
                    wanted=f"{rows}",
                    hint="Resize the dense model, save it, and compress that. A recipe with "
                    "`method: keep` for the embedding (and the head) leaves them dense.",
                )
        resized: nn.Module = super().resize_token_embeddings(  # type: ignore[misc]
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        return resized

    def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[misc]
        name = dtype_name(self.dtype)
        self.config.dtype = self.dtype
        quantization = getattr(self.config, "quantization_config", None)
        if quantization is not None:
            quantization.dtype = name  # the type in which what save_pretrained writes is loaded
        return self

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # Classes made here are found by the architecture that they are made of, not by a name.
        return _blank, (dense_class(type(self)),), self.__dict__

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        attach_quantizer(self)


def adopt_class(model: PreTrainedModel) -> None:
    """Give a model, and each transformers model inside it, the class that answers for its layers.

    Nothing happens where that has been done.
    """
    for module in list(model.modules()):
        if isinstance(module, PreTrainedModel) and not isinstance(module, CompressedModel):
            kind: Any = type(module)
            module.__class__ = _compressed_class(kind)
    attach_quantizer(model)


def attach_quantizer(model: nn.Module) -> None:
    """Let the quantizer of a model know the model that it belongs to."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.attach(model)


@contextmanager
def class_adopted(model: nn.Module) -> Iterator[None]:
    """Give a model that class for a while."""
    dense = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    classes: list[Any] = [type(module) for module in dense]
    try:
        for module, own in zip(dense, classes, strict=True):
            module.__class__ = _compressed_class(own)
        yield
    finally:
        for module, own in zip(dense, classes, strict=True):
            module.__class__ = own


def dense_class(kind: type) -> type:
    """The architecture's own class."""
    return kind.__mro__[2] if issubclass(kind, CompressedModel) else kind


@cache
def _compressed_class(kind: type) -> type:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (CompressedModel, kind), names)


def _blank(kind: type) -> Any:
    made: Any = _compressed_class(kind)
    return made.__new__(made)
