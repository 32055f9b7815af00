"""A model that keeps no keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let the model keep no keys and values for tokens to come; there are none."""
    config = getattr(model, "config", None)
    finder = getattr(config, "get_text_config", None)
    text = finder() if finder is not None else config
    used = getattr(text, "use_cache", None)
    if text is None or not used:
        yield
        return
    text.use_cache = False
    try:
        yield
    finally:
        text.use_cache = used
