"""A search for the smallest plan that keeps a quality, on measurements that are a formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.judging.front import gain_over_baseline
from autocompress.judging.picking import best_or_none, nearest_to_the_limits, pick
from autocompress.studies.study import BASELINE
from tests.driver.fake_search import DENSE_BYTES, WINDOWS, FakeEvaluator, increase_of, run_in

LIMIT = 0.13  # by the formula a plan of a 7.5th of the bytes
SMALLEST = DENSE_BYTES / (1 + 50 * LIMIT)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_in(
        tmp_path_factory.mktemp("run") / "kept", FakeEvaluator(), 30, ratio=None, quality=LIMIT
    )


def test_the_smallest_that_keeps_the_quality_is_the_best_and_is_confirmed(found):
    best = pick(found)
    assert best.report is not None
    assert SMALLEST <= best.bytes <= 1.06 * SMALLEST
    assert all(verdict.met for verdict in targets(found, best))
    baselines = [t.bytes for t in found.complete if t.baselines and increase_of(t.plan) <= LIMIT]
    assert best.bytes < min(baselines)
    gain = gain_over_baseline(found)
    assert gain.baseline.bytes == min(baselines)


def targets(study, trial):
    from autocompress.judging.against_dense import targets_of

    return targets_of(study, trial)


def test_trials_are_near_the_limit(found):
    searched = [t for t in found.complete if t.phase in ("knobs", "swaps")]
    near = [t for t in searched if 0.8 * SMALLEST <= t.bytes <= 1.15 * SMALLEST]
    assert len(near) >= 0.7 * len(searched) > 3


def test_a_plan_is_given_up_only_beside_a_smaller_one_that_keeps_the_quality(tmp_path):
    evaluator = FakeEvaluator()
    study = run_in(tmp_path / "staged", evaluator, 24, ratio=None, quality=LIMIT, windows=WINDOWS)
    best = pick(study)
    for trial in study.trials:
        if trial.state == "stopped":
            assert trial.bytes >= best.bytes
    ours = [job for job in evaluator.jobs if job.plan not in baselines(study)]
    smaller = [job for job in ours if increase_of(job.plan) > LIMIT]
    assert smaller
    assert not any(job.rivals for job in smaller)  # none that keeps it is as small


def baselines(study):
    return [trial.plan for trial in study.trials if trial.phase == BASELINE]


def test_a_plan_that_misses_on_the_report_text_gives_way_to_the_next(tmp_path):
    class Stricter(FakeEvaluator):
        def report(self, trial):
            seen = super().report(trial)
            return replace(seen, loss=seen.loss + 0.01)

    study = run_in(tmp_path / "strict", Stricter(), 30, ratio=None, quality=LIMIT)
    best = pick(study)
    assert increase_of(best.plan) <= LIMIT - 0.0099
    smaller = [t for t in study.complete if t.bytes < best.bytes and increase_of(t.plan) <= LIMIT]
    assert smaller
    assert all(trial.report is not None for trial in smaller)


def test_a_quality_that_the_budget_rules_out_has_a_nearest(tmp_path):
    study = run_in(tmp_path / "both", FakeEvaluator(), 24, ratio=8.0, quality=0.01)
    assert best_or_none(study) is None
    near = nearest_to_the_limits(study)
    excess = max(verdict.excess for verdict in targets(study, near))
    assert excess <= max(verdict.excess for verdict in targets(study, study.complete[0]))
