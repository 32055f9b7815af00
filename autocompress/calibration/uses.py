"""What one decoded token does with each matrix of a model, and how many bytes it reads for that."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from torch import nn

from autocompress.methods.base import torch_dtype
from autocompress.records import LayerSpec
from autocompress.surgery.experts import slot_of


class Use(StrEnum):
    """What a module does with its matrix."""

    PRODUCT = "product"
    LOOKUP = "lookup"


def uses_of(model: nn.Module, spec: LayerSpec) -> dict[Use, float]:
    """How often one decoded token uses a matrix of the dense model, and for what."""
    slot = slot_of(model, spec.name)
    if slot is not None:
        experts = len(model.get_parameter(slot.stack_path))
        config: Any = model.config
        active = getattr(config.get_text_config(), "num_experts_per_tok", None) or experts
        return {Use.PRODUCT: active / experts}
    uses: dict[Use, float] = {}
    for path in (spec.name, *spec.tied):
        lookup = isinstance(model.get_submodule(path), nn.Embedding)
        use = Use.LOOKUP if lookup else Use.PRODUCT
        uses[use] = uses.get(use, 0.0) + 1.0
    return uses


def bytes_read(model: nn.Module, specs: Iterable[LayerSpec]) -> int:
    """Bytes of the matrices that one decoded token reads whole, in the dense model."""
    return round(
        sum(
            spec.parameters * torch_dtype(spec).itemsize * uses_of(model, spec).get(Use.PRODUCT, 0)
            for spec in specs
        )
    )
