from __future__ import annotations

import itertools
import socket
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest

from autocompress.calibration.menu import LayerMenu, Menu
from autocompress.errors import AutocompressError, StorageError
from autocompress.methods.plan import Plan
from autocompress.search import driver, study_store, turns
from autocompress.search.allocator import allocate, choices_of, in_layer_order
from autocompress.search.engines.here import Here
from autocompress.search.front import finalists, front_of
from autocompress.search.hand_written import hand_written_plans
from autocompress.search.knobs import Knobs
from autocompress.search.measured_menu import MeasuredMenu, Swap
from autocompress.search.picking import pick
from autocompress.search.proposer import PREDICTED, SWEEP
from autocompress.search.stages import stages_of
from autocompress.search.study_store import load_optuna_study, read_study
from autocompress.search.trial_owner import OWNER
from tests.search import fake_search
from tests.search.fake_search import (
    DENSE_BYTES,
    INVENTORY,
    MENU,
    REST_BYTES,
    SPECS,
    WINDOWS,
    Crew,
    FakeEvaluator,
    Witness,
    run_in,
    search_in,
)

HAND_WRITTEN = len({plan.hash for _, plan in hand_written_plans(SPECS, 1 / 8)})
# Duplicates are skipped, so that there may be fewer.
PLANNED = HAND_WRITTEN + 1 + len(SWEEP)
PHASES_BEFORE = ("allocation", "hand-written")
MEASURED = MeasuredMenu({SPECS[0].name: (Swap(0.1, 0.4),), SPECS[1].name: (Swap(0.1, 0.025),)})


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


def allocation(knobs: Knobs, target: float, measured: MeasuredMenu) -> Plan:
    """The least score under knobs within so many bytes."""
    choices = choices_of(MENU, knobs.scorer(len(SPECS), measured))
    plan = allocate(choices, int(target) - REST_BYTES)
    return in_layer_order(plan, [spec.name for spec in SPECS])


def test_allocations_come_first_then_the_hand_written_then_the_sweep_then_the_search(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 8, measured=MEASURED)
    phases = [
        (phase, len(list(run))) for phase, run in itertools.groupby(t.phase for t in record.trials)
    ]
    assert phases[:2] == [("allocation", 2), ("hand-written", HAND_WRITTEN)]
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
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 5, measured=MEASURED)
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
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 5, measured=MEASURED)
    by_label = {t.label: t.plan for t in record.trials if t.phase == "allocation"}
    assert by_label["allocated 8x on predictions"] == allocation(Knobs(), limit, MeasuredMenu())
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
    record = search.run(Here(evaluator.run), evaluator.report)
    assert {t.state for t in record.trials} == {"complete"}
    searched = [t for t in record.trials if t.phase == "knobs"]
    sizes = set()
    for trial in searched:
        before = replace(record, trials=record.trials[: trial.number])
        target = search.proposer.target(front_of(before))
        assert trial.plan == allocation(Knobs(**trial.params), target, MeasuredMenu())
        sizes.add(target)
    assert len(sizes) > len(searched) / 2


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.1])
def test_a_limit_of_the_dense_bytes_or_more_is_searched_below_them(tmp_path, ratio):
    search = search_in(tmp_path / "s", PLANNED + 3, ratio=ratio)
    evaluator = FakeEvaluator()
    record = search.run(Here(evaluator.run), evaluator.report)
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
    proposed = [t for t in record.trials if t.phase != "hand-written"]
    assert "swaps" in {t.phase for t in proposed}
    assert all(t.plan[group[0]] == t.plan[group[1]] for t in proposed)
    assert any(t.plan[group[0]] != t.plan[SPECS[1].name] for t in proposed)


def test_finalists_and_nothing_else_are_measured_on_the_report_text(tmp_path):
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED)
    wanted = {trial.plan.hash for trial in finalists(record)}
    assert {plan.hash for plan in evaluator.reported} == wanted
    assert len(evaluator.reported) == len(wanted)
    reported = [t for t in record.complete if t.report is not None]
    assert {t.plan.hash for t in reported} == wanted
    assert all(t.report.text == "report" and t.report.plan_hash == t.plan.hash for t in reported)


def test_swaps_start_from_the_best_plan_that_was_not_written_by_hand(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), PLANNED + 8)
    swaps = [t for t in record.trials if t.phase == "swaps"]
    assert swaps
    for trial in swaps:
        before = [t for t in record.trials[: trial.number] if t.phase != "hand-written"]
        origin = record.trials[int(trial.label.split()[1])]
        assert origin == pick(replace(record, trials=tuple(before)))
        assert sum(origin.plan[name] != trial.plan[name] for name in origin.plan) == 2


def test_jobs_have_stages_and_rivals_that_take_no_more_bytes(tmp_path):
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED + 5, windows=WINDOWS)
    by_number = {trial.number: trial for trial in record.trials}
    assert any(job.rivals for job in evaluator.jobs)
    assert evaluator.jobs[0].rivals == ()
    for job in evaluator.jobs:
        assert job.stages == stages_of(WINDOWS)
        trial = by_number[job.number]
        by_hand = trial.phase == "hand-written"
        allowed = {
            t.selection.windows.kl
            for t in record.complete
            if t.number < job.number
            and t.bytes <= trial.bytes
            and (t.phase == "hand-written") == by_hand
        }
        assert set(job.rivals) <= allowed
        assert bool(job.rivals) == bool(allowed)


def test_stopped_trials_are_kept_with_their_first_windows_and_count(tmp_path):
    """Searched plans are bad ones here: all of them are given up after the first stage."""
    planned = {t.plan for t in run_in(tmp_path / "p", FakeEvaluator(), PLANNED - 4).trials}
    evaluator = FakeEvaluator(bad=lambda plan: plan not in planned)
    record = run_in(tmp_path / "s", evaluator, PLANNED + 4, windows=WINDOWS)
    assert len(record.trials) == PLANNED + 4
    stopped = [t for t in record.trials if t.state == "stopped"]
    assert len(stopped) >= 4
    for trial in stopped:
        assert trial.selection is None
        assert trial.report is None
        assert len(trial.partial.windows.kl) == stages_of(WINDOWS)[0]
        assert trial.partial.latency_ms is None
        assert trial.seconds == 1.0
    stored = load_optuna_study("s", f"memory:{tmp_path}/s").get_trials()
    assert {stored[t.number].state.name for t in stopped} == {"PRUNED"}
    assert read_study("s", tmp_path) == record
    again = FakeEvaluator()
    assert run_in(tmp_path / "s", again, PLANNED + 4, windows=WINDOWS) == record
    assert again.jobs == []


def test_several_jobs_are_out_at_a_time_and_told_in_another_order(tmp_path):
    evaluator, witness = FakeEvaluator(), Witness()
    crew = Crew(evaluator, 4)
    record = run_in(tmp_path / "s", evaluator, PLANNED + 9, crew, observers=(witness,))
    assert crew.most == 4
    assert crew.told != sorted(crew.told)
    assert len(record.trials) == PLANNED + 9
    assert {t.state for t in record.trials} <= {"complete", "infeasible"}
    assert max(Counter(t.plan.hash for t in record.trials).values()) == 1
    assert [t.number for t in record.trials] == list(range(PLANNED + 9))
    for trial in record.complete:
        assert trial.selection.plan_hash == trial.plan.hash
    heard = [number for name, number in witness.events if name == "s"]
    assert sorted(heard) == list(range(PLANNED + 9))


def test_a_search_is_finished_while_the_last_jobs_are_still_out(tmp_path):
    evaluator = FakeEvaluator()

    class Slow:
        def drive(self, search):
            jobs = [search.ask() for _ in range(3)]
            assert search.finished
            assert search.ask() is None
            search.tell(driver.Outcome(jobs[1].number, error="lost"))
            assert not search.finished  # a failed trial is not counted
            jobs[1] = search.ask()
            for job in jobs:
                search.tell(evaluator.run(job))
            assert search.finished

    record = run_in(tmp_path / "s", evaluator, 3, Slow())
    assert [t.state for t in record.trials] == ["complete", "failed", "complete", "complete"]


def test_a_search_ends_when_there_is_nothing_left_to_try(tmp_path):
    few = Menu(tuple(LayerMenu(layer.spec, layer.options[-2:]) for layer in MENU.layers))
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, 200, menu=few, ratio=2.0)
    assert len(record.trials) < 60
    proposed = {t.plan.hash for t in record.trials if t.phase != "hand-written"}
    assert 1 < len(proposed) <= 2 ** len(SPECS)


def test_nothing_left_is_no_end_while_jobs_are_out(tmp_path):
    """What runs may become a plan to start from."""
    few = Menu(tuple(LayerMenu(layer.spec, layer.options[-2:]) for layer in MENU.layers))
    evaluator = FakeEvaluator()
    search = search_in(tmp_path / "s", 200, menu=few, ratio=2.0)

    class Hoarder:
        def drive(self, search):
            out = []
            while (job := search.ask()) is not None:
                out.append(job)
            assert not search.finished
            for job in out:
                search.tell(evaluator.run(job))
            Here(evaluator.run).drive(search)
            assert search.finished

    record = search.run(Hoarder(), evaluator.report)
    assert max(Counter(t.plan.hash for t in record.trials).values()) == 1


def test_patience_ends_a_search_that_finds_nothing_better(tmp_path):
    planned = {t.plan for t in run_in(tmp_path / "p", FakeEvaluator(), PLANNED - 4).trials}
    evaluator = FakeEvaluator(bad=lambda plan: plan not in planned)
    record = run_in(tmp_path / "s", evaluator, 200, patience=3)
    searched = [t for t in record.trials if t.phase in ("knobs", "swaps")]
    assert len(searched) == 3


def raise_at(*counts: int, error: type[BaseException] = StorageError):
    def trouble(count: int, _plan: Plan) -> None:
        if count in counts:
            raise error(f"broken {count}")

    return trouble


def test_a_failing_trial_is_recorded_and_the_search_goes_on(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(raise_at(3)), 8)
    failed = [t for t in record.trials if t.state == "failed"]
    assert [t.error for t in failed] == ["broken 3"]
    assert failed[0].selection is None
    assert len(record.trials) == 9  # the failed one is not counted


def test_failures_in_a_row_stop_the_search_and_say_why(tmp_path):
    with pytest.raises(AutocompressError, match=r"5 trials in a row failed.*broken 7"):
        run_in(tmp_path / "s", FakeEvaluator(raise_at(*range(3, 99))), 20)
    record = read_study("s", tmp_path)
    assert len(record.complete) == 2
    assert sum(t.state == "failed" for t in record.trials) == driver.MOST_FAILURES


def test_failures_that_are_not_in_a_row_do_not_stop_it(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(raise_at(*range(1, 99, 2))), 12)
    assert sum(t.state == "failed" for t in record.trials) > driver.MOST_FAILURES
    assert sum(t.state != "failed" for t in record.trials) == 12


@pytest.mark.parametrize("number", [1, 4, 18])
def test_after_an_interruption_a_resumed_search_repeats_nothing_and_loses_nothing(tmp_path, number):
    whole = run_in(tmp_path / "whole", FakeEvaluator(), PLANNED)
    trouble = raise_at(number, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "cut", FakeEvaluator(trouble), PLANNED)
    cut = read_study("cut", tmp_path)
    assert len(cut.complete) == number - 1
    assert [t.error for t in cut.trials if t.state == "failed"] == ["interrupted"]

    evaluator = FakeEvaluator()
    resumed = run_in(tmp_path / "cut", evaluator, PLANNED)
    assert values_of(resumed)[: len(cut.trials)] == values_of(cut)
    assert not {t.plan for t in cut.complete} & set(evaluator.selected)
    done = [(t.label, t.plan) for t in resumed.trials if t.state != "failed"]
    planned = [(t.label, t.plan) for t in whole.trials if t.phase in PHASES_BEFORE]
    assert len(done) == PLANNED
    assert [each for each in done if each in planned] == planned


def test_an_interrupt_marks_all_running_trials(tmp_path):
    evaluator = FakeEvaluator(raise_at(3, error=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "s", evaluator, 20, Crew(evaluator, 3))
    cut = read_study("s", tmp_path)
    assert len(cut.complete) == 2
    interrupted = [t for t in cut.trials if t.state == "failed"]
    assert [t.error for t in interrupted] == ["interrupted"] * 3
    record = run_in(tmp_path / "s", FakeEvaluator(), 20)
    assert {t.plan for t in interrupted} <= {t.plan for t in record.complete}


def test_a_finished_search_that_is_run_again_measures_nothing(tmp_path):
    first = run_in(tmp_path / "s", FakeEvaluator(), 12)
    evaluator, witness = FakeEvaluator(), Witness()
    again = run_in(tmp_path / "s", evaluator, 12, observers=(witness,))
    assert again == first
    assert (evaluator.jobs, evaluator.reported) == ([], [])
    assert witness.events == [("started", 12), ("finished", 12)]


def test_more_trials_are_added_to_a_finished_search(tmp_path):
    first = run_in(tmp_path / "s", FakeEvaluator(), 5)
    evaluator = FakeEvaluator()
    more = run_in(tmp_path / "s", evaluator, 9)
    assert values_of(more)[:5] == values_of(first)
    assert len(more.trials) == 9
    assert not set(evaluator.selected) & {t.plan for t in first.complete}


def test_a_trial_that_a_killed_run_left_running_is_failed_and_proposed_again(tmp_path, on_disk):
    run_in(tmp_path / "s", FakeEvaluator(), 3)
    study = load_optuna_study("s", f"sqlite:///{tmp_path}/s/study.db")
    left = study.ask()  # as kill -9 leaves it, before it had a plan
    left.set_user_attr(OWNER, {"host": socket.gethostname(), "pid": 2**31 - 1, "started": 0.0})
    record = run_in(tmp_path / "s", FakeEvaluator(), 6)
    assert left.number == 3
    assert len(record.trials) == 6
    assert {t.state for t in record.trials} <= {"complete", "infeasible"}
    assert 3 not in {t.number for t in record.trials}  # there is nothing to show of it
    stored = load_optuna_study("s", f"sqlite:///{tmp_path}/s/study.db").get_trials()
    assert stored[3].state.name == "FAIL"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_trials(tmp_path, sampler):
    runs = [
        run_in(tmp_path / name, FakeEvaluator(), PLANNED + 5, sampler=sampler, seed=seed)
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
    record = run_in(tmp_path / "s", evaluator, 100, deadline=35.0)
    assert len(evaluator.selected) == 4  # the fourth starts at 30 s
    assert all(t.report for t in finalists(record))  # what was found is still measured


def test_time_that_is_up_before_the_first_trial_says_how_to_go_on(tmp_path):
    with pytest.raises(AutocompressError) as caught:
        run_in(tmp_path / "s", FakeEvaluator(), 5, deadline=0.0)
    message = str(caught.value)
    assert "before the first trial" in message
    assert "--time" in message
    assert "--resume s" in message
    assert len(run_in(tmp_path / "s", FakeEvaluator(), 5).trials) == 5
    run_in(tmp_path / "s", FakeEvaluator(), 9, deadline=0.0)  # there is something to show by now


def test_observers_hear_of_every_trial_in_order(tmp_path):
    witness = Witness()
    run_in(Path(tmp_path) / "s", FakeEvaluator(), 4, observers=(witness,))
    assert witness.events == [("started", 0), *(("s", n) for n in range(4)), ("finished", 4)]
