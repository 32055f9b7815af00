from __future__ import annotations

import socket

import pytest

from autocompress.driver.proposing.proposer import Proposer
from autocompress.studies.study_store import load_optuna_study, read_study
from autocompress.studies.trial_owner import OWNER
from tests.driver.fake_search import (
    PLANNED,
    Crew,
    FakeEvaluator,
    Witness,
    raise_at,
    run_in,
    values_of,
)

PHASES_BEFORE = ("allocation", "baseline")

pytestmark = pytest.mark.usefixtures("_storages_in_memory")


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


def test_a_resumed_search_goes_on_as_if_it_had_not_been_cut_off(tmp_path, monkeypatch):
    """All but the first allocations are searched here; see also the tests of ``KnobSampler``."""
    planned = Proposer.planned
    monkeypatch.setattr(Proposer, "planned", lambda *arguments: planned(*arguments)[:2])
    whole = run_in(tmp_path / "whole", FakeEvaluator(), 10)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "cut", FakeEvaluator(raise_at(7, error=KeyboardInterrupt)), 10)
    resumed = run_in(tmp_path / "cut", FakeEvaluator(), 10)
    kept = [(t.phase, t.plan, t.params) for t in resumed.trials if t.state != "failed"]
    assert kept == [(t.phase, t.plan, t.params) for t in whole.trials]
    assert {phase for phase, _, _ in kept[6:]} == {"knobs", "swaps"}


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
