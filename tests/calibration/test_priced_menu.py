from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.calibration.priced_menu import LARGEST_RATIO, LEAST_RATIO, Price, PricedMenu


@given(st.floats(1e-4, 10), st.floats(0.2, 5), st.floats(0.0, 1.0))
def test_between_two_swaps_the_logarithm_of_the_ratio_is_linear(first, ratio, share):
    second = 8 * first
    swaps = (Price(first, first), Price(second, second * ratio))
    loss_increase = first * 8**share
    assert PricedMenu({"a": swaps}).ratio("a", loss_increase) == pytest.approx(ratio**share)


def test_beyond_the_swaps_the_ratio_is_constant():
    menu = PricedMenu({"a": (Price(0.1, 0.2), Price(0.4, 1.6))})
    assert [
        menu.ratio("a", loss_increase) for loss_increase in (1e-9, 0.1, 0.4, 100.0)
    ] == pytest.approx([2.0, 2.0, 4.0, 4.0])


def test_among_many_swaps_the_two_nearest_count():
    predicted = [0.1, 0.2, 0.2, 0.5, 3.0]  # two options may be predicted the same
    ratios = [2.0, 1.0, 1.5, 4.0, 0.5]
    swaps = tuple(Price(p, p * r) for p, r in zip(predicted, ratios, strict=True))
    menu = PricedMenu({"a": swaps})
    for loss_increase in (0.05, 0.1, 0.15, 0.3, 0.5, 1.0, 2.9, 3.0, 9.0):
        place = np.interp(math.log(loss_increase), np.log(predicted), np.log(ratios))
        assert menu.ratio("a", loss_increase) == pytest.approx(math.exp(place), rel=1e-9)
    assert min(ratios) <= menu.ratio("a", 0.2) <= max(ratios)


@pytest.mark.parametrize(
    ("measured", "ratio"),
    [(1e9, LARGEST_RATIO), (1e-9, LEAST_RATIO), (0.0, LEAST_RATIO), (-1.0, LEAST_RATIO)],
)
def test_the_ratio_is_held_within_bounds(measured, ratio):
    menu = PricedMenu({"a": (Price(0.1, measured),)})
    assert menu.ratio("a", 0.1) == pytest.approx(ratio)


def test_a_layer_without_swaps_has_the_geometric_mean_of_the_others():
    menu = PricedMenu({"a": (Price(0.1, 0.2), Price(0.2, 1.6)), "b": (Price(0.3, 0.3),)})
    assert menu.ratio("c", 0.7) == pytest.approx((2 * 8 * 1) ** (1 / 3))
    assert PricedMenu().ratio("a", 0.7) == 1.0


def test_swaps_are_gone_through_once():
    """An allocation asks for the ratio of every option of every layer."""

    class Counted(dict):
        reads = 0

        def items(self):
            self.reads += 1
            return super().items()

    swaps = Counted({"a": (Price(0.1, 0.2),), "b": (Price(0.3, 0.3),)})
    menu = PricedMenu(swaps)
    ratios = [menu.ratio(layer, 0.2) for layer in ("a", "b", "c", "d") * 3]
    assert ratios == pytest.approx([2.0, 1.0, math.sqrt(2), math.sqrt(2)] * 3)
    assert swaps.reads == 1
