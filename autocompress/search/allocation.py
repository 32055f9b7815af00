"""From a menu to a plan: the exact allocation on damages as knobs and corrections bend them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autocompress.calibration.menu import Menu
from autocompress.methods.plan import Plan
from autocompress.search.allocator import Choice, allocate, choices_of, in_layer_order
from autocompress.search.knobs import Knobs


def bent_choices(
    menu: Menu,
    knobs: Knobs,
    groups: Iterable[Sequence[str]] = (),
    corrections: Mapping[str, float] | None = None,
) -> list[Choice]:
    """What there is to decide, scored under knobs.

    Args:
        menu: the options of all layers.
        knobs: how damages are bent.
        groups: layers that take the same method.
        corrections: measured ratio of true to predicted damage, by layer name.
    """
    depths = [layer.spec.depth for layer in menu.layers if layer.spec.depth is not None]
    blocks = max(depths, default=-1) + 1
    return choices_of(menu, knobs.scorer(blocks, corrections), groups)


def allocated_plan(menu: Menu, choices: Sequence[Choice], room: int) -> Plan:
    """The plan of least score whose matrices take at most ``room`` bytes, in the menu's order.

    Raises:
        BudgetUnreachable: even the smallest options take more.
    """
    return in_layer_order(allocate(choices, room), [layer.spec.name for layer in menu.layers])
