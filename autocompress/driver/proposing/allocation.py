"""From a menu to a plan: the exact allocation on loss increases as knobs and prices bend them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autocompress.calibration.menu import Menu
from autocompress.calibration.priced_menu import PricedMenu
from autocompress.driver.proposing.allocator import (
    Latencies,
    LayerChoice,
    allocate,
    choices_of,
    in_layer_order,
)
from autocompress.driver.proposing.knobs import Knobs, Scorer
from autocompress.methods.plan import Plan


def bent_choices(
    menu: Menu,
    knobs: Knobs,
    groups: Iterable[Sequence[str]] = (),
    priced: PricedMenu | None = None,
    latencies: Latencies | None = None,
) -> list[LayerChoice]:
    """What there is to decide, scored under knobs.

    Args:
        menu: the options of all layers.
        knobs: how loss increases are bent.
        groups: layers that take the same method.
        priced: what options cost inside a compressed model.
        latencies: what each option takes of a token; unknown when left out.
    """
    return choices_of(menu, scorer_of(menu, knobs, priced), groups, latencies)


def scorer_of(menu: Menu, knobs: Knobs, priced: PricedMenu | None = None) -> Scorer:
    """What scores the options of a menu under knobs; see ``bent_choices``."""
    depths = [layer.spec.depth for layer in menu.layers if layer.spec.depth is not None]
    return knobs.scorer(max(depths, default=-1) + 1, priced)


def allocated_plan(
    menu: Menu,
    choices: Sequence[LayerChoice],
    room: int | None,
    room_ms: float | None = None,
    *,
    price_ms: float = 0.0,
) -> Plan:
    """The plan of least score whose matrices take at most ``room`` bytes, in the menu's order.

    Args:
        menu: the options of all layers.
        choices: what there is to decide.
        room: bytes for all matrices.
        room_ms: milliseconds a token for all matrices; needs choices with times.
        price_ms: added to the score for each millisecond; needs choices with times.

    Raises:
        BudgetUnreachable: no plan is that small, that fast, or both at once.
    """
    plan = allocate(choices, room, room_ms, price_ms=price_ms)
    return in_layer_order(plan, [layer.spec.name for layer in menu.layers])
