from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from autocompress.driver import driver
from autocompress.evaluation.stages import stages_of
from autocompress.judging.front import finalists
from autocompress.studies.study_store import load_optuna_study, read_study
from tests.driver.fake_search import (
    PLANNED,
    WINDOWS,
    Crew,
    FakeEvaluator,
    Witness,
    run_in,
)

pytestmark = pytest.mark.usefixtures("_storages_in_memory")


def test_finalists_and_nothing_else_are_measured_on_the_report_text(tmp_path):
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED)
    wanted = {trial.plan.hash for trial in finalists(record)}
    assert {plan.hash for plan in evaluator.reported} == wanted
    assert len(evaluator.reported) == len(wanted)
    reported = [t for t in record.complete if t.report is not None]
    assert {t.plan.hash for t in reported} == wanted
    assert all(t.report.text == "report" and t.report.plan_hash == t.plan.hash for t in reported)


def test_jobs_have_stages_and_rivals_that_take_no_more_bytes(tmp_path):
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, PLANNED + 5, windows=WINDOWS)
    by_number = {trial.number: trial for trial in record.trials}
    assert any(job.rivals for job in evaluator.jobs)
    assert evaluator.jobs[0].rivals == ()
    for job in evaluator.jobs:
        assert job.stages == stages_of(WINDOWS)
        trial = by_number[job.number]
        baselines = trial.phase == "baseline"
        allowed = {
            t.selection.windows.divergence
            for t in record.complete
            if t.number < job.number
            and t.bytes <= trial.bytes
            and (t.phase == "baseline") == baselines
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
        assert len(trial.partial.windows.divergence) == stages_of(WINDOWS)[0]
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
        idle = False

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


def test_observers_hear_of_every_trial_in_order(tmp_path):
    witness = Witness()
    run_in(Path(tmp_path) / "s", FakeEvaluator(), 4, observers=(witness,))
    assert witness.events == [("started", 0), *(("s", n) for n in range(4)), ("finished", 4)]
