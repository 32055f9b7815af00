from __future__ import annotations

from collections import Counter

import pytest

from autocompress.driver.estimate.trial_list import expected_trials
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.proposer import sweep
from autocompress.driver.proposing.shares import LEAST_TRIALS, Planned, share_out
from autocompress.space.space_file import load_space
from autocompress.studies.study import PLANNED
from autocompress.surgery.inventory import Inventory
from autocompress.units import Limits
from tests.driver.fake_search import FakeEvaluator, run_in
from tests.studies.study_fixtures import DENSE_BYTES, SPECS

INVENTORY = Inventory(SPECS, (), 10_000, DENSE_BYTES, DENSE_BYTES // 2)
LIMITS = {"memory": Limits(DENSE_BYTES // 8, None), "none": Limits(None, None)}
LATENCY = Limits(None, 4.0)


def planned(trials: int, limits: Limits) -> tuple[list[str], list[float]]:
    limit = limits.memory_bytes
    baselines = baseline_plans(SPECS, None if limit is None else limit / DENSE_BYTES)
    sizes = sweep(limits, DENSE_BYTES, 100_000)[1:]
    plans, kept = share_out(trials, baselines, sizes, INVENTORY, limit)
    return [label for label, _ in plans], kept


@pytest.mark.parametrize("limits", [*LIMITS.values(), LATENCY])
@pytest.mark.parametrize("trials", [8, 14, 20, 32])
def test_each_phase_gets_some_trials(trials, limits):
    labels, sizes = planned(trials, limits)
    assert len(labels) >= 2
    assert len(sizes) >= 2
    assert trials - 2 - len(labels) - len(sizes) >= trials // 4


@pytest.mark.parametrize("limits", [*LIMITS.values(), LATENCY])
@pytest.mark.parametrize("trials", [32, 40, 1000])
def test_the_usual_number_of_trials_has_room_for_all_that_is_planned(trials, limits):
    assert planned(trials, limits) == planned(10_000, limits)


def test_the_plans_that_a_person_would_take_for_the_budget_are_kept():
    """At an eighth of fp32 bytes those of 4 bits and fewer are within it."""
    labels, sizes = planned(8, LIMITS["memory"])
    every = dict(baseline_plans(SPECS, 1 / 8))
    kept = [INVENTORY.plan_bytes(every[label]) for label in labels]
    codes = [plan for label, plan in every.items() if "SVD" not in label and "train" not in label]
    within = [size for size in map(INVENTORY.plan_bytes, codes) if size <= DENSE_BYTES // 8]
    assert sorted(kept) == sorted(within)[-len(kept) :]
    assert sizes == [0.85 * (DENSE_BYTES // 8), 0.7 * (DENSE_BYTES // 8)]


def test_plans_that_cut_ranks_are_the_last_to_be_kept():
    """A uniform SVD in the bytes of the budget loses so much that nothing is said by beating it."""
    baselines = baseline_plans(SPECS, 1 / 8)
    sizes = sweep(LIMITS["memory"], DENSE_BYTES, 100_000)[1:]
    limit = LIMITS["memory"].memory_bytes
    few, some = (
        share_out(32, baselines, sizes, INVENTORY, limit, Planned(baselines=count, sizes=3))
        for count in (1, 20)
    )
    assert len(few[0]) == 1
    assert "SVD" not in few[0][0][0]
    assert any("SVD" in label for label, _ in some[0])
    assert len(few[1]) == len(some[1]) == 3


def test_without_a_budget_the_plans_kept_are_of_all_sizes():
    labels, _ = planned(14, LIMITS["none"])
    assert any("8 bit" in label or "4 bit" in label for label in labels)
    assert any("2 bit" in label for label in labels)


def test_plans_stay_in_their_order_and_more_trials_only_add_some():
    few, more, every = (planned(trials, LIMITS["memory"])[0] for trials in (8, 14, 1000))
    assert set(few) <= set(more) <= set(every)
    assert more == [label for label in every if label in more]


def test_a_dry_run_expects_what_is_planned():
    for trials in (14, 32):
        labels, sizes = planned(trials, LIMITS["memory"])
        phases = Counter(
            each.phase
            for each in expected_trials(INVENTORY, LIMITS["memory"], 100_000, trials, load_space())
        )
        assert phases["baseline"] == len(labels)
        assert phases["allocation"] == 2 + len(sizes)
        assert sum(phases.values()) == trials


@pytest.mark.usefixtures("_storages_in_memory")
def test_a_short_search_searches(tmp_path):
    record = run_in(tmp_path / "s", FakeEvaluator(), LEAST_TRIALS)
    phases = Counter(trial.phase for trial in record.trials)
    assert sum(phases[phase] for phase in PLANNED) < LEAST_TRIALS
    assert phases["baseline"] >= 2
    assert phases["allocation"] >= 3
    assert phases["knobs"] >= 1
