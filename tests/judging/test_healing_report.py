from __future__ import annotations

import pytest

from autocompress.judging.front import baseline_rival, finalists
from autocompress.judging.healing_report import healed_pairs, healing_notes, order_changes
from autocompress.studies.study import BASELINE, HEALED, Healing
from tests.studies.study_fixtures import study_of, trial


def healed(number, source, increase, *, steps=100, **fields):
    """What healing made of a trial."""
    way = Healing(
        steps, 1000, "text", {"steps": steps}, (), of=source.number, phase=source.phase,
        weights=f"n{number}",
    )  # fmt: skip
    return trial(
        number,
        increase,
        source.bytes,
        plan=source.plan,
        phase=HEALED,
        label=f"{source.label}, healed",
        report=True,
        healing=way,
        **fields,
    )


SMALL, LARGE = trial(0, 0.3, 1_000_000, report=True), trial(1, 0.2, 1_500_000, report=True)


def test_pairs_hold_what_is_left_of_each_increase():
    study = study_of(SMALL, LARGE, healed(2, SMALL, 0.15), healed(3, LARGE, 0.05))
    pairs = healed_pairs(study)
    assert [(pair.before.number, pair.after.number) for pair in pairs] == [(0, 2), (1, 3)]
    assert [pair.share for pair in pairs] == [pytest.approx(0.5), pytest.approx(0.25)]
    assert not order_changes(pairs)
    notes = healing_notes(study)
    assert notes[0] == "2 plans were healed: 0.25 to 0.50 of the divergence is left."
    assert notes[1] == "Healing changes no order among them."


def test_plans_that_were_only_fitted_anew_are_told_so():
    study = study_of(SMALL, LARGE, healed(2, SMALL, 0.24, steps=0))
    assert healing_notes(study) == [
        "1 plan was refitted: 0.80 of the divergence is left. "
        "The others are as fitted first; --heal 0 refits the whole front."
    ]
    both = study_of(SMALL, LARGE, healed(2, SMALL, 0.24, steps=0), healed(3, LARGE, 0.1))
    assert healing_notes(both)[:2] == [
        "1 plan was refitted: 0.80 of the divergence is left. "
        "The others are as fitted first; --heal 0 refits the whole front.",
        "1 plan was healed: 0.50 of the divergence is left.",
    ]


def test_the_best_of_several_healed_ones_counts():
    study = study_of(SMALL, healed(2, SMALL, 0.2), healed(3, SMALL, 0.1, steps=200))
    (pair,) = healed_pairs(study)
    assert pair.after.number == 3


def test_what_was_healed_further_is_one_plan():
    once = healed(2, SMALL, 0.2)
    further = healed(3, once, 0.1)
    (pair,) = healed_pairs(study_of(SMALL, once, further))
    assert (pair.before.number, pair.after.number) == (0, 3)


def test_only_what_was_healed_alike_is_compared():
    study = study_of(SMALL, LARGE, healed(2, SMALL, 0.05, steps=500), healed(3, LARGE, 0.1))
    assert not order_changes(healed_pairs(study))


def test_a_change_of_order_is_told_with_both_sides():
    study = study_of(SMALL, LARGE, healed(2, SMALL, 0.05), healed(3, LARGE, 0.1))
    ((winner, loser),) = order_changes(healed_pairs(study))
    assert (winner.after.number, loser.after.number) == (2, 3)
    assert any("trial 2 (before: 0" in note and "trial 3" in note for note in healing_notes(study))


def test_a_trial_that_healing_harmed_is_named():
    notes = healing_notes(study_of(SMALL, healed(2, SMALL, 0.4)))
    assert notes[-1].startswith("Trial 2 is worse than trial 0")


def test_a_study_without_healing_says_nothing_of_it():
    assert healing_notes(study_of(SMALL, LARGE)) == []


def test_a_healed_plan_is_compared_with_a_healed_one_baselines():
    baselines = trial(4, 0.35, 1_000_000, phase=BASELINE, label="uniform", report=True)
    best = healed(2, SMALL, 0.1)
    unhealed_rival = study_of(SMALL, baselines, best)
    assert baseline_rival(unhealed_rival, best) == baselines
    theirs = healed(5, baselines, 0.12)
    study = study_of(SMALL, baselines, best, theirs)
    assert baseline_rival(study, best) == theirs
    assert baseline_rival(study, SMALL) == baselines
    anew = healed(6, baselines, 0.3, steps=0)
    only_fitted = study_of(SMALL, baselines, best, anew)
    assert baseline_rival(only_fitted, best) == anew
    assert baseline_rival(study_of(SMALL, baselines, theirs, anew), anew) == anew
    assert {best, theirs} <= set(finalists(study))


def test_equal_plans_with_other_numbers_are_other_trials():
    study = study_of(SMALL, healed(2, SMALL, 0.1, steps=1))
    assert len({each.key for each in study.trials}) == 2
    assert [each.number for each in finalists(study)] == [2]
