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
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from autocompress.calibration.cache import Cache, content_key, tensor_key
from autocompress.calibration.menu import Menu
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import Evaluator, ScoredText

LARGEST_RATIO = 32.0  # heavy rank cuts cost several times what is predicted; more is noise
LEAST_RATIO = 1 / 8  # a difference of two scores may come out as nothing, or less
MOST_MATRICES = 512  # to measure; a mixture of experts has thousands
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
        curve = self._curves.get(layer)
        if curve is None:
            return self._mean_ratio
        return math.exp(_interpolated(math.log(damage), *curve))

    @cached_property
    def _curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Logarithms of predicted damages and of the ratios there, by layer."""
        return {
            layer: (
                [math.log(swap.predicted) for swap in swaps],
                [math.log(_within_bounds(swap.measured / swap.predicted)) for swap in swaps],
            )
            for layer, swaps in self.swaps.items()
            if swaps
        }

    @cached_property
    def _mean_ratio(self) -> float:
        """Geometric mean over all swaps."""
        logs = [log for _, ratios in self._curves.values() for log in ratios]
        return math.exp(np.mean(logs)) if logs else 1.0


def _interpolated(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Linear between rising places, constant beyond; for one number much faster than NumPy's."""
    above = bisect_right(places, place)
    if above in (0, len(places)):
        return values[max(above - 1, 0)]
    left, right = places[above - 1], places[above]
    slope = (values[above] - values[above - 1]) / (right - left)
    return slope * (place - left) + values[above - 1]


def _within_bounds(ratio: float) -> float:
    return min(max(ratio, LEAST_RATIO), LARGEST_RATIO)


def coarse_grid(menu: Menu, plans: Sequence[Plan]) -> dict[str, list[Method]]:
    """The options of each layer that some plans take: those that allocations choose among."""
    return {
        layer.spec.name: list(dict.fromkeys(plan[layer.spec.name] for plan in plans))
        for layer in menu.layers
    }


def most_telling(
    menu: Menu, grid: Mapping[str, Sequence[Method]], most: int = MOST_MATRICES
) -> dict[str, Sequence[Method]]:
    """The layers of a grid whose options differ most in predicted damage, these first.

    On them an allocation depends most, and what a layer costs that is not measured follows from
    those that are; see ``MeasuredMenu.ratio``.

    Args:
        menu: has the predictions.
        grid: options to measure of each layer.
        most: layers.
    """
    predicted = _predicted(menu)

    def spread(name: str) -> float:
        damages = [predicted[name, method] for method in grid[name]]
        return max(damages, default=0.0) - min(damages, default=0.0)

    return {name: grid[name] for name in sorted(grid, key=spread, reverse=True)[:most]}


def _predicted(menu: Menu) -> dict[tuple[str, Method], float]:
    """Predicted damage by layer name and method."""
    return {
        (layer.spec.name, option.method): option.damage
        for layer in menu.layers
        for option in layer.options
    }


class Background:
    """A compressed model that layers are swapped in; each score is taken once and kept.

    Args:
        plan: one near the budget.
        evaluator: measures plans.
        text: what to score on; not the report text.
        cache: keeps each measurement, so that an interrupted run goes on.
        address: hash of all that a built layer depends on.
    """

    def __init__(
        self,
        plan: Plan,
        evaluator: Evaluator,
        text: ScoredText,
        cache: Cache,
        address: Callable[[str, Method], str],
    ) -> None:
        self.plan, self._evaluator, self._text, self._cache = plan, evaluator, text, cache
        layers = [address(name, method) for name, method in plan.items()]
        windows = text.windows
        self._place = content_key(
            layers, tensor_key(windows.ids), windows.context, windows.begin, SWAPS_VERSION
        )
        self._known: dict[str, float] = cache.record("swaps", self._place) or {}

    @property
    def divergence(self) -> float:
        """KL divergence from the dense model, nats per token; infinite if it is no number."""
        found = self._score("", self.plan)
        return found if math.isfinite(found) else math.inf

    def swapped(self, name: str, method: Method) -> float:
        """The same with one layer stored otherwise; may be no number."""
        if method == self.plan[name]:
            return self._score("", self.plan)
        key = f"{name} {json.dumps(method.to_dict(), sort_keys=True)}"
        return self._score(key, Plan.of({**self.plan, name: method}))

    def _score(self, key: str, plan: Plan) -> float:
        if key not in self._known:
            self._known[key] = self._evaluator.score(plan, self._text).kl
            self._cache.keep_record("swaps", self._place, self._known)
        return self._known[key]


def measure_swaps(
    background: Background,
    menu: Menu,
    grid: Mapping[str, Sequence[Method]],
    progress: Progress = SILENT,
    deadline: float = math.inf,
) -> MeasuredMenu:
    """Measure the options of a grid, one layer at a time, inside a compressed model.

    Args:
        background: the compressed model.
        menu: has the predictions.
        grid: what to measure of each layer, in this order.
        progress: told how far things are.
        deadline: of ``time.monotonic``; no layer is begun after it, and those before it count.
    """
    wanted = {
        name: [method for method in methods if method != Keep()] for name, methods in grid.items()
    }
    wanted = {name: methods for name, methods in wanted.items() if methods}
    predicted = _predicted(menu)
    total = sum(1 + len(methods) for methods in wanted.values())
    swaps: dict[str, tuple[Swap, ...]] = {}
    with progress.task("Measuring options inside a compressed model", total) as advance:
        for name, methods in wanted.items():
            if time.monotonic() >= deadline:
                break
            dense = background.swapped(name, Keep())
            advance(1)
            measured = []
            for method in methods:
                damage = background.swapped(name, method) - dense
                measured.append(Swap(predicted[name, method], damage))
                advance(1)
            usable = [s for s in measured if s.predicted > 0 and math.isfinite(s.measured)]
            if usable:
                swaps[name] = tuple(sorted(usable))
    return MeasuredMenu(swaps)
