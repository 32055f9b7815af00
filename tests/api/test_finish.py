"""At its end a search refits the best plan, and the baseline one to compare it with."""

from __future__ import annotations

import time

import pytest

import autocompress
from autocompress.driver.finish import Finish
from autocompress.errors import AutocompressError, ConfigurationError, ModelError
from autocompress.judging.front import front_of, gain_over_baseline, pick
from autocompress.requests.verbs import SearchRequest
from autocompress.studies.healed_trials import picture_of
from autocompress.studies.study import HEALED
from autocompress.studies.study_store import read_study
from autocompress.surgery.compressed import Compressed

TEXTS = {
    "data": "bundled",
    "calibration_tokens": 512,
    "selection_tokens": 1024,
    "report_tokens": 1024,
    "pricing_tokens": 0,
    "refit_tokens": 8192,
}


@pytest.fixture(scope="module")
def searched(search):
    """A search of the bundled texts; arguments replace its settings."""
    return lambda **arguments: search(
        **{"study": "to-finish", "budget": "7x", "trials": 8} | TEXTS | arguments
    )


@pytest.fixture(scope="module")
def finished(searched):
    return searched()


@pytest.fixture(scope="module")
def plain(searched):
    """A search of which nothing was refitted."""
    return searched(study="plain", refit=False)


def refitted(study):
    return [trial for trial in study.complete if trial.phase == HEALED]


def test_the_best_is_fitted_anew_and_loses_less(finished):
    best = pick(finished, "best")
    assert best.label.endswith(", refitted")
    assert best in front_of(finished)
    source = pick(finished, str(best.healing.of))
    assert (best.plan, best.bytes) == (source.plan, source.bytes)
    assert best.selection.divergence < source.selection.divergence
    assert best.report.divergence < source.report.divergence
    assert not best.healing.trained
    assert best.healing.tokens == 0
    assert not picture_of(finished.folder, best.number).exists()  # there is no curve


def test_it_is_compared_with_a_plan_that_was_fitted_anew(finished):
    gain = gain_over_baseline(finished)
    assert gain.baseline.healing is not None
    assert {trial.number for trial in refitted(finished)} == {
        gain.best.number,
        gain.baseline.number,
    }


def test_it_is_exported_as_measured(finished, tmp_path):
    written = autocompress.export(finished, out=tmp_path / "model")
    assert written.verification.figure == pytest.approx(
        pick(finished, "best").report.figure, rel=1e-4
    )


def test_the_same_search_again_does_it_once(finished, searched):
    again = searched()
    assert [trial.number for trial in again.trials] == [trial.number for trial in finished.trials]


def test_no_time_is_told(plain, searched, notes, monkeypatch):
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 1e6 * bool(notes.said))
    assert not refitted(searched(study=plain.name, time="1h", progress=notes))
    assert any("No time is left" in note for note in notes.said)


def test_a_failure_to_fit_anew_does_not_cost_the_search(plain, searched, notes, monkeypatch):
    def fail(*_arguments, **_options):
        raise ModelError("layer q_proj is given NaN or infinity on the healing text")

    monkeypatch.setattr("autocompress.healing.heal_plan._refitted", fail)
    assert not refitted(searched(study=plain.name, progress=notes))
    assert any("stays as it is" in note and "q_proj" in note for note in notes.said)


def test_what_gains_nothing_makes_no_trial(plain, searched, notes, monkeypatch):
    monkeypatch.setattr(
        "autocompress.healing.heal_plan._refitted",
        lambda _session, plan, *_: (Compressed(plan), None),
    )
    assert not refitted(searched(study=plain.name, progress=notes))
    assert any("stays as it is" in note and "no further" in note for note in notes.said)


def test_it_can_be_left_out_and_done_later(plain):
    assert not refitted(plain)
    best = pick(plain, "best")
    report = autocompress.heal(plain, steps=0, track=False)
    assert report.after.divergence < report.before.divergence
    after = read_study(plain.name, plain.folder.parent)
    assert pick(after, "best").healing.of == best.number
    with pytest.raises(ConfigurationError, match="cannot be refitted"):
        autocompress.heal(plain, steps=0, track=False)


def test_only_cutting_ranks_is_called_so_and_must_cut_some(finished):
    source = pick(finished, "best")
    assert not any(method.factorised for method in source.plan.values())
    with pytest.raises(AutocompressError, match="no rank can be cut"):
        autocompress.heal(finished, steps=0, shrink=0.01, track=False)


def test_a_folder_cannot_be_fitted_anew_and_is_not_opened_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.api.heal_function.folder_of", lambda _study: tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be refitted"):
        autocompress.heal(tmp_path, out=tmp_path / "out", steps=0)


def test_without_limits_there_is_no_best_to_fit_anew(searched):
    assert not refitted(searched(study="unlimited", budget=None, trials=2))


def test_a_text_that_is_too_short_is_told(search, record, notes):
    assert not refitted(search(study=record.name, progress=notes))
    assert any("not refitted" in note and "too short" in note for note in notes.said)


def test_what_the_options_ask_for():
    assert not asked().whole_front
    assert asked(refit=False) is None
    assert asked(effort="quick") is None  # which has no tokens for it
    assert asked(heal=200, heal_data="text", seed=3).settings.steps == 200
    assert asked(heal=0).whole_front
    with pytest.raises(ConfigurationError, match="--steps is of no use: got 0, wanted at least 1"):
        asked(heal=0, refit=False)
    assert asked(heal=0, seed=3) == asked(heal=0)
    with pytest.raises(ConfigurationError, match="--heal 200"):
        asked(heal_data="text")


def asked(**settings):
    return Finish.of(SearchRequest(**settings))
