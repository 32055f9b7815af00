from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict, replace

import pytest

from autocompress.calibration.priced_menu import PricedMenu
from autocompress.driver import driver, turns
from autocompress.driver.proposing.allocator import allocate, choices_of, in_layer_order
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED, SWEEP
from autocompress.judging.front import front_of
from autocompress.judging.picking import pick
from autocompress.methods.plan import Plan
from tests.driver.fake_search import (
    BASELINE,
    DENSE_BYTES,
    INVENTORY,
    MEASURED,
    MENU,
    PLANNED,
    REST_BYTES,
    SPECS,
    FakeEvaluator,
    run_in,
    run_whole,
    search_in,
    values_of,
)

pytestmark = pytest.mark.usefixtures("_storages_in_memory")


def allocation(knobs: Knobs, target: float, priced: PricedMenu) -> Plan:
    """The least score under knobs within so many bytes."""
    choices = choices_of(MENU, knobs.scorer(len(SPECS), priced))
    plan = allocate(choices, int(target) - REST_BYTES)
    return in_layer_order(plan, [spec.name for spec in SPECS])


def test_allocations_come_first_then_the_baseline_then_the_sweep_then_the_search(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 8, priced=MEASURED)
    phases = [
        (phase, len(list(run))) for phase, run in itertools.groupby(t.phase for t in record.trials)
    ]
    assert phases[:2] == [("allocation", 2), ("baseline", BASELINE)]
    assert phases[2][0] == "allocation"
    assert phases[2][1] > 3
    searched = [phase for phase, count in phases[3:] for _ in range(count)]
    assert len(searched) >= 8
    assert searched[: turns.SWAP_EVERY] == ["knobs"] * (turns.SWAP_EVERY - 1) + ["swaps"]
    assert record.trials[0].label == "allocated 8x on predictions"
    assert record.trials[1].label == "allocated 8x"
    assert [t.number for t in record.trials] == list(range(PLANNED + 8))


def test_no_plan_is_tried_twice(tmp_path):
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED + 15)
    assert max(Counter(t.plan.hash for t in record.trials).values()) == 1
    assert max(Counter(plan.hash for plan in evaluator.selected).values()) == 1
    # Without a measured menu both allocations at the budget are one plan.
    assert [t.label for t in record.trials if "8x" in t.label] == ["allocated 8x on predictions"]


def test_what_is_allocated_at_the_budget_has_knobs_for_the_sampler_to_learn_from(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 5, priced=MEASURED)
    at_budget = {"allocated 8x": Knobs(), "allocated 8x on predictions": PREDICTED}
    for trial in record.trials:
        if trial.label in at_budget:
            knobs = asdict(at_budget[trial.label])
            assert trial.params == {key: knobs[key] for key in knobs if key != "price"}
        else:
            assert bool(trial.params) == (trial.phase == "knobs")
    assert {t.label for t in record.trials} >= set(at_budget)


def test_every_proposed_plan_takes_at_most_its_target(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 10)
    for trial in record.trials:
        if trial.phase == "allocation":
            target = DENSE_BYTES / float(trial.label.split()[1].rstrip("x"))
            assert trial.bytes <= target * 1.01  # the label has three digits
        if trial.phase in ("knobs", "swaps"):
            assert trial.bytes <= record.limits.memory_bytes
        assert trial.bytes == INVENTORY.plan_bytes(trial.plan)


def test_the_measured_menu_changes_the_allocations_and_the_searched_plans(tmp_path):
    limit = int(DENSE_BYTES / 8)
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 5, priced=MEASURED)
    by_label = {t.label: t.plan for t in record.trials if t.phase == "allocation"}
    assert by_label["allocated 8x on predictions"] == allocation(Knobs(), limit, PricedMenu())
    assert by_label["allocated 8x"] == allocation(Knobs(), limit, MEASURED)
    assert by_label["allocated 8x"] != by_label["allocated 8x on predictions"]
    searched = [t for t in record.trials if t.phase == "knobs"]
    assert searched
    for trial in searched:
        assert trial.plan == allocation(Knobs(**trial.params), limit, MEASURED)


def test_without_a_limit_searched_plans_go_where_the_front_has_its_widest_step(tmp_path):
    search = search_in(tmp_path / "s", PLANNED + 12, ratio=None)
    evaluator = FakeEvaluator()
    assert len(search.proposer.targets) > 3
    record = run_whole(search, evaluator)
    assert {t.state for t in record.trials} == {"complete"}
    searched = [t for t in record.trials if t.phase == "knobs"]
    sizes = set()
    for trial in searched:
        before = replace(record, trials=record.trials[: trial.number])
        target = search.proposer.target(front_of(before))
        assert trial.plan == allocation(Knobs(**trial.params), target, PricedMenu())
        sizes.add(target)
    assert len(sizes) > len(searched) / 2


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.1])
def test_a_limit_of_the_dense_bytes_or_more_is_searched_below_them(tmp_path, ratio):
    search = search_in(tmp_path / "s", PLANNED + 3, ratio=ratio)
    evaluator = FakeEvaluator()
    record = run_whole(search, evaluator)
    assert {t.state for t in record.trials} == {"complete"}
    assert record.trials[0].label == "allocated 1x on predictions"
    assert search.proposer.targets == [share * DENSE_BYTES for share in SWEEP if share <= 1.0]
    for trial in record.trials:
        assert trial.bytes <= record.limits.memory_bytes
        assert trial.bytes <= DENSE_BYTES or trial.phase != "allocation"


@pytest.mark.parametrize("reference_span", [1.0, 2.0])
def test_plans_far_over_the_budget_are_recorded_without_being_measured(
    tmp_path, monkeypatch, reference_span
):
    monkeypatch.setattr(driver, "REFERENCE_SPAN", reference_span)
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED)
    infeasible = [t for t in record.trials if t.state == "infeasible"]
    span = reference_span * record.limits.memory_bytes
    assert infeasible
    assert all(t.bytes > span and t.selection is None for t in infeasible)
    assert all(t.bytes <= span for t in record.complete)
    assert not {t.plan for t in infeasible} & set(evaluator.selected)
    assert len(evaluator.selected) == len(record.complete)


def test_groups_hold_in_every_proposed_plan(tmp_path):
    group = (SPECS[0].name, SPECS[3].name)
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 8, groups=(group,))
    proposed = [t for t in record.trials if t.phase != "baseline"]
    assert "swaps" in {t.phase for t in proposed}
    assert all(t.plan[group[0]] == t.plan[group[1]] for t in proposed)
    assert any(t.plan[group[0]] != t.plan[SPECS[1].name] for t in proposed)


def test_swaps_start_from_the_best_plan_that_was_not_written_baselines(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 8)
    swaps = [t for t in record.trials if t.phase == "swaps"]
    assert swaps
    for trial in swaps:
        before = [t for t in record.trials[: trial.number] if t.phase != "baseline"]
        origin = record.trials[int(trial.label.split()[1])]
        assert origin == pick(replace(record, trials=tuple(before)))
        assert sum(origin.plan[name] != trial.plan[name] for name in origin.plan) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_trials(tmp_path, sampler):
    runs = [
        run_in(tmp_path / name, FakeEvaluator(), PLANNED + 5, sampler=sampler, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert values_of(runs[0]) == values_of(runs[1])
    assert values_of(runs[0]) != values_of(runs[2])
