"""At its end a search fits the best plan anew, and the hand-written one to compare it with."""

from __future__ import annotations

import time

import pytest

import autocompress
from autocompress.driver.finish import REFIT_BEST, Finish
from autocompress.errors import AutocompressError, ConfigurationError, ModelError
from autocompress.judging.front import front_of, gain_over_hand_written, pick
from autocompress.session.session import TextSettings
from autocompress.studies.healed_trials import picture_of
from autocompress.studies.study import HEALED
from autocompress.studies.study_store import read_study

TEXTS = TextSettings(
    "bundled",
    calibration_tokens=512,
    selection_tokens=1024,
    report_tokens=1024,
    pricing_tokens=0,
    refit_tokens=8192,
)


@pytest.fixture(scope="module")
def searched(search):
    """A search of the bundled texts; arguments replace its settings."""
    return lambda **arguments: search(
        **{"study": "to-finish", "data": None, "texts": TEXTS, "budget": "7x", "trials": 8}
        | arguments
    )


@pytest.fixture(scope="module")
def finished(searched):
    return searched()


@pytest.fixture(scope="module")
def plain(searched):
    """A search of which nothing was fitted anew."""
    return searched(study="plain", refit=False)


def refitted(study):
    return [trial for trial in study.complete if trial.phase == HEALED]


def test_the_best_is_fitted_anew_and_loses_less(finished):
    best = pick(finished, "best")
    assert best.label.endswith(", refitted")
    assert best in front_of(finished)
    source = pick(finished, str(best.healing.of))
    assert (best.plan, best.bytes) == (source.plan, source.bytes)
    assert best.selection.kl < source.selection.kl
    assert best.report.kl < source.report.kl
    assert not best.healing.trained
    assert best.healing.tokens == 0
    assert not picture_of(finished.folder, best.number).exists()  # there is no curve


def test_it_is_compared_with_a_plan_that_was_fitted_anew(finished):
    gain = gain_over_hand_written(finished)
    assert gain.hand_written.healing is not None
    assert {trial.number for trial in refitted(finished)} == {
        gain.best.number,
        gain.hand_written.number,
    }


def test_it_is_exported_as_measured(finished, tmp_path):
    written = autocompress.export(finished, out=tmp_path / "model")
    assert written.verification.perplexity == pytest.approx(
        pick(finished, "best").report.perplexity, rel=1e-4
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
    nothing = None, None
    monkeypatch.setattr("autocompress.healing.heal_plan._refitted", lambda *_arguments: nothing)
    assert not refitted(searched(study=plain.name, progress=notes))
    assert any("stays as it is" in note and "no further" in note for note in notes.said)


def test_it_can_be_left_out_and_done_later(plain):
    assert not refitted(plain)
    best = pick(plain, "best")
    report = autocompress.heal(plain, steps=0, track=False)
    assert report.after.kl < report.before.kl
    after = read_study(plain.name, plain.folder.parent)
    assert pick(after, "best").healing.of == best.number
    with pytest.raises(ConfigurationError, match="cannot be fitted anew"):
        autocompress.heal(plain, steps=0, track=False)


def test_only_cutting_ranks_is_called_so_and_must_cut_some(finished):
    source = pick(finished, "best")
    assert not any(method.factorised for method in source.plan.values())
    with pytest.raises(AutocompressError, match="no rank can be cut"):
        autocompress.heal(finished, steps=0, shrink=0.01, track=False)


def test_a_folder_cannot_be_fitted_anew_and_is_not_opened_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.api.heal_function.folder_of", lambda _study: tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be fitted anew"):
        autocompress.heal(tmp_path, out=tmp_path / "out", steps=0)


def test_without_limits_there_is_no_best_to_fit_anew(searched):
    assert not refitted(searched(study="unlimited", budget=None, trials=2))


def test_a_text_that_is_too_short_is_told(search, record, notes):
    assert not refitted(search(study=record.name, progress=notes))
    assert any("not fitted anew" in note and "too short" in note for note in notes.said)


def test_what_the_options_ask_for():
    assert Finish.of() == REFIT_BEST
    assert not REFIT_BEST.whole_front
    assert Finish.of(refit=False) is None
    assert Finish.of(200, "text", seed=3).settings.steps == 200
    assert Finish.of(0).whole_front
    with pytest.raises(ConfigurationError, match="steps: got 0, wanted at least 1"):
        Finish.of(0, refit=False)
    assert Finish.of(0, seed=3) == Finish.of(0)
    with pytest.raises(ConfigurationError, match="--heal 200"):
        Finish.of(data="text")
