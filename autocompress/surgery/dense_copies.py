"""Multiplying by dense copies of compressed matrices for a while: many tokens, one unpacking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from autocompress.layers.base import CompressedMatrix

MOST_COPIED_BYTES = 4 * 2**30  # of the dense copies together; beyond it layers unpack at each call


@contextmanager
def dense_copies(model: Any) -> Iterator[None]:
    """Let compressed layers unpack at their first product only, and drop the copies at the end.

    A forward pass over a long text unpacks each layer once a batch, which for trellis codes takes
    longer than the products. Where the copies would take much memory, nothing changes.

    Args:
        model: a transformers model with a plan applied. What it computes is what it would compute
            without copies, up to rounding; latency is not.
    """
    layers = _layers(model)
    elements = sum(layer.out_features * layer.in_features for layer in layers)
    if elements * model.dtype.itemsize > MOST_COPIED_BYTES:
        yield
        return
    try:
        for layer in layers:
            layer.cache_dense_(model.dtype)
        yield
    finally:
        drop_copies(model)


def drop_copies(module: nn.Module) -> None:
    """Let the compressed layers of a module, those of now, unpack at each product again."""
    for layer in _layers(module):
        layer.cache_dense_(None)


def _layers(module: nn.Module) -> list[CompressedMatrix]:
    return [part for part in module.modules() if isinstance(part, CompressedMatrix)]
