"""Menus and studies with chosen numbers, made without a model."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import Kind, LayerSpec, Role

METHODS: tuple[Method, ...] = (
    Quantize(2),
    Quantize(3),
    Quantize(4),
    Quantize(8),
    Svd(4),
    Svd(8, bits=8),
    Keep(),
)
ROLES = (Role.QUERY, Role.OUTPUT, Role.UP, Role.DOWN, Role.EMBEDDING)


def layer_spec(index: int, role: Role | None = None) -> LayerSpec:
    return LayerSpec(
        f"layers.{index}", role or ROLES[index % len(ROLES)], Kind.LINEAR, 64, 64, depth=index
    )


def menu_of(*layers: Sequence[tuple[int, float]]) -> Menu:
    """One layer for each list of ``(bytes, loss increase)``; the methods are only labels."""
    return Menu(
        tuple(
            LayerMenu(
                layer_spec(index),
                tuple(
                    Option(method, size, size, loss_increase, 1.0)
                    for method, (size, loss_increase) in zip(METHODS, options, strict=False)
                ),
            )
            for index, options in enumerate(layers)
        )
    )


def total(menu: Menu, plan: dict[str, Method]) -> tuple[int, float]:
    """Bytes and loss increase of a plan, looked up option by option."""
    chosen = [
        next(o for o in layer.options if o.method == plan[layer.spec.name]) for layer in menu.layers
    ]
    return sum(option.file_bytes for option in chosen), sum(
        option.loss_increase for option in chosen
    )
