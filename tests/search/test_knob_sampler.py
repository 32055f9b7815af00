from __future__ import annotations

from itertools import islice

import optuna
import pytest

from autocompress.search.knob_sampler import SAMPLERS, KnobSampler, ask_with
from autocompress.search.knobs import Knobs
from tests.search.knob_studies import PRICE, RANGES, new_study


def next_of(sampler: KnobSampler) -> Knobs:
    return next(sampler.proposals())


def play(
    study: optuna.Study, name: str, trials: int, seed: int = 0, *, priced: bool = False
) -> list[Knobs]:
    """Propose and tell: the perplexity, which samplers learn from, prefers a large exponent."""
    sampler = KnobSampler(name, seed, limit_ms=2.0 if priced else None)
    proposed = []
    for _ in range(trials):
        knobs = next_of(sampler)
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
    drawn = list(islice(KnobSampler(name, 0).proposals(), 6))
    assert len(set(drawn)) == 6


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
    for _ in range(40):
        knobs = next_of(sampler)
        trial = ask_with(study, knobs)
        frozen = study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        sampler.learn(frozen, [10 - knobs.exponent, 100.0, 1.0])
    drawn = list(islice(sampler.proposals(), 12))
    low, high = RANGES["exponent"]
    assert sum(knobs.exponent for knobs in drawn) / 12 > low + 0.65 * (high - low)


def test_trials_without_knobs_do_not_disturb_the_sampler():
    study = new_study()
    sampler, undisturbed = KnobSampler("tpe", 0), KnobSampler("tpe", 0)
    trial = ask_with(study, None)
    assert trial.params == {}
    sampler.learn(study.tell(trial, [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0])
    assert next_of(sampler) == next_of(undisturbed)
