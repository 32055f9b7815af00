from __future__ import annotations

import optuna
import pytest

from autocompress.driver.proposing.knob_sampler import KnobSampler, ask_with
from autocompress.driver.proposing.knobs import Knobs
from autocompress.requests.verbs import SAMPLERS
from tests.driver.knob_studies import PRICE, RANGES, new_study

HISTORY = 12  # trials that a sampler is told of: a generation of nsga2, and more


@pytest.fixture(autouse=True)
def _quick_gp(monkeypatch):
    """Let the Gaussian process look at few candidates: else a proposal takes it seconds."""

    class Quick(optuna.samplers.GPSampler):
        def __init__(self, **options):
            super().__init__(**options)
            self._n_preliminary_samples, self._n_local_search, self._n_qmc_samples_ehvi = 64, 2, 16

    monkeypatch.setattr(optuna.samplers, "GPSampler", Quick)


def next_of(sampler: KnobSampler, before: int = 0) -> Knobs:
    return next(sampler.proposals(before, 1))


def drawn(sampler: KnobSampler, count: int) -> list[Knobs]:
    return list(sampler.proposals(1000, count))


def play(
    study: optuna.Study, name: str, trials: int, seed: int = 0, *, priced: bool = False
) -> list[Knobs]:
    """Propose and tell: the perplexity, which samplers learn from, prefers a large exponent."""
    sampler = KnobSampler(name, seed, limit_ms=2.0 if priced else None)
    proposed = []
    for before in range(trials):
        knobs = next_of(sampler, before)
        trial = ask_with(study, knobs, priced=priced)
        values = [10 - knobs.exponent, 100.0, 1.0]
        sampler.learn(study.tell(trial, values), values)
        proposed.append(knobs)
    return proposed


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("priced", [False, True])
def test_every_sampler_proposes_within_the_ranges_and_the_study_records_it(name, priced):
    study, ranges = new_study(), RANGES | (PRICE if priced else {})
    proposed = play(study, name, 8, priced=priced)
    for knobs, trial in zip(proposed, study.get_trials(), strict=True):
        assert Knobs(**trial.params) == knobs
        assert trial.params.keys() == ranges.keys()
        for key, (low, high) in ranges.items():
            assert low <= getattr(knobs, key) <= high
    assert len(set(proposed)) == len(proposed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_does_not(name):
    first, again, other = (play(new_study(), name, 7, seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_from_one_state_of_knowledge_differ(name):
    """A plan that is known already is drawn again."""
    assert len(set(drawn(KnobSampler(name, 0), 6))) == 6


@pytest.mark.parametrize(("name", "trials"), [("auto", 40), ("gp", 16), ("nsga2", 120)])
def test_samplers_learn_from_finished_trials(name, trials):
    """Large exponents won; a sampler that learns nothing goes on about the middle."""
    learned = play(new_study(), name, trials)[-12:]
    blind = play(new_study(), "random", 40)[-12:]
    mean = [sum(knobs.exponent for knobs in some) / len(some) for some in (learned, blind)]
    low, high = RANGES["exponent"]
    assert mean[0] > low + 0.65 * (high - low) > mean[1]


def test_it_learns_from_trials_that_were_stopped():
    """The stored trial is pruned and has no values: those it is given count."""
    study, sampler = new_study(), KnobSampler("auto", 0)
    for before in range(40):
        knobs = next_of(sampler, before)
        trial = ask_with(study, knobs)
        frozen = study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        sampler.learn(frozen, [10 - knobs.exponent, 100.0, 1.0])
    low, high = RANGES["exponent"]
    assert sum(knobs.exponent for knobs in drawn(sampler, 12)) / 12 > low + 0.65 * (high - low)


def test_trials_without_knobs_do_not_disturb_the_sampler():
    study = new_study()
    sampler, undisturbed = KnobSampler("tpe", 0), KnobSampler("tpe", 0)
    trial = ask_with(study, None)
    assert trial.params == {}
    sampler.learn(study.tell(trial, [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0])
    assert next_of(sampler) == next_of(undisturbed)


def warmed(name: str, sign: float, *, priced: bool = False) -> KnobSampler:
    """A new sampler that is told of trials that another made: those of a study that is resumed."""
    sampler = KnobSampler(name, 0, limit_ms=2.0 if priced else None)
    study, random = new_study(), KnobSampler("random", 7)
    for before in range(HISTORY):
        trial = ask_with(study, next_of(random, before), priced=False)
        values = [10 - sign * trial.params["exponent"], 100.0, 1.0]
        sampler.learn(study.tell(trial, values), values)
    return sampler


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_history_changes_what_is_proposed_save_at_random(name):
    """A sampler learns from trials that it did not propose itself."""
    count = 1 if name == "gp" else 12
    large, small = (drawn(warmed(name, sign), count) for sign in (1, -1))
    if name == "random":
        assert large == small
        return
    assert not set(large) & set(small)
    mean = [sum(knobs.exponent for knobs in some) / count for some in (large, small)]
    assert mean[0] > mean[1] + 0.1


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_is_told_of_earlier_trials_goes_on_as_the_one_that_made_them(name, priced):
    study, last = new_study(), 7 if name == "gp" else 25  # of nsga2 in its third generation
    whole = play(study, name, last + 1, priced=priced)
    sampler = KnobSampler(name, 0, limit_ms=2.0 if priced else None)
    for trial in study.get_trials()[:last]:
        sampler.learn(trial, trial.values)
    assert next_of(sampler, last) == whole[last]


@pytest.mark.parametrize("name", ["gp", "nsga2"])
def test_proposals_that_came_to_nothing_leave_no_trace(name):
    study, sampler = new_study(), KnobSampler(name, 0)
    for before in range(9):
        knobs = next_of(sampler, before)
        trial = ask_with(study, knobs)
        if before % 3 == 2:
            sampler.learn(study.tell(trial, state=optuna.trial.TrialState.FAIL), None)
        else:
            values = [10 - knobs.exponent, 100.0, 1.0]
            sampler.learn(study.tell(trial, values), values)
    assert len(list(sampler.proposals(9, 2))) == 2
    told = KnobSampler(name, 0)
    for trial in study.get_trials():
        told.learn(trial, trial.values)
    assert next_of(sampler, 20) == next_of(told, 20)
