"""Going on from a compressed model with an adapter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from autocompress.errors import ConfigurationError, ModelError
from autocompress.layers.base import CompressedEmbedding, CompressedMatrix

ALL_LINEAR = "all-linear"


def lora_config(model: Any, adapter: str | Path | None = None, **settings: Any) -> Any:
    """Make the ``LoraConfig`` by which PEFT puts adapters on a compressed model.

    ``peft.get_peft_model(model, lora_config(model, r=8))`` is then trained as any PEFT model, by
    ``Trainer`` too: the adapters learn, the stored weights stay. The adapter is saved as usual, and
    read with ``PeftModel.from_pretrained(model, folder, config=lora_config(model, folder))``, since
    PEFT does not store how custom layers are wrapped.

    Args:
        model: a compressed model, from ``load``, ``compress`` or ``from_pretrained``.
        adapter: folder of a saved adapter whose settings to read.
        settings: those of ``peft.LoraConfig``. ``target_modules`` is every linear layer, compressed
            or dense, but the head, unless it is given; ``"all-linear"`` means the same.

    Raises:
        ConfigurationError: PEFT is not installed, or settings come beside a saved adapter.
        ModelError: the model has no linear layer.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigurationError(
            "LoRA needs the package peft, which is not installed", hint="pip install peft"
        )
    from peft import LoraConfig

    from autocompress.api.lora_layers import register

    if adapter is not None:
        if settings:
            raise ConfigurationError(
                "a saved adapter has its settings",
                got=f"adapter and {', '.join(settings)}",
                wanted="one of both",
            )
        return register(LoraConfig.from_pretrained(str(Path(adapter).expanduser())))
    if settings.get("target_modules") in (None, ALL_LINEAR):
        settings["target_modules"] = linear_layers(model)
    return register(LoraConfig(**settings))


def linear_layers(model: Any) -> list[str]:
    """Paths of all linear layers of a model, compressed or dense, without the head.

    Raises:
        ModelError: there is none.
    """
    tables = {
        id(part)
        for module in model.modules()
        if isinstance(module, (CompressedEmbedding, CompressedMatrix))
        for part in module.modules()
        if part is not module
    }
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (CompressedMatrix, nn.Linear, Conv1D))
        and id(module) not in tables
        and module is not head
    ]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer to put an adapter on")
    return names
