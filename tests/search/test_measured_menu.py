from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.calibration.cache import Cache
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.search import measured_menu
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.measured_menu import (
    LARGEST_RATIO,
    LEAST_RATIO,
    Background,
    MeasuredMenu,
    Swap,
    coarse_grid,
    measure_swaps,
    most_telling,
)
from tests.search.fake_search import MENU, SPECS

NAMES = tuple(spec.name for spec in SPECS)
PLAN = Plan.of(dict.fromkeys(NAMES, Quantize(3, 64)))
OPTIONS = (Quantize(2, 64), Quantize(3, 64), Quantize(4, 16))
GRID = dict.fromkeys(NAMES, (*OPTIONS, Keep()))
PREDICTED = {
    (layer.spec.name, option.method): option.damage
    for layer in MENU.layers
    for option in layer.options
}


def true_damage(name: str, method) -> float:
    """What an option really costs: more than predicted, by layer and the more the heavier."""
    if method == Keep():
        return 0.0
    return PREDICTED[name, method] ** 1.2 * (2 + NAMES.index(name))


@given(st.floats(1e-4, 10), st.floats(0.2, 5), st.floats(0.0, 1.0))
def test_between_two_swaps_the_logarithm_of_the_ratio_is_linear(first, ratio, share):
    second = 8 * first
    swaps = (Swap(first, first), Swap(second, second * ratio))
    damage = first * 8**share
    assert MeasuredMenu({"a": swaps}).ratio("a", damage) == pytest.approx(ratio**share)


def test_beyond_the_swaps_the_ratio_is_constant():
    menu = MeasuredMenu({"a": (Swap(0.1, 0.2), Swap(0.4, 1.6))})
    assert [menu.ratio("a", damage) for damage in (1e-9, 0.1, 0.4, 100.0)] == pytest.approx(
        [2.0, 2.0, 4.0, 4.0]
    )


def test_among_many_swaps_the_two_nearest_count():
    predicted = [0.1, 0.2, 0.2, 0.5, 3.0]  # two options may be predicted the same
    ratios = [2.0, 1.0, 1.5, 4.0, 0.5]
    swaps = tuple(Swap(p, p * r) for p, r in zip(predicted, ratios, strict=True))
    menu = MeasuredMenu({"a": swaps})
    for damage in (0.05, 0.1, 0.15, 0.3, 0.5, 1.0, 2.9, 3.0, 9.0):
        place = np.interp(math.log(damage), np.log(predicted), np.log(ratios))
        assert menu.ratio("a", damage) == pytest.approx(math.exp(place), rel=1e-9)
    assert min(ratios) <= menu.ratio("a", 0.2) <= max(ratios)


@pytest.mark.parametrize(
    ("measured", "ratio"),
    [(1e9, LARGEST_RATIO), (1e-9, LEAST_RATIO), (0.0, LEAST_RATIO), (-1.0, LEAST_RATIO)],
)
def test_the_ratio_is_held_within_bounds(measured, ratio):
    menu = MeasuredMenu({"a": (Swap(0.1, measured),)})
    assert menu.ratio("a", 0.1) == pytest.approx(ratio)


def test_a_layer_without_swaps_has_the_geometric_mean_of_the_others():
    menu = MeasuredMenu({"a": (Swap(0.1, 0.2), Swap(0.2, 1.6)), "b": (Swap(0.3, 0.3),)})
    assert menu.ratio("c", 0.7) == pytest.approx((2 * 8 * 1) ** (1 / 3))
    assert MeasuredMenu().ratio("a", 0.7) == 1.0


def test_swaps_are_gone_through_once():
    """An allocation asks for the ratio of every option of every layer."""

    class Counted(dict):
        reads = 0

        def items(self):
            self.reads += 1
            return super().items()

    swaps = Counted({"a": (Swap(0.1, 0.2),), "b": (Swap(0.3, 0.3),)})
    menu = MeasuredMenu(swaps)
    ratios = [menu.ratio(layer, 0.2) for layer in ("a", "b", "c", "d") * 3]
    assert ratios == pytest.approx([2.0, 1.0, math.sqrt(2), math.sqrt(2)] * 3)
    assert swaps.reads == 1


def test_the_grid_is_what_some_plan_takes():
    other = Plan.of({**PLAN, NAMES[0]: Keep()})
    grid = coarse_grid(MENU, [PLAN, other, PLAN])
    assert grid == {name: [Quantize(3, 64)] for name in NAMES} | {
        NAMES[0]: [Quantize(3, 64), Keep()]
    }


def test_the_layers_whose_options_differ_most_in_predicted_damage_are_told_apart():
    spread = {
        name: max(PREDICTED[name, method] for method in GRID[name] if method != Keep())
        for name in NAMES
    }
    chosen = most_telling(MENU, GRID, 2)
    assert list(chosen) == sorted(NAMES, key=spread.__getitem__, reverse=True)[:2]
    assert all(chosen[name] == GRID[name] for name in chosen)
    assert most_telling(MENU, GRID) == GRID
    kept = {**dict.fromkeys(NAMES, (Keep(),)), NAMES[2]: (), NAMES[1]: OPTIONS}
    assert list(most_telling(MENU, kept, 1)) == [NAMES[1]]


class Divergences:
    """Says that a plan costs the sum of what its layers cost, and remembers what it was asked."""

    def __init__(self, fail_at: int = 0, true: Callable[..., float] = true_damage) -> None:
        self.fail_at, self.true = fail_at, true
        self.asked: list[tuple[Plan, ScoredText]] = []

    def score(self, plan: Plan, text: ScoredText) -> Any:
        if len(self.asked) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((plan, text))
        return SimpleNamespace(kl=sum(self.true(name, method) for name, method in plan.items()))

    @property
    def plans(self) -> list[Plan]:
        return [plan for plan, _ in self.asked]


def scored_text(first: int = 0) -> ScoredText:
    ids = torch.arange(first, first + 16)
    return ScoredText("calibration", Windows(ids, 8), cast(Teacher, None))


def address(name: str, method: object) -> str:
    return f"{name} {method}"


def measure(
    evaluator, cache, plan=PLAN, grid=None, text=None, address=address, deadline=math.inf
) -> MeasuredMenu:
    worker = cast(Evaluator, evaluator)
    background = Background(plan, worker, text or scored_text(), cache, address)
    return measure_swaps(background, MENU, grid or GRID, deadline=deadline)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_where_damages_add_up_they_are_recovered(cache):
    found = measure(Divergences(), cache)
    assert found.swaps.keys() == set(NAMES)
    for name, swaps in found.swaps.items():
        damages = sorted((PREDICTED[name, m], true_damage(name, m)) for m in OPTIONS)
        assert [tuple(swap) for swap in swaps] == [pytest.approx(pair) for pair in damages]
        for method in OPTIONS:
            predicted = PREDICTED[name, method]
            ratio = true_damage(name, method) / predicted
            bounded = min(max(ratio, LEAST_RATIO), LARGEST_RATIO)
            assert found.ratio(name, predicted) == pytest.approx(bounded)


def test_one_layer_is_swapped_at_a_time_and_nothing_is_scored_twice(cache):
    evaluator, text = Divergences(), scored_text()
    measure(evaluator, cache, text=text)
    wanted = {Plan.of({**PLAN, name: method}) for name in NAMES for method in GRID[name]}
    assert Counter(evaluator.plans) == Counter(wanted)
    assert PLAN in wanted  # the background itself, once for all layers
    assert all(asked is text for _, asked in evaluator.asked)


def test_layers_that_are_always_kept_are_not_measured(cache):
    evaluator = Divergences()
    found = measure(evaluator, cache, grid={**GRID, NAMES[1]: (Keep(),), NAMES[2]: ()})
    assert found.swaps.keys() == {NAMES[0], NAMES[3]}
    assert all(plan[NAMES[1]] == plan[NAMES[2]] == Quantize(3, 64) for plan in evaluator.plans)


def test_divergences_that_are_no_numbers_say_nothing(cache):
    def true(name, method):
        return math.nan if (name, method) == (NAMES[0], OPTIONS[0]) else true_damage(name, method)

    found = measure(Divergences(true=true), cache)
    assert [swap.predicted for swap in found.swaps[NAMES[0]]] == sorted(
        PREDICTED[NAMES[0], method] for method in OPTIONS[1:]
    )


@pytest.mark.parametrize("fail_at", [1, 2, 6, 11])
def test_after_an_interruption_only_what_is_missing_is_scored(cache, tmp_path, fail_at):
    undisturbed = Divergences()
    whole = measure(undisturbed, Cache(tmp_path / "undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        measure(Divergences(fail_at=fail_at), cache)
    evaluator = Divergences()
    assert measure(evaluator, cache) == whole
    assert evaluator.plans == undisturbed.plans[fail_at - 1 :]
    again = Divergences()
    assert measure(again, cache) == whole
    assert again.asked == []


def test_after_the_deadline_no_layer_is_begun_and_what_was_measured_counts(cache, monkeypatch):
    whole = measure(Divergences(), cache).swaps
    cut = Divergences()
    monkeypatch.setattr(measured_menu.time, "monotonic", lambda: float(len(cut.asked)))
    found = measure(cut, Cache(cache.root / "cut"), deadline=5.0).swaps
    assert list(found) == list(NAMES[: len(found)])
    assert 0 < len(found) < len(NAMES)
    assert found == {name: whole[name] for name in found}
    assert measure(Divergences(), cache, deadline=0.0) == MeasuredMenu()


def test_a_finer_grid_scores_only_what_is_new(cache):
    measure(Divergences(), cache)
    evaluator, finer = Divergences(), Quantize(8, 64)
    measure(evaluator, cache, grid={name: (*GRID[name], finer) for name in NAMES})
    assert set(evaluator.plans) == {Plan.of({**PLAN, name: finer}) for name in NAMES}


def test_other_texts_backgrounds_and_layers_are_measured_afresh(cache):
    first = Divergences()
    measure(first, cache)
    for change in (
        {"text": scored_text(first=1)},
        {"plan": Plan.of({**PLAN, NAMES[2]: Quantize(4, 64)})},
        {"address": lambda name, method: f"retrained {name} {method}"},
    ):
        evaluator = Divergences()
        measure(evaluator, cache, **change)
        assert len(evaluator.asked) >= len(first.asked)


def test_an_entry_that_cannot_be_read_is_measured_again(cache):
    first = measure(Divergences(), cache)
    (entry,) = (cache.root / "swaps").iterdir()
    entry.write_text('{"layers.0": 0.0')
    evaluator = Divergences()
    assert measure(evaluator, cache) == first
    assert evaluator.asked
