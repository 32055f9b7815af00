"""How sensitive each matrix is to each way of storing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.records import Skipped

RATIOS = (4, 8, 10, 16)  # at which sensitivity is summed up


@dataclass(frozen=True)
class Profile:
    """Every option of every matrix, with its bytes and predicted loss increase.

    Attributes:
        model: what was profiled.
        space: the search space that the options are from.
        menu: the options.
        skipped: modules left as they are, with the reason.
        calibration: the text that the statistics were collected on.
        tokens: how many tokens of it.
        begin_token: what each of its windows started with; ``None`` for nothing.
        unreached: matrices that it does not reach, with the reason.
    """

    model: str
    space: str
    menu: Menu
    skipped: tuple[Skipped, ...]
    calibration: str
    tokens: int
    begin_token: str | None = None
    unreached: tuple[Skipped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON; loss increases in nats per token."""
        return {
            "model": self.model,
            "space": self.space,
            "calibration": self.calibration,
            "tokens": self.tokens,
            "begin_token": self.begin_token,
            "layers": [_layer_to_dict(layer) for layer in self.menu.layers],
            "skipped": [vars(matrix) for matrix in self.skipped],
            "unreached": [vars(matrix) for matrix in self.unreached],
        }


def best_at(layer: LayerMenu, ratio: float) -> Option | None:
    """Option of least predicted loss increase in at most 1/ratio of the bytes of the matrix."""
    keep = max(option.bytes for option in layer.options)
    dense = max(keep, layer.spec.parameters * _ELEMENT_BYTES.get(layer.spec.dtype, 4))
    fitting = [option for option in layer.options if option.bytes * ratio <= dense]
    return min(fitting, key=lambda option: option.loss_increase, default=None)


_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def _layer_to_dict(layer: LayerMenu) -> dict[str, Any]:
    spec = layer.spec
    at = {f"{ratio}x": best_at(layer, ratio) for ratio in RATIOS}
    return {
        "name": spec.name,
        "role": spec.role.value,
        "depth": spec.depth,
        "shape": list(spec.shape),
        "tied": list(spec.tied),
        "loss_increase": {
            ratio: None if option is None else option.loss_increase for ratio, option in at.items()
        },
        "options": [
            option.method.to_dict()
            | {
                "bytes": option.bytes,
                "loss_increase": option.loss_increase,
                "cosine": option.cosine,
                "label": str(option.method),
            }
            for option in layer.options
        ],
    }
