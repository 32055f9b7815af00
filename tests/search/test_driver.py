from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest

from autocompress.errors import AutocompressError, StorageError
from autocompress.methods.plan import Plan
from autocompress.search import driver, study_store
from autocompress.search.allocator import allocate, choices_of, in_layer_order
from autocompress.search.front import finalists
from autocompress.search.hand_written import hand_written_plans
from autocompress.search.knobs import Knobs
from autocompress.search.study_store import load_optuna_study, read_study
from tests.search import fake_search
from tests.search.fake_search import (
    DENSE_BYTES,
    INVENTORY,
    MENU,
    REST_BYTES,
    SPECS,
    FakeEvaluator,
    Witness,
    search_in,
)

HAND_WRITTEN = len(hand_written_plans(SPECS, 1 / 8))
PLANNED = HAND_WRITTEN + 1 + len(driver.SWEEP)  # one allocation on predictions


@pytest.fixture(autouse=True)
def _storages_in_memory(monkeypatch, request):
    """Keep studies in memory, for speed, but for the tests that ask for ``on_disk``."""
    if "on_disk" in request.fixturenames:
        return
    made = defaultdict(optuna.storages.InMemoryStorage)
    monkeypatch.setattr(study_store, "open_storage", made.__getitem__)
    monkeypatch.setattr(fake_search, "default_storage", lambda folder: f"memory:{folder}")


@pytest.fixture
def on_disk():
    """The test is about what SQLite keeps."""


def values_of(record):
    return [
        (t.number, t.phase, t.label, t.state, t.plan, t.bytes, t.selection, t.params)
        for t in record.trials
    ]


def test_the_allocation_comes_first_then_the_hand_written_then_the_sweep_then_the_knobs(tmp_path):
    record = search_in(tmp_path / "s", FakeEvaluator()).run(PLANNED + 5)
    phases = [
        (phase, len(list(run))) for phase, run in itertools.groupby(t.phase for t in record.trials)
    ]
    sweep = sum(t.phase == "allocation" for t in record.trials)
    assert phases == [
        ("allocation", 2),
        ("hand-written", HAND_WRITTEN),
        ("allocation", sweep - 2),
        ("knobs", PLANNED + 5 - HAND_WRITTEN - sweep),
    ]
    assert sweep > 4
    assert record.trials[0].label == "allocated 8x on predictions"
    assert record.trials[1].label == "allocated 8x"
    assert [t.number for t in record.trials] == list(range(PLANNED + 5))


def test_what_is_allocated_at_the_budget_has_knobs_for_the_sampler_to_learn_from(tmp_path):
    record = search_in(tmp_path / "s", FakeEvaluator()).run(PLANNED + 5)
    at_budget = {"allocated 8x": Knobs(), "allocated 8x on predictions": driver.PREDICTED}
    for trial in record.trials:
        if trial.label in at_budget:
            assert trial.params == asdict(at_budget[trial.label])
        else:
            assert bool(trial.params) == (trial.phase == "knobs")
    assert {t.label for t in record.trials} >= set(at_budget)


def test_every_allocated_plan_takes_at_most_its_target(tmp_path):
    record = search_in(tmp_path / "s", FakeEvaluator()).run(PLANNED + 8)
    for trial in record.trials:
        if trial.phase == "allocation":
            target = DENSE_BYTES / float(trial.label.split()[1].rstrip("x"))
            assert trial.bytes <= target * 1.01  # the label has three digits
        if trial.phase == "knobs":
            assert trial.bytes <= record.limits.memory_bytes
        assert trial.bytes == INVENTORY.plan_bytes(trial.plan)


CORRECTIONS = {SPECS[0].name: 4.0, SPECS[1].name: 0.25, SPECS[3].name: 0.5}


class Corrector:
    """Says how far predictions are off, and remembers for which plans it was asked."""

    def __init__(self) -> None:
        self.asked: list[Plan] = []

    def __call__(self, plan: Plan) -> dict[str, float]:
        self.asked.append(plan)
        return CORRECTIONS


def allocation(knobs: Knobs, target: float, corrections: Mapping[str, float]) -> Plan:
    """The least score under knobs within so many bytes."""
    choices = choices_of(MENU, knobs.scorer(len(SPECS), corrections))
    plan = allocate(choices, int(target) - REST_BYTES)
    return in_layer_order(plan, [spec.name for spec in SPECS])


def test_corrections_are_measured_once_in_the_plan_that_predictions_allocate(tmp_path):
    correct, limit = Corrector(), int(DENSE_BYTES / 8)
    record = search_in(tmp_path / "s", FakeEvaluator(), correct=correct).run(PLANNED + 5)
    assert correct.asked == [allocation(driver.PREDICTED, limit, {})]
    assert correct.asked[0] in {
        t.plan for t in record.trials if t.label == "allocated 8x on predictions"
    }


def test_corrections_change_the_allocations_and_the_searched_plans(tmp_path):
    correct, limit = Corrector(), int(DENSE_BYTES / 8)
    record = search_in(tmp_path / "s", FakeEvaluator(), correct=correct).run(PLANNED + 5)
    by_label = {t.label: t.plan for t in record.trials if t.phase == "allocation"}
    plain = search_in(tmp_path / "plain", FakeEvaluator()).run(PLANNED)
    uncorrected = {t.label: t.plan for t in plain.trials if t.phase == "allocation"}
    assert by_label.keys() == uncorrected.keys()
    assert by_label["allocated 8x"] == allocation(Knobs(), limit, CORRECTIONS)
    assert by_label["allocated 8x"] != uncorrected["allocated 8x"] == correct.asked[0]
    changed = [label for label, plan in by_label.items() if plan != uncorrected[label]]
    assert len(changed) > 2  # the sweep too
    assert "allocated 8x on predictions" not in changed
    searched = [t for t in record.trials if t.phase == "knobs"]
    assert searched
    for trial in searched:
        assert trial.plan == allocation(Knobs(**trial.params), limit, CORRECTIONS)


def test_a_resumed_search_asks_for_the_corrections_of_the_same_plan(tmp_path):
    whole, parts = Corrector(), Corrector()
    once = search_in(tmp_path / "whole", FakeEvaluator(), correct=whole).run(PLANNED)
    search_in(tmp_path / "parts", FakeEvaluator(), correct=parts).run(3)
    twice = search_in(tmp_path / "parts", FakeEvaluator(), correct=parts).run(PLANNED)
    assert parts.asked == 2 * whole.asked
    first, second = (
        [(t.label, t.plan) for t in record.trials if t.phase != "knobs"] for record in (once, twice)
    )
    assert first == second


def test_without_a_limit_searched_plans_take_turns_on_the_targets(tmp_path):
    search = search_in(tmp_path / "s", FakeEvaluator(), ratio=None, correct=Corrector())
    targets = search.targets
    assert len(targets) > 3
    planned = HAND_WRITTEN + 1 + len(targets)
    record = search.run(planned + 2 * len(targets))
    searched = [t for t in record.trials if t.phase == "knobs"]
    assert len(searched) == 2 * len(targets)
    turns = [targets[t.number % len(targets)] for t in searched]
    assert {turns.count(target) for target in targets} == {2}
    for trial, target in zip(searched, turns, strict=True):
        assert trial.plan == allocation(Knobs(**trial.params), target, CORRECTIONS)
        assert trial.bytes <= target


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.5, 0.1])
def test_a_limit_of_the_dense_bytes_or_more_is_searched_below_them(tmp_path, ratio):
    search = search_in(tmp_path / "s", FakeEvaluator(), ratio=ratio)
    record = search.run(HAND_WRITTEN + 1 + len(search.targets) + 3)
    assert {t.state for t in record.trials} == {"complete"}
    assert record.trials[0].label == "allocated 1x on predictions"
    assert {t.phase for t in record.trials} == {"allocation", "hand-written", "knobs"}
    assert search.targets == [share * DENSE_BYTES for share in driver.SWEEP if share <= 1.0]
    for trial in record.trials:
        assert trial.bytes <= record.limits.memory_bytes
        assert trial.bytes <= DENSE_BYTES or trial.phase == "hand-written"


@pytest.mark.parametrize("reference_span", [1.0, 1.5, 2.0])
def test_plans_far_over_the_budget_are_recorded_without_being_measured(
    tmp_path, monkeypatch, reference_span
):
    monkeypatch.setattr(driver, "REFERENCE_SPAN", reference_span)
    evaluator = FakeEvaluator()
    record = search_in(tmp_path / "s", evaluator).run(PLANNED)
    infeasible = [t for t in record.trials if t.state == "infeasible"]
    span = driver.REFERENCE_SPAN * record.limits.memory_bytes
    assert infeasible
    assert all(t.bytes > span and t.selection is None for t in infeasible)
    assert all(t.bytes <= span for t in record.complete)
    assert not {t.plan for t in infeasible} & set(evaluator.selected)
    assert len(evaluator.selected) == len(record.complete)


def test_without_a_limit_every_plan_is_measured(tmp_path):
    record = search_in(tmp_path / "s", FakeEvaluator(), ratio=None).run(PLANNED + 4)
    assert {t.state for t in record.trials} == {"complete"}
    assert {"allocation", "hand-written", "knobs"} == {t.phase for t in record.trials}


def test_groups_hold_in_every_searched_plan(tmp_path):
    group = (SPECS[0].name, SPECS[3].name)
    record = search_in(tmp_path / "s", FakeEvaluator(), groups=(group,)).run(PLANNED + 4)
    searched = [t.plan for t in record.trials if t.phase != "hand-written"]
    assert all(plan[group[0]] == plan[group[1]] for plan in searched)
    assert any(plan[group[0]] != plan[SPECS[1].name] for plan in searched)


def test_finalists_and_nothing_else_are_measured_on_the_report_text(tmp_path):
    evaluator = FakeEvaluator()
    record = search_in(tmp_path / "s", evaluator).run(PLANNED)
    wanted = {trial.plan.hash for trial in finalists(record)}
    assert {plan.hash for plan in evaluator.reported} == wanted
    assert len(evaluator.reported) == len(wanted)
    reported = [t for t in record.complete if t.report is not None]
    assert {t.plan.hash for t in reported} == wanted
    assert all(t.report.text == "report" and t.report.plan_hash == t.plan.hash for t in reported)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("not enough memory"), MemoryError("no room"), StorageError("the disk is full")],
)
def test_a_failing_trial_is_recorded_and_the_search_goes_on(tmp_path, error):
    def trouble(count: int, _plan: Plan) -> None:
        if count == 3:
            raise error

    record = search_in(tmp_path / "s", FakeEvaluator(trouble)).run(8)
    failed = [t for t in record.trials if t.state == "failed"]
    assert [t.error for t in failed] == [str(error)]
    assert failed[0].selection is None
    assert len(record.trials) == 9  # the failed one is not counted


def test_failures_in_a_row_stop_the_search_and_say_why(tmp_path):
    def trouble(count: int, _plan: Plan) -> None:
        if count > 2:
            raise RuntimeError(f"broken {count}")

    search = search_in(tmp_path / "s", FakeEvaluator(trouble))
    with pytest.raises(AutocompressError, match=r"5 trials in a row failed.*broken 7"):
        search.run(20)
    record = read_study("s", tmp_path)
    assert len(record.complete) == 2
    assert sum(t.state == "failed" for t in record.trials) == driver.MOST_FAILURES


def test_failures_that_are_not_in_a_row_do_not_stop_it(tmp_path):
    def trouble(count: int, _plan: Plan) -> None:
        if count % 2:
            raise RuntimeError("now and then")

    record = search_in(tmp_path / "s", FakeEvaluator(trouble)).run(12)
    assert sum(t.state == "failed" for t in record.trials) > driver.MOST_FAILURES
    assert sum(t.state != "failed" for t in record.trials) == 12


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_perplexity_that_is_no_number_is_a_failed_trial(tmp_path, perplexity):
    search = search_in(tmp_path / "s", FakeEvaluator(perplexity=perplexity))
    with pytest.raises(AutocompressError, match="not a finite number"):
        search.run(20)
    record = read_study("s", tmp_path)
    assert record.complete == ()
    assert {t.state for t in record.trials} <= {"failed", "infeasible"}


def interrupt_at(number: int):
    def trouble(count: int, _plan: Plan) -> None:
        if count == number:
            raise KeyboardInterrupt

    return trouble


@pytest.mark.parametrize("number", [1, 4])
def test_after_an_interruption_a_resumed_search_repeats_nothing_and_loses_nothing(tmp_path, number):
    whole = search_in(tmp_path / "whole", FakeEvaluator()).run(HAND_WRITTEN)
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "cut", FakeEvaluator(interrupt_at(number))).run(HAND_WRITTEN)
    cut = read_study("cut", tmp_path)
    assert len(cut.complete) == number - 1
    assert [t.error for t in cut.trials if t.state == "failed"] == ["interrupted"]

    evaluator = FakeEvaluator()
    resumed = search_in(tmp_path / "cut", evaluator).run(HAND_WRITTEN)
    assert values_of(resumed)[: len(cut.trials)] == values_of(cut)
    assert not {t.plan for t in cut.complete} & set(evaluator.selected) - duplicates(whole)
    done = [(t.phase, t.label, t.plan) for t in resumed.trials if t.state != "failed"]
    assert done == [(t.phase, t.label, t.plan) for t in whole.trials]


def duplicates(record) -> set[Plan]:
    """Plans that the planned trials themselves propose more than once."""
    plans = [t.plan for t in record.trials]
    return {plan for plan in plans if plans.count(plan) > 1}


def test_a_finished_search_that_is_run_again_measures_nothing(tmp_path):
    first = search_in(tmp_path / "s", FakeEvaluator()).run(12)
    evaluator, witness = FakeEvaluator(), Witness()
    again = search_in(tmp_path / "s", evaluator, observers=(witness,)).run(12)
    assert again == first
    assert evaluator.asked == []
    assert witness.events == [("started", 12), ("finished", 12)]


def test_more_trials_are_added_to_a_finished_search(tmp_path):
    first = search_in(tmp_path / "s", FakeEvaluator()).run(5)
    evaluator = FakeEvaluator()
    more = search_in(tmp_path / "s", evaluator).run(9)
    assert values_of(more)[:5] == values_of(first)
    assert len(more.trials) == 9
    assert not set(evaluator.selected) & {t.plan for t in first.complete}


def test_a_trial_that_a_killed_run_left_running_is_failed_and_proposed_again(tmp_path, on_disk):
    first = search_in(tmp_path / "s", FakeEvaluator())
    first.run(3)
    left = first.study.ask()  # as kill -9 leaves it, before it had a plan
    record = search_in(tmp_path / "s", FakeEvaluator()).run(6)
    assert left.number == 3
    assert len(record.complete) + sum(t.state == "infeasible" for t in record.trials) == 6
    assert 3 not in {t.number for t in record.trials}  # there is nothing to show of it
    stored = load_optuna_study("s", f"sqlite:///{tmp_path}/s/study.db").get_trials()
    assert stored[3].state.name == "FAIL"


def test_a_planned_trial_that_failed_is_tried_again_by_the_next_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "s", FakeEvaluator(interrupt_at(1))).run(3)
    record = search_in(tmp_path / "s", FakeEvaluator()).run(3)
    assert [(t.label, t.state) for t in record.trials][:2] == [
        ("allocated 8x on predictions", "failed"),
        ("allocated 8x on predictions", "complete"),
    ]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_trials(tmp_path, sampler):
    runs = [
        search_in(tmp_path / name, FakeEvaluator()).run(PLANNED + 5, sampler=sampler, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert values_of(runs[0]) == values_of(runs[1])
    assert values_of(runs[0]) != values_of(runs[2])


def test_no_trial_starts_after_the_time_is_up(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])

    def trouble(_count: int, _plan: Plan) -> None:
        now[0] += 10.0

    evaluator = FakeEvaluator(trouble)
    record = search_in(tmp_path / "s", evaluator).run(100, seconds=35.0)
    assert len(evaluator.selected) == 4  # the fourth starts at 30 s
    assert all(t.report for t in finalists(record))  # what was found is still measured


def test_observers_hear_of_every_trial_in_order(tmp_path):
    witness = Witness()
    search_in(Path(tmp_path) / "s", FakeEvaluator(), observers=(witness,)).run(4)
    assert witness.events == [("started", 0), *(("s", n) for n in range(4)), ("finished", 4)]
