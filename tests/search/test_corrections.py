from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

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
from autocompress.search.corrections import LARGEST_CORRECTION, measure_corrections, ratios
from autocompress.search.evaluator import Evaluator, ScoredText
from tests.search.fake_search import MENU, SPECS

NAMES = tuple(spec.name for spec in SPECS)
TRUE = {NAMES[0]: 0.04, NAMES[1]: 0.02, NAMES[2]: 0.01, NAMES[3]: 0.03}  # what layers cost
PLAN = Plan.of(dict.fromkeys(NAMES, Quantize(3, 64)))

DAMAGES = st.lists(
    st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)), min_size=1, max_size=6
).map(lambda pairs: tuple({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1)))


@given(DAMAGES, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_factor_that_all_layers_have_in_common_is_taken_out(damages, one, other):
    measured, predicted = damages
    scaled = ratios(
        {name: one * value for name, value in measured.items()},
        {name: other * value for name, value in predicted.items()},
    )
    assert scaled == pytest.approx(ratios(measured, predicted))


@given(DAMAGES, st.floats(1e-3, 1e3))
def test_predictions_that_are_right_but_for_a_factor_need_no_correction(damages, factor):
    predicted, _ = damages
    found = ratios({name: factor * value for name, value in predicted.items()}, predicted)
    assert found == pytest.approx(dict.fromkeys(predicted, 1.0))


@given(DAMAGES)
def test_corrected_predictions_are_in_proportion_to_what_was_measured(damages):
    """Ratios within the bounds leave the total of the predictions as it is."""
    measured, predicted = damages
    found = ratios(measured, predicted)
    assert found.keys() == predicted.keys()
    scale = sum(predicted.values()) / sum(measured.values())
    for name, value in found.items():
        free = scale * measured[name] / predicted[name]
        assert 1 / LARGEST_CORRECTION <= value <= LARGEST_CORRECTION
        if 1 / LARGEST_CORRECTION <= free <= LARGEST_CORRECTION:
            assert value * predicted[name] == pytest.approx(scale * measured[name])
        else:
            assert value == (LARGEST_CORRECTION if free > 1 else 1 / LARGEST_CORRECTION)


def test_a_ratio_by_hand():
    """Totals of 0.06 and 0.03: all damages are twice the predictions, the first 8/6 beside that."""
    found = ratios({"a": 0.04, "b": 0.02}, {"a": 0.015, "b": 0.015})
    assert found == pytest.approx({"a": 4 / 3, "b": 2 / 3})


def test_a_layer_that_helps_when_it_is_compressed_takes_the_lower_bound():
    found = ratios({"a": 0.05, "b": -0.01}, {"a": 0.02, "b": 0.02})
    assert found == pytest.approx({"a": 2.5, "b": 1 / LARGEST_CORRECTION})


def test_a_layer_whose_predicted_damage_is_zero_has_no_ratio():
    assert ratios({"a": 0.04, "b": 0.02}, {"a": 0.03, "b": 0.0}).keys() == {"a"}


@pytest.mark.parametrize(
    ("measured", "predicted"),
    [
        ({}, {}),
        ({"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.1}),
        ({"a": 0.1, "b": -0.1}, {"a": 0.1, "b": 0.1}),
        ({"a": 0.1, "b": -0.3}, {"a": 0.1, "b": 0.1}),
        ({"a": 0.1, "b": 0.1}, {"a": 0.0, "b": 0.0}),
    ],
)
def test_totals_that_are_not_positive_say_nothing(measured, predicted):
    assert ratios(measured, predicted) == {}


class Divergences:
    """Says that a plan costs the sum of what its layers cost, and remembers what it was asked."""

    def __init__(self, true: Mapping[str, float] = TRUE, fail_at: int = 0) -> None:
        self.true, self.fail_at = true, fail_at
        self.asked: list[tuple[Plan, ScoredText]] = []

    def divergence(self, plan: Plan, text: ScoredText) -> float:
        if len(self.asked) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((plan, text))
        return sum(self.true[name] for name, method in plan.items() if method != Keep())

    @property
    def plans(self) -> list[Plan]:
        return [plan for plan, _ in self.asked]


class Bars:
    """A progress that counts the steps of its tasks."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.steps = 0

    def task(self, _description: str, total: int | None = None) -> Any:
        self.totals.append(total)
        return self

    def __enter__(self) -> Callable[[int], None]:
        return self.advance

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, steps: int) -> None:
        self.steps += steps

    def note(self, message: str) -> None:
        pass


def scored_text(first: int = 0) -> ScoredText:
    ids = torch.arange(first, first + 16)
    return ScoredText("calibration", Windows(ids, 8), cast(Teacher, None))


def address(name: str, method: object) -> str:
    return f"{name} {method}"


def measure(evaluator, cache, plan=PLAN, text=None, address=address, progress=None):
    worker = cast(Evaluator, evaluator)
    place = (cache, address) if progress is None else (cache, address, progress)
    return measure_corrections(worker, MENU, plan, text or scored_text(), *place)


def without(*names: str, plan: Plan = PLAN) -> Plan:
    return Plan.of({name: method for name, method in plan.items() if name not in names})


def predicted(plan: Plan) -> dict[str, float]:
    damages = {
        name: {option.method: option.damage for option in MENU[name].options} for name in plan
    }
    return {name: damages[name][method] for name, method in plan.items()}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_the_plan_and_the_plan_without_each_layer_are_measured(cache):
    evaluator, text = Divergences(), scored_text()
    found = measure(evaluator, cache, text=text)
    assert Counter(evaluator.plans) == Counter([PLAN, *(without(name) for name in NAMES)])
    assert all(asked is text for _, asked in evaluator.asked)
    # Where damages do add up, putting a layer back saves what it costs.
    assert found == pytest.approx(ratios(TRUE, predicted(PLAN)))
    assert len(set(found.values())) == len(NAMES)


def test_layers_that_the_plan_keeps_are_neither_measured_nor_corrected(cache):
    kept = Plan.of({**PLAN, NAMES[1]: Keep()})
    evaluator = Divergences()
    found = measure(evaluator, cache, kept)
    changed = [name for name in NAMES if name != NAMES[1]]
    assert Counter(plan.hash for plan in evaluator.plans) == Counter(
        [kept.hash, *(without(name, NAMES[1]).hash for name in changed)]
    )
    damages = predicted(kept)
    assert found == pytest.approx(
        ratios({n: TRUE[n] for n in changed}, {n: damages[n] for n in changed})
    )


def test_a_plan_that_keeps_everything_is_not_measured(cache):
    evaluator = Divergences()
    assert measure(evaluator, cache, Plan.of(dict.fromkeys(NAMES, Keep()))) == {}
    assert evaluator.asked == []


def test_a_second_call_measures_nothing(cache):
    first = measure(Divergences(), cache)
    evaluator, bars = Divergences(), Bars()
    assert measure(evaluator, cache, progress=bars) == first
    assert evaluator.asked == []
    assert (bars.totals, bars.steps) == ([len(NAMES)], len(NAMES))


@pytest.mark.parametrize("fail_at", [1, 2, 3, 5])
def test_after_an_interruption_only_what_is_missing_is_measured(cache, tmp_path, fail_at):
    whole = measure(Divergences(), Cache(tmp_path / "undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        measure(Divergences(fail_at=fail_at), cache)
    done = max(fail_at - 2, 0)  # the first measurement is of the whole plan
    evaluator, bars = Divergences(), Bars()
    assert measure(evaluator, cache, progress=bars) == whole
    assert evaluator.plans == [PLAN, *(without(name) for name in NAMES[done:])]
    assert bars.steps == len(NAMES)


def test_other_texts_layers_and_methods_are_measured_afresh(cache):
    measure(Divergences(), cache)
    retrained = lambda name, method: f"retrained {address(name, method)}"  # noqa: E731
    for change in (
        {"text": scored_text(first=1)},
        {"plan": Plan.of({**PLAN, NAMES[2]: Quantize(4, 64)})},
        {"plan": without(NAMES[2])},
        {"address": retrained},
    ):
        evaluator = Divergences()
        measure(evaluator, cache, **change)
        assert len(evaluator.asked) == 1 + len(change.get("plan", PLAN))
    again = Divergences()
    measure(again, cache)
    assert again.asked == []


def test_an_entry_that_cannot_be_read_is_measured_again(cache):
    first = measure(Divergences(), cache)
    (entry,) = (cache.root / "corrections").iterdir()
    entry.write_text('{"layers.0": 0.0')
    evaluator = Divergences()
    assert measure(evaluator, cache) == first
    assert len(evaluator.asked) == 1 + len(NAMES)
