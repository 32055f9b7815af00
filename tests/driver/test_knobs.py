from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.calibration.menu import LayerMenu, Option
from autocompress.calibration.priced_menu import Price, PricedMenu
from autocompress.driver.proposing.knob_sampler import ask_with
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.records import Role
from tests.calibration.menus import layer_spec
from tests.driver.knob_studies import PRICE, RANGES, new_study


def score(
    knobs: Knobs,
    role: Role = Role.UP,
    method: Method | None = None,
    loss_increase: float = 0.25,
    depth: int = 0,
) -> float:
    layer = LayerMenu(replace(layer_spec(0, role), depth=depth), ())
    return knobs.scorer(5)(layer, Option(method or Quantize(4), 1, 1, loss_increase, 1.0))


def test_without_corrections_the_score_is_the_loss_increase():
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


def test_the_exponent_bends_loss_increases():
    assert score(Knobs(exponent=0.5)) == 0.5
    assert score(Knobs(exponent=1.5)) == 0.125
    assert score(Knobs(exponent=1.5), loss_increase=0.0) == 0.0


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
def test_the_measured_ratio_of_an_option_counts_to_its_power(measured):
    """The power 0 takes the predictions as they are, 1 the ratios."""
    menu = PricedMenu({"layers.0": (Price(0.25, 1.0),), "layers.1": (Price(0.25, 0.0625),)})
    scorer = Knobs(measured=measured).scorer(5, menu)
    option = Option(Quantize(4), 1, 1, 0.25, 1.0)
    scores = [scorer(LayerMenu(layer_spec(index, Role.UP), ()), option) for index in range(3)]
    assert scores == pytest.approx([0.25 * 4.0**measured, 0.25 / 4.0**measured, 0.25])


def test_a_measured_ratio_bends_with_the_other_knobs():
    layer = LayerMenu(replace(layer_spec(0, Role.UP), depth=2), ())
    knobs = Knobs(exponent=0.5, mlp=3.0, factorised=8.0, slope=0.5)
    measured = PricedMenu({"layers.0": (Price(0.25, 1.0),)})
    plain, corrected = knobs.scorer(5), knobs.scorer(5, measured)
    for method in (Quantize(2), Quantize(4), Svd(8), Keep()):
        option = Option(method, 1, 1, 0.25, 1.0)
        assert corrected(layer, option) == pytest.approx(2 * plain(layer, option))


def test_codes_below_the_least_bits_are_a_last_resort():
    knobs = Knobs(least_bits=3)
    assert score(knobs, method=Quantize(2)) == 25.0
    for method in (Quantize(3), Svd(8), Svd(8, bits=8), Keep()):
        assert score(knobs, method=method) == 0.25
    assert score(Knobs(least_bits=2), method=Quantize(2)) == 0.25


@pytest.mark.parametrize("knobs", [Knobs(), PREDICTED])
def test_the_knobs_of_planned_allocations_are_within_the_ranges(knobs):
    """They are stored as parameters, for the sampler to learn from."""
    for priced, ranges in ((False, RANGES), (True, RANGES | PRICE)):
        params = ask_with(new_study(), knobs, priced=priced).params
        assert params == {key: getattr(knobs, key) for key in ranges}
        assert all(low <= params[key] <= high for key, (low, high) in ranges.items())
