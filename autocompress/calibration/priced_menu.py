"""What options cost inside a compressed model, beside what is predicted around the dense one.

The second-order prediction is made around the dense model, one matrix at a time. Near a budget the
other matrices are compressed as well, and loss increases are neither small nor additive; see
``prices``. Between the options that are priced the ratio of price to prediction is interpolated.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

LARGEST_RATIO = 32.0  # heavy rank cuts cost several times what is predicted; more is noise
LEAST_RATIO = 1 / 8  # a price may come out as nothing, or less


class Price(NamedTuple):
    """One option of one layer: predicted increase of the loss, and its price inside a plan."""

    predicted: float
    priced: float


@dataclass(frozen=True)
class PricedMenu:
    """The options that were priced, by layer name and rising predicted loss increase.

    Attributes:
        by_layer: layers that are always kept have none.
    """

    by_layer: Mapping[str, tuple[Price, ...]] = field(default_factory=dict)

    def ratio(self, layer: str, loss_increase: float) -> float:
        """Price over predicted loss increase of a layer where that much is predicted.

        Linear in the logarithms between the prices, constant beyond them. A layer without prices
        has the geometric mean of the others.

        Args:
            layer: its name.
            loss_increase: predicted, nats per token, more than zero.
        """
        curve = self._curves.get(layer)
        if curve is None:
            return self._mean_ratio
        return math.exp(_interpolated(math.log(loss_increase), *curve))

    @cached_property
    def _curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Logarithms of predicted loss increases and of the ratios there, by layer."""
        return {
            layer: (
                [math.log(price.predicted) for price in prices],
                [math.log(_within_bounds(price.priced / price.predicted)) for price in prices],
            )
            for layer, prices in self.by_layer.items()
            if prices
        }

    @cached_property
    def _mean_ratio(self) -> float:
        """Geometric mean over all prices."""
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
