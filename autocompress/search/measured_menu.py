"""What options cost inside a compressed model, measured by swapping one layer at a time.

The second-order prediction is made around the dense model, one matrix at a time. Near a budget the
other matrices are compressed as well, and damages are neither small nor additive. So a plan near
the budget is scored with one layer in turn swapped to some of its options, a coarse grid, and put
back to dense: the difference is what the option costs there. Between the options of the grid the
ratio of measured to predicted damage is interpolated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from autocompress.calibration.cache import Cache, content_key, tensor_key
from autocompress.calibration.menu import Menu
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Advance, Progress
from autocompress.search.evaluator import Evaluator, ScoredText

LARGEST_RATIO = 32.0  # heavy rank cuts cost several times what is predicted; more is noise
LEAST_RATIO = 1 / 8  # a difference of two scores may come out as nothing, or less
SWAPS_VERSION = 1


class Swap(NamedTuple):
    """One option of one layer: predicted rise of the loss, and what the divergence rose by."""

    predicted: float
    measured: float


@dataclass(frozen=True)
class MeasuredMenu:
    """The swaps that were measured, by layer name and rising predicted damage.

    Attributes:
        swaps: layers that are always kept have none.
    """

    swaps: Mapping[str, tuple[Swap, ...]] = field(default_factory=dict)

    def ratio(self, layer: str, damage: float) -> float:
        """Measured over predicted damage of a layer where that much is predicted.

        Linear in the logarithms between the swaps, constant beyond them. A layer without swaps has
        the geometric mean of the others.

        Args:
            layer: its name.
            damage: predicted, nats per token, more than zero.
        """
        curve = self._curve(layer)
        if not curve:
            logs = [log for name in self.swaps for _, log in self._curve(name)]
            return math.exp(np.mean(logs)) if logs else 1.0
        places, logs = map(list, zip(*curve, strict=True))
        return math.exp(np.interp(math.log(damage), places, logs))

    def _curve(self, layer: str) -> list[tuple[float, float]]:
        """Logarithms of predicted damage and of the ratio."""
        return [
            (
                math.log(swap.predicted),
                math.log(min(max(swap.measured / swap.predicted, LEAST_RATIO), LARGEST_RATIO)),
            )
            for swap in self.swaps.get(layer, ())
        ]


def coarse_grid(menu: Menu, plans: Sequence[Plan]) -> dict[str, list[Method]]:
    """The options of each layer that some plans take: those that allocations choose among."""
    return {
        layer.spec.name: list(dict.fromkeys(plan[layer.spec.name] for plan in plans))
        for layer in menu.layers
    }


def measure_swaps(
    evaluator: Evaluator,
    menu: Menu,
    background: Plan,
    grid: Mapping[str, Sequence[Method]],
    text: ScoredText,
    cache: Cache,
    address: Callable[[str, Method], str],
    progress: Progress = SILENT,
) -> MeasuredMenu:
    """Measure the options of a grid, one layer at a time, inside a compressed model.

    Args:
        evaluator: measures plans.
        menu: has the predictions.
        background: the compressed model that layers are swapped in, one near the budget.
        grid: what to measure of each layer.
        text: what to score on; not the report text.
        cache: keeps each measurement, so that an interrupted run goes on.
        address: hash of all that a built layer depends on.
        progress: told how far things are.
    """
    record = _Record(evaluator, background, text, cache, address)
    wanted = {
        name: [method for method in methods if method != Keep()] for name, methods in grid.items()
    }
    wanted = {name: methods for name, methods in wanted.items() if methods}
    predicted = {
        (layer.spec.name, option.method): option.damage
        for layer in menu.layers
        for option in layer.options
    }
    total = sum(1 + len(methods) for methods in wanted.values())
    swaps: dict[str, tuple[Swap, ...]] = {}
    with progress.task("Measuring options inside a compressed model", total) as advance:
        for name, methods in wanted.items():
            dense = record.divergence(name, Keep(), advance)
            measured = {
                predicted[name, method]: record.divergence(name, method, advance) - dense
                for method in methods
            }
            finite = [
                Swap(damage, measured[damage])
                for damage in sorted(measured)
                if damage > 0 and math.isfinite(measured[damage])
            ]
            if finite:
                swaps[name] = tuple(finite)
    return MeasuredMenu(swaps)


class _Record:
    """The scores of a plan with one layer swapped, each measured once and kept."""

    def __init__(
        self,
        evaluator: Evaluator,
        background: Plan,
        text: ScoredText,
        cache: Cache,
        address: Callable[[str, Method], str],
    ) -> None:
        self.evaluator, self.background, self.text = evaluator, background, text
        self.cache = cache
        layers = [address(name, method) for name, method in background.items()]
        self.place = content_key(layers, tensor_key(text.windows.ids), SWAPS_VERSION)
        self.known: dict[str, float] = cache.record("swaps", self.place) or {}

    def divergence(self, name: str, method: Method, advance: Advance) -> float:
        """KL divergence from the dense model with one layer swapped, nats per token."""
        same = method == self.background[name]
        key = "" if same else f"{name} {json.dumps(method.to_dict(), sort_keys=True)}"
        if key not in self.known:
            plan = Plan.of({**self.background, name: method})
            self.known[key] = self.evaluator.score(plan, self.text).kl
            self.cache.keep_record("swaps", self.place, self.known)
        advance(1)
        return self.known[key]
