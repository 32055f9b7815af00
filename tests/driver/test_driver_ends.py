from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from autocompress.calibration.menu import LayerMenu, Menu
from autocompress.driver import driver
from autocompress.driver.engines.here import Here
from autocompress.errors import AutocompressError
from autocompress.judging.front import best_and_rival, finalists
from autocompress.methods.plan import Plan
from autocompress.studies.study_store import read_study
from tests.driver.fake_search import (
    MENU,
    PLANNED,
    SPECS,
    FakeEvaluator,
    raise_at,
    run_in,
    run_whole,
    search_in,
)

pytestmark = pytest.mark.usefixtures("_storages_in_memory")


def test_a_search_ends_when_there_is_nothing_left_to_try(tmp_path):
    few = Menu(tuple(LayerMenu(layer.spec, layer.options[-2:]) for layer in MENU.layers))
    evaluator = FakeEvaluator()
    record = run_in(tmp_path / "s", evaluator, 200, menu=few, ratio=2.0)
    assert len(record.trials) < 60
    proposed = {t.plan.hash for t in record.trials if t.phase != "baseline"}
    assert 1 < len(proposed) <= 2 ** len(SPECS)


def test_nothing_left_is_no_end_while_jobs_are_out(tmp_path):
    """What runs may become a plan to start from."""
    few = Menu(tuple(LayerMenu(layer.spec, layer.options[-2:]) for layer in MENU.layers))
    evaluator = FakeEvaluator()
    search = search_in(tmp_path / "s", 200, menu=few, ratio=2.0)

    class Hoarder:
        idle = False

        def drive(self, search):
            out = []
            while (job := search.ask()) is not None:
                out.append(job)
            assert not search.finished
            for job in out:
                search.tell(evaluator.run(job))
            Here(evaluator.run).drive(search)
            assert search.finished

    record = run_whole(search, evaluator, Hoarder())
    assert max(Counter(t.plan.hash for t in record.trials).values()) == 1


def test_patience_ends_a_search_that_finds_nothing_better(tmp_path):
    planned = {t.plan for t in run_in(tmp_path / "p", FakeEvaluator(), PLANNED - 4).trials}
    evaluator = FakeEvaluator(bad=lambda plan: plan not in planned)
    record = run_in(tmp_path / "s", evaluator, 200, patience=3)
    searched = [t for t in record.trials if t.phase in ("knobs", "swaps")]
    assert len(searched) == 3


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


def test_no_trial_starts_after_the_time_is_up(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])

    def trouble(_count: int, _plan: Plan) -> None:
        now[0] += 10.0

    evaluator = FakeEvaluator(trouble)
    record = run_in(tmp_path / "s", evaluator, 100, deadline=35.0)
    assert len(evaluator.selected) == 4  # the fourth starts at 30 s
    reported = [t for t in record.trials if t.report]  # what matters most is still measured
    assert reported == [t for t in best_and_rival(record) if t.report]
    assert len(reported) < len(finalists(record))
    more = run_in(tmp_path / "s", FakeEvaluator(), 4)
    assert all(t.report for t in finalists(more))


def test_trials_leave_time_for_the_finalists_and_what_follows(tmp_path, monkeypatch):
    """Each trial takes ten seconds, a finalist three, and what follows twenty."""
    now = [0.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])

    def trouble(_count: int, _plan: Plan) -> None:
        now[0] += 10.0

    class Timed(FakeEvaluator):
        def run(self, job):
            return replace(super().run(job), seconds=10.0)

        def report(self, trial):
            now[0] += 3.0
            return super().report(trial)

    record = run_in(
        tmp_path / "s",
        Timed(trouble),
        100,
        deadline=120.0,
        report_seconds=3.0,
        finish_seconds=20.0,
    )
    assert all(t.report for t in finalists(record))
    assert 80.0 <= now[0] <= 100.0  # the rest is for what follows
    assert len(record.complete) >= 5


def test_time_that_is_up_before_the_first_trial_says_how_to_go_on(tmp_path):
    with pytest.raises(AutocompressError) as caught:
        run_in(tmp_path / "s", FakeEvaluator(), 5, deadline=0.0)
    message = str(caught.value)
    assert "before the first trial" in message
    assert "--time" in message
    assert "--resume s" in message
    assert len(run_in(tmp_path / "s", FakeEvaluator(), 5).trials) == 5
    run_in(tmp_path / "s", FakeEvaluator(), 9, deadline=0.0)  # there is something to show by now
