from __future__ import annotations

from dataclasses import asdict, replace

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.calibration.menu import LayerMenu, Option
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.records import Role
from autocompress.search.knob_sampler import SAMPLERS, KnobSampler, ask_with
from autocompress.search.knobs import Knobs
from tests.search.menus import layer_spec


def score(
    knobs: Knobs,
    role: Role = Role.UP,
    method: Method | None = None,
    damage: float = 0.25,
    depth: int = 0,
) -> float:
    layer = LayerMenu(replace(layer_spec(0, role), depth=depth), ())
    return knobs.scorer(5)(layer, Option(method or Quantize(4), 1, 1, damage, 1.0))


def test_without_corrections_the_score_is_the_damage():
    for role in Role:
        for method in (Quantize(2), Svd(8), Keep(), TensorTrain((2,), (8, 8), (8, 8))):
            assert score(Knobs(), role, method, depth=3) == 0.25


@pytest.mark.parametrize(
    ("knob", "roles"),
    [
        ("attention", {Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.OUTPUT}),
        ("mlp", {Role.GATE, Role.UP, Role.DOWN}),
        ("embedding", {Role.EMBEDDING, Role.HEAD}),
    ],
)
def test_each_block_has_its_own_factor(knob, roles):
    changed = {role for role in Role if score(replace(Knobs(), **{knob: 3.0}), role) == 0.75}
    assert changed == roles
    assert all(score(replace(Knobs(), **{knob: 3.0}), role) == 0.25 for role in set(Role) - roles)


def test_the_exponent_bends_damages():
    assert score(Knobs(exponent=0.5)) == 0.5
    assert score(Knobs(exponent=1.5)) == 0.125
    assert score(Knobs(exponent=1.5), damage=0.0) == 0.0


def test_forms_have_their_own_factors():
    knobs = Knobs(factorised=8.0, two_bit=2.0, distrust=4.0)
    assert score(knobs, method=Quantize(2)) == 0.5
    assert score(knobs, method=Quantize(4, gram="shrunk")) == 0.0625
    assert score(knobs, method=Svd(8, gram="diagonal")) == 0.5
    assert score(knobs, method=Quantize(3)) == 0.25
    assert score(knobs, method=Keep()) == 0.25
    assert score(knobs, method=Svd(8)) == 2.0
    assert score(knobs, method=TensorTrain((2,), (8, 8), (8, 8))) == 2.0


def test_the_slope_turns_about_the_middle_block():
    knobs = Knobs(slope=0.5)
    assert [score(knobs, depth=depth) / 0.25 for depth in (0, 2, 4)] == pytest.approx(
        [0.5, 1.0, 2.0]
    )


def test_the_slope_spares_what_is_outside_the_blocks_and_models_of_one_block():
    outside = LayerMenu(replace(layer_spec(0), depth=None), ())
    option = Option(Quantize(4), 1, 1, 0.25, 1.0)
    assert Knobs(slope=0.7).scorer(5)(outside, option) == 0.25
    assert Knobs(slope=0.7).scorer(1)(LayerMenu(layer_spec(0), ()), option) == 0.25


@pytest.mark.parametrize("measured", [0.0, 0.5, 1.0, 1.5])
def test_the_measured_ratio_of_a_layer_counts_to_its_power(measured):
    """The power 0 takes the predictions as they are, 1 the ratios."""
    scorer = Knobs(measured=measured).scorer(5, {"layers.0": 4.0, "layers.1": 0.25})
    option = Option(Quantize(4), 1, 1, 0.25, 1.0)
    scores = [scorer(LayerMenu(layer_spec(index, Role.UP), ()), option) for index in range(3)]
    assert scores == pytest.approx([0.25 * 4.0**measured, 0.25 / 4.0**measured, 0.25])


def test_a_measured_ratio_is_for_all_options_of_a_layer_and_bends_with_the_other_knobs():
    layer = LayerMenu(replace(layer_spec(0, Role.UP), depth=2), ())
    knobs = Knobs(exponent=0.5, mlp=3.0, factorised=8.0, slope=0.5)
    plain, corrected = knobs.scorer(5), knobs.scorer(5, {"layers.0": 2.0})
    for method in (Quantize(2), Quantize(4), Svd(8), Keep()):
        option = Option(method, 1, 1, 0.25, 1.0)
        assert corrected(layer, option) == pytest.approx(2 * plain(layer, option))


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(measured=0.0)])
def test_the_knobs_of_planned_allocations_are_within_the_ranges(knobs):
    """They are stored as parameters, for the sampler to learn from."""
    assert all(low <= getattr(knobs, key) <= high for key, (low, high) in RANGES.items())
    study = new_study()
    assert ask_with(study, knobs).params == asdict(knobs)


RANGES = {
    "measured": (0.0, 1.5),
    "exponent": (0.8, 1.4),
    "attention": (0.5, 2.0),
    "mlp": (0.5, 2.0),
    "embedding": (0.5, 2.0),
    "slope": (-0.5, 0.5),
    "factorised": (1.0, 16.0),
    "two_bit": (0.5, 2.0),
    "distrust": (1.0, 4.0),
}


def new_study() -> optuna.Study:
    return optuna.create_study(
        directions=["minimize"] * 3, storage=optuna.storages.InMemoryStorage()
    )


def play(study: optuna.Study, name: str, trials: int, seed: int = 0) -> list[Knobs]:
    """Propose and tell: the divergence, which samplers learn from, prefers a large exponent."""
    sampler = KnobSampler(study, name, seed)
    proposed = []
    for _ in range(trials):
        knobs = sampler.propose()
        trial = ask_with(study, knobs)
        trial.set_user_attr("result", {"selection": {"kl": 10 - knobs.exponent}})
        study.tell(trial, [1.0, 100.0, 1.0])
        proposed.append(knobs)
    return proposed


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_proposes_within_the_ranges_and_the_study_records_it(name):
    study = new_study()
    proposed = play(study, name, 9)
    for knobs, trial in zip(proposed, study.get_trials(), strict=True):
        assert Knobs(**trial.params) == knobs
        assert trial.params.keys() == RANGES.keys()
        for key, (low, high) in RANGES.items():
            assert low <= getattr(knobs, key) <= high
    assert len(set(proposed)) == len(proposed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_does_not(name):
    first, again, other = (play(new_study(), name, 8, seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_sampler_goes_on_and_does_not_repeat(name):
    study = new_study()
    before = play(study, name, 7)
    after = play(study, name, 3)
    assert len(study.get_trials()) == 10
    assert not set(before) & set(after)


def test_the_default_sampler_learns_from_finished_trials():
    """Large exponents won; a sampler that learns nothing goes on about the middle."""
    learned = play(new_study(), "auto", 40)[-12:]
    blind = play(new_study(), "random", 40)[-12:]
    mean = [sum(knobs.exponent for knobs in some) / len(some) for some in (learned, blind)]
    low, high = RANGES["exponent"]
    assert mean[0] > low + 0.65 * (high - low) > mean[1]


def test_trials_without_knobs_and_failed_ones_do_not_disturb_the_sampler():
    study = new_study()
    trial = ask_with(study, None)
    assert trial.params == {}
    study.tell(trial, [1.0, 2.0, 3.0])
    sampler = KnobSampler(study, "tpe", 0)
    failed = ask_with(study, sampler.propose())
    study.tell(failed, state=TrialState.FAIL)
    pruned = ask_with(study, sampler.propose())
    study.tell(pruned, state=TrialState.PRUNED)
    assert isinstance(sampler.propose(), Knobs)
