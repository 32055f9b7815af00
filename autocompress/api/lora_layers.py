"""LoRA around compressed layers, for PEFT. Imported only where PEFT is."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear

from autocompress.errors import ConfigurationError, ModelError
from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead

_INITS = (True, False, "gaussian")


class LoraLinear(Linear):  # type: ignore[misc,unused-ignore]
    """A compressed matrix and ``x @ A.T @ B.T * scaling`` beside it.

    The stored tensors stay as they are; gradients go through them to the layers before.
    """

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> Any:
        """Refuse what needs a dense weight.

        Raises:
            ConfigurationError: weights initialised from those of the layer, or a variant such as
                DoRA.
        """
        if config.init_lora_weights not in _INITS:
            raise ConfigurationError(
                "LoRA on a compressed layer cannot start from its weights",
                got=f"init_lora_weights={config.init_lora_weights!r}",
                wanted="True, False or 'gaussian'",
            )
        variant = super().resolve_lora_variant(config=config, **kwargs)
        if variant is not None:
            raise ConfigurationError(
                "LoRA on a compressed layer is plain LoRA",
                got=type(variant).__name__.removesuffix("LinearVariant"),
                wanted="a LoraConfig without variants such as use_dora",
            )
        return None

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[Any, Any]:
        return base_layer.qweight.device, base_layer.dtype

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """What the adapter adds to the matrix, ``[out, in]``."""
        up: Any = self.lora_B[adapter]
        down: Any = self.lora_A[adapter]
        delta: torch.Tensor = up.weight @ down.weight
        scaling: float = self.scaling[adapter]
        return delta * scaling

    def merge(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "an adapter cannot be merged into a compressed layer: its codes or factors have no "
            "room for it",
            hint="Use the adapter beside the compressed model, as it was trained. Or merge it into "
            "the dense model and compress that.",
        )


class _LoraEmbedding(LoraLinear):
    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise ConfigurationError(
            "LoRA does not wrap a compressed embedding",
            wanted="target_modules without it",
            hint="Name the linear layers, or leave target_modules out for all of them.",
        )


def register(config: LoraConfig) -> LoraConfig:
    """Tell PEFT how to wrap compressed layers; the registration is not stored with an adapter."""
    config._register_custom_module(
        {
            CompressedMatrix: LoraLinear,
            TiedHead: LoraLinear,
            CompressedEmbedding: _LoraEmbedding,
        }
    )
    return config
