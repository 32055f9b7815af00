from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from autocompress.calibration import screening as module
from autocompress.calibration.fitting import build_menu, fit_taken
from autocompress.calibration.menu import LayerMenu, Option, State
from autocompress.calibration.screening import part_of, screened_menu
from autocompress.driver.proposing.allocation import allocated_plan, bent_choices
from autocompress.driver.proposing.knobs import Knobs
from autocompress.methods.base import MatrixProblem
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.methods.trellis import Trellis
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec, Role
from tests.calibration.counting import METHODS
from tests.fake_crew import FakeCrew

HOPELESS = (*METHODS, Svd(1), Svd(2), Trellis(2), Trellis(4))


def screened(builder, methods=HOPELESS, **settings):
    return screened_menu(
        builder, lambda _spec: methods, builder.workbench.inventory.layers, **settings
    )


def whole(builder, methods=HOPELESS):
    return build_menu(builder, lambda _spec: methods, builder.workbench.inventory.layers)


def kinds_of(builder):
    return {(spec.role, spec.shape) for spec in builder.workbench.inventory.layers}


def test_a_sample_of_each_kind_is_fitted_and_the_rest_is_known_without_a_fit(make_builder):
    builder = make_builder()
    menu = screened(builder, samples=1)
    layers = builder.workbench.inventory.layers
    assert [layer.spec for layer in menu.layers] == list(layers)
    assert menu.options == len(HOPELESS) * len(layers)
    fitted = {name for name, _ in builder.fits}
    assert len(fitted) == len(kinds_of(builder)) < len(layers)
    for layer in menu.layers:
        states = {o.state for o in layer.options if o.method != Keep()}
        expected = {State.FITTED} if layer.spec.name in fitted else {State.PREDICTED}
        assert states - {State.LEFT_OUT} == expected


def test_predictions_are_near_the_fits(make_builder):
    known = {
        (layer.spec.name, option.method): option.loss_increase
        for layer in whole(make_builder(folder="whole")).layers
        for option in layer.options
    }
    methods = (Quantize, Trellis)
    errors = [
        abs(math.log(option.loss_increase / known[layer.spec.name, option.method]))
        for layer in screened(make_builder(folder="other"), samples=1).layers
        for option in layer.options
        if option.predicted and isinstance(option.method, methods)
    ]
    assert len(errors) > 20
    assert sorted(errors)[len(errors) // 2] < 0.35


def test_what_is_hopeless_is_left_out_and_what_is_best_is_not(make_builder):
    complete = whole(make_builder(folder="whole"))
    menu = screened(make_builder(folder="other"), samples=1)
    assert menu.count(State.LEFT_OUT)
    for layer, known in zip(menu.layers, complete.layers, strict=True):
        assert layer.options[0].state is not State.LEFT_OUT  # the smallest
        best = {option.method for option in known.undominated}
        left = {o.method for o in layer.options if o.state is State.LEFT_OUT}
        # Of the options that nothing beats those on the hull are kept.
        hull = {o.method for o, e in module._excess(known.options).items() if e <= 1.0 + 1e-9}
        assert not hull & left
        assert len(best & left) < len(best)


def test_allocations_over_few_fits_are_as_good_as_over_all(make_builder):
    complete = whole(make_builder(folder="whole"))
    builder = make_builder(folder="other")
    menu = screened(builder, samples=1)
    loss_increases = {
        layer.spec.name: {o.method: o.loss_increase for o in layer.options}
        for layer in complete.layers
    }
    dense = sum(layer.options[-1].file_bytes for layer in complete.layers)
    for share in (0.5, 0.25, 0.16):
        room = int(share * dense)
        for _ in range(4):
            plan = allocated_plan(menu, bent_choices(menu, Knobs()), room)
            menu = fit_taken(builder, menu, {name: [method] for name, method in plan.items()})
        best = allocated_plan(complete, bent_choices(complete, Knobs()), room)
        lost, least = (
            sum(loss_increases[name][method] for name, method in each.items())
            for each in (plan, best)
        )
        assert lost <= 1.1 * least
    assert builder.fits.total() < 0.8 * (len(HOPELESS) - 1) * len(menu.layers)


def test_a_fit_corrects_what_is_predicted_of_its_like():
    spec = LayerSpec("a", Role.UP, Kind.LINEAR, 64, 64)
    layer = LayerMenu.of(
        spec,
        [
            Option.expected(Quantize(3), spec, 2.0),
            Option.expected(Quantize(2), spec, 8.0),
            Option.expected(Svd(4), spec, 9.0),
            Option.of(Keep(), spec, {"loss_increase": 0.0, "cosine": 1.0}),
        ],
    )
    fits = {Quantize(3): Option.of(Quantize(3), spec, {"loss_increase": 1.0, "cosine": 0.9})}
    after = {option.method: option for option in layer.with_fits(fits).options}
    assert (after[Quantize(3)].state, after[Quantize(3)].loss_increase) == (State.FITTED, 1.0)
    assert after[Quantize(3)].predicted == 2.0
    assert after[Quantize(2)].loss_increase == pytest.approx(4.0)
    assert after[Quantize(2)].state is State.PREDICTED
    assert after[Svd(4)].loss_increase == 9.0
    assert layer.unfitted([Quantize(3), Keep(), Svd(5)]) == [Quantize(3)]


def test_taking_what_is_fitted_fits_nothing(make_builder):
    builder = make_builder()
    menu = screened(builder, samples=1)
    before = builder.fits.total()
    fitted = {
        layer.spec.name: [o.method for o in layer.options if o.state is State.FITTED]
        for layer in menu.layers
    }
    assert fit_taken(builder, menu, fitted) == menu
    assert builder.fits.total() == before


def test_the_menu_does_not_depend_on_what_the_cache_knows(make_builder):
    fresh = screened(make_builder(folder="fresh"))
    known = make_builder(folder="known")
    whole(known)
    again = make_builder(folder="known")
    assert screened(again) == fresh
    assert again.fits.total() == 0


def test_where_latency_counts_only_the_same_method_rules_an_option_out(make_builder):
    methods = (Keep(), Quantize(8, 16), Quantize(3, 16), Svd(1), Svd(2), Svd(4))
    menu = screened(make_builder(), methods, timed=True, samples=1)
    for layer in menu.layers:
        offered = {o.method.name for o in layer.on_offer}
        assert {"svd", "quantize"} <= offered


def test_options_in_other_gram_matrices_are_ruled_out_by_their_like_alone(make_builder):
    methods = (Keep(), Quantize(4, 16), *(Quantize(b, 16, gram="diagonal") for b in (4, 3, 2)))
    menu = screened(make_builder(), methods, samples=1)
    for layer in menu.layers:
        assert {"full", "diagonal"} <= {getattr(o.method, "gram", "") for o in layer.on_offer}


def test_a_large_matrix_is_sampled_by_a_part_of_its_rows(make_builder, monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLED", 16 * 16)
    builder = make_builder()
    menu = screened(builder, samples=1)
    assert builder.fits.total() == 0
    known = {
        (layer.spec.name, option.method): option.loss_increase
        for layer in whole(make_builder(folder="whole")).layers
        for option in layer.options
    }
    errors = [
        abs(math.log(option.loss_increase / known[layer.spec.name, option.method]))
        for layer in menu.layers
        for option in layer.options
        if option.predicted and isinstance(option.method, Quantize | QuantizePlusLowRank)
    ]
    assert sorted(errors)[len(errors) // 2] < 0.5
    again = make_builder()
    assert screened(again, samples=1) == menu


def test_a_part_has_its_rows_with_their_share_of_the_metric(monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLED", 3 * 4)
    spec = LayerSpec("a", Role.UP, Kind.LINEAR, 7, 4, bias=True)
    weight, bias = torch.arange(28.0).reshape(7, 4), torch.arange(7.0)
    rows = torch.arange(49.0).reshape(7, 7)
    part = part_of(MatrixProblem(spec, weight, Metric((Curvature(rows, torch.eye(4), 9),)), bias))
    assert part.spec.shape == (3, 4)
    assert part.weight.tolist() == weight[[0, 3, 6]].tolist()
    assert part.bias is not None
    assert part.bias.tolist() == [0.0, 3.0, 6.0]
    assert part.metric.terms[0].rows.tolist() == rows[[0, 3, 6]][:, [0, 3, 6]].tolist()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 4.0), (2, 2.0), (3, 0.0)], [1.0, 1.0, 1.0]),
        ([(1, 4.0), (2, 3.0), (3, 0.0)], [1.0, 1.5, 1.0]),
        ([(1, 4.0), (2, 1.0), (3, 2.0), (4, 0.0)], [1.0, 1.0, 4.0, 1.0]),
        ([(1, 4.0), (1, 5.0), (2, 0.0)], [1.0, 1.25, 1.0]),
        ([(1, 0.0), (2, 0.0), (3, 1.0)], [1.0, 1.0, math.inf]),
    ],
)
def test_the_excess_is_over_the_lower_convex_hull(points, expected):
    options = [
        Option(Svd(i + 1), size, size, loss_increase)
        for i, (size, loss_increase) in enumerate(points)
    ]
    assert [module._excess(options)[option] for option in options] == expected


def test_a_crew_makes_the_menu_that_one_makes_alone(make_builder):
    alone = screened(make_builder())
    builder, desk = make_builder(folder="shared"), SimpleNamespace(builder=None)
    desk.builder = make_builder(folder="shared")
    crew = FakeCrew(desk)
    assert screened(builder, crew=crew) == alone
    assert crew.done > 2
    assert desk.builder.fits
    assert not builder.fits  # what is fitted elsewhere is not fitted here
    plan = {layer.spec.name: [HOPELESS[2]] for layer in alone.layers}
    before = sum(desk.builder.fits.values())
    assert fit_taken(builder, alone, plan, crew=crew) == fit_taken(make_builder(), alone, plan)
    assert sum(desk.builder.fits.values()) > before
    busy = FakeCrew(desk, idle=False)
    assert screened(builder, crew=busy) == alone
    assert busy.done == 0
