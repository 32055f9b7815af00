"""The allocator's second constraint: latency, as a limit and as a price."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.driver.proposing.allocation import allocated_plan, bent_choices
from autocompress.driver.proposing.allocator import (
    RELATIVE_GAP,
    SOLVER_TOLERANCE,
    LayerChoice,
    allocate,
    choices_of,
    least_ms,
    smallest_bytes,
)
from autocompress.driver.proposing.knobs import Knobs
from autocompress.errors import BudgetUnreachable
from autocompress.methods.plan import Plan
from tests.calibration.menus import METHODS, menu_of

# (bytes, milliseconds, score)
OPTION = st.tuples(st.integers(1, 10**6), st.floats(0.01, 10), st.floats(1e-6, 10))
LAYER = st.lists(OPTION, min_size=1, max_size=5)
Layers = Sequence[Sequence[tuple[int, float, float]]]


def choices_from(layers: Layers) -> list[LayerChoice]:
    return [
        LayerChoice(
            (f"layers.{i}",),
            METHODS[: len(options)],
            tuple(size for size, _, _ in options),
            tuple(score for _, _, score in options),
            tuple(time for _, time, _ in options),
        )
        for i, options in enumerate(layers)
    ]


def totals(choices: Sequence[LayerChoice], plan: Plan) -> tuple[float, ...]:
    """Bytes, milliseconds and score of a plan."""
    places = [choice.methods.index(plan[choice.layers[0]]) for choice in choices]
    rows = [(c.sizes[i], c.times[i], c.scores[i]) for c, i in zip(choices, places, strict=True)]
    return tuple(float(total) for total in np.sum(rows, 0))


def everything(layers: Layers) -> Iterator[tuple[float, ...]]:
    """Bytes, milliseconds and score of every plan."""
    for chosen in itertools.product(*layers):
        yield tuple(float(total) for total in np.sum(chosen, 0))


@settings(deadline=None, max_examples=80)
@given(st.lists(LAYER, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_with_both_limits_the_allocation_is_as_good_as_brute_force(layers, of_bytes, of_ms):
    choices = choices_from(layers)
    plans = list(everything(layers))
    low, high = np.min(plans, 0), np.max(plans, 0)
    limit_bytes = round(low[0] + of_bytes * (high[0] - low[0]))
    limit_ms = float(low[1] + of_ms * (high[1] - low[1]))
    slack = 1 - 2 * SOLVER_TOLERANCE  # a plan this close to a limit may be missed
    surely = [p for p in plans if p[0] <= limit_bytes * slack and p[1] <= limit_ms * slack]
    try:
        size, time, score = totals(choices, allocate(choices, limit_bytes, limit_ms))
    except BudgetUnreachable:
        assert not surely
        return
    assert size <= limit_bytes
    assert time <= limit_ms * (1 + 1e-12)
    if surely:
        assert score <= min(p[2] for p in surely) * (1 + RELATIVE_GAP) + 1e-12


@settings(deadline=None, max_examples=40)
@given(st.lists(LAYER, min_size=1, max_size=4), st.floats(0, 5))
def test_a_price_weighs_latency_against_the_score(layers, price):
    choices = choices_from(layers)
    _, time, score = totals(choices, allocate(choices, None, price_ms=price))
    best = min(score + price * time for _, time, score in everything(layers))
    assert score + price * time <= best * (1 + RELATIVE_GAP) + 1e-9


def test_a_higher_price_buys_less_latency():
    layers = [[(10, 4.0, 0.0), (20, 2.0, 1.0 + i), (30, 1.0, 3.0 + i)] for i in range(4)]
    choices = choices_from(layers)
    times = [totals(choices, allocate(choices, None, price_ms=p))[1] for p in (0, 0.8, 1.2, 9)]
    assert times[0] == 16.0
    assert times == sorted(times, reverse=True)
    assert times[-1] == least_ms(choices) == 4.0


def test_the_limit_that_cannot_be_met_is_named():
    choices = choices_from([[(100, 1.0, 0.0), (10, 4.0, 0.0)], [(100, 1.0, 0.0), (20, 3.0, 0.0)]])
    assert (smallest_bytes(choices), least_ms(choices)) == (30, 2.0)
    with pytest.raises(BudgetUnreachable, match=r"that small.*got 29 B.*at least 30 B"):
        allocate(choices, 29, 100.0)
    with pytest.raises(BudgetUnreachable, match=r"that fast.*got 1.9 ms.*at least 2 ms"):
        allocate(choices, 1000, 1.9)
    with pytest.raises(BudgetUnreachable) as caught:
        allocate(choices, 115, 3.5)
    assert "both limits" in str(caught.value)
    assert "at least 5 ms at these bytes" in str(caught.value)  # 110 bytes
    assert "at least 200 B at this latency" in str(caught.value)  # 2 ms


def test_at_the_fastest_and_at_the_smallest_there_is_a_plan():
    choices = choices_from([[(100, 1.0, 3.0), (10, 4.0, 2.0), (900, 9.0, 0.0)]] * 2)
    assert totals(choices, allocate(choices, None, 2.0))[1] == 2.0
    assert totals(choices, allocate(choices, 1800, 2.0))[1] == 2.0
    assert totals(choices, allocate(choices, 20, 8.0))[0] == 20
    assert totals(choices, allocate(choices, 110, 5.0))[:2] == (110, 5.0)


def test_a_limit_of_latency_needs_times():
    choices = choices_of(
        menu_of([(10, 1.0), (20, 0.5)]), lambda _layer, option: option.loss_increase
    )
    assert choices[0].times == ()
    with pytest.raises(ValueError, match="times"):
        allocate(choices, 100, 1.0)
    with pytest.raises(ValueError, match="times"):
        allocate(choices, 100, price_ms=1.0)


def test_options_stay_that_are_better_in_one_of_three_ways():
    menu = menu_of([(10, 3.0), (20, 2.0), (30, 2.5), (30, 2.0), (40, 1.0), (50, 1.0)])
    times = dict(zip(METHODS, (5.0, 4.0, 1.0, 4.0, 4.0, 3.0), strict=False))
    latencies = {("layers.0", method): time for method, time in times.items()}
    (two_way,) = choices_of(menu, lambda _layer, option: option.loss_increase)
    (three_way,) = choices_of(
        menu, lambda _layer, option: option.loss_increase, latencies=latencies
    )
    assert two_way.sizes == (10, 20, 40)
    # The third is faster than anything, the last faster than the fifth; the fourth is the second
    # with more bytes.
    assert three_way.sizes == (10, 20, 30, 40, 50)
    assert three_way.times == (5.0, 4.0, 1.0, 4.0, 3.0)
    assert METHODS[3] not in three_way.methods


def test_tied_layers_take_the_sum_of_their_times():
    menu = menu_of(*[[(10, 1.0), (20, 0.5)]] * 2)
    latencies = {
        (f"layers.{i}", m): t for i in (0, 1) for m, t in zip(METHODS, (1.0 + i, 5.0), strict=False)
    }
    (choice,) = choices_of(
        menu, lambda _layer, option: option.loss_increase, [("layers.0", "layers.1")], latencies
    )
    assert choice.times == (3.0, 10.0)


def test_a_plan_under_knobs_keeps_to_the_latency():
    menu = menu_of(*[[(10, 1.0), (20, 0.5)]] * 3)
    latencies = {
        (f"layers.{i}", m): t for i in range(3) for m, t in zip(METHODS, (1.0, 2.0), strict=False)
    }
    choices = bent_choices(menu, Knobs(), latencies=latencies)
    plan = allocated_plan(menu, choices, None, 5.1)
    assert list(plan) == ["layers.0", "layers.1", "layers.2"]
    assert sum(latencies[name, method] for name, method in plan.items()) == 5.0
