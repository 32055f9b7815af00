from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.judging.front import front_of
from autocompress.judging.method_report import report_methods
from autocompress.judging.method_rivals import Offer, method_label, offers_of, stored_offers
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.sparse import Sparse
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.records import PERPLEXITY
from autocompress.studies.stored_menu import StoredMenu, keep_menu
from autocompress.surgery.inventory import Inventory
from tests.calibration.menus import menu_of
from tests.studies.study_fixtures import (
    SPECS,
    realistic_study,
    study_of,
    trial,
    uniform_plan,
)

TWO_BIT = Option(Quantize(2), 4, 4, 0.5, 0.9)
OFFERS = st.lists(
    st.builds(Offer, st.sampled_from("abc"), st.integers(1, 6), st.integers(1, 6).map(float)),
    min_size=1,
    max_size=12,
)


def reports_of(study, offers=None):
    return {report.label: report for report in report_methods(study, offers)}


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (Keep(), "keep"),
        (Quantize(4), "4 bit"),
        (Trellis(3, 0), "3 bit trellis"),
        (Svd(rank=8), "svd"),
        (Svd(rank=8, bits=8), "svd int8"),
        (QuantizePlusLowRank(bits=2, group_size=64, rank=8), "2 bit + low rank"),
        (Sparse("unstructured", 0.5), "sparse"),
        (TensorTrain(ranks=(4,), out_modes=(8, 8), in_modes=(8, 8), bits=8), "tensor train int8"),
    ],
)
def test_labels_say_bits_where_they_tell(method, label):
    assert method_label(method) == label


def test_uses_add_up_to_every_matrix_and_every_byte_of_each_member():
    study = realistic_study()
    reports = report_methods(study)
    for member in front_of(study):
        uses = [use for report in reports for use in report.uses if use.trial == member.number]
        assert sum(use.matrices for use in uses) == len(SPECS)
        assert sum(use.share for use in uses) == pytest.approx(1)
    assert sum(report.share for report in reports) == pytest.approx(1)
    assert [report.share for report in reports] == sorted(
        (report.share for report in reports), reverse=True
    )


def test_layers_that_a_plan_does_not_name_are_kept():
    plan = Plan.of({SPECS[0].name: Quantize(4)})
    (use,) = reports_of(study_of(trial(0, 0.1, 4_000_000, plan=plan)))["keep"].uses
    assert use.matrices == len(SPECS) - 1
    assert use.ratio == 4


def test_uniform_plans_name_the_trial_that_beats_them_most():
    plan = uniform_plan(Svd(rank=16), k_proj=Keep())
    study = study_of(
        trial(0, 1.0, 2_000_000, 4.0, plan=plan, phase="baseline", label="uniform SVD"),
        trial(1, 0.5, 2_000_000, 4.0),
        trial(2, 0.1, 1_200_000, 6.0, label="allocated"),
        trial(3, 0.01, 2_000_001, 4.0),  # one byte too many
        trial(4, 1.1, 1_000_000, 4.0),  # loses more
    )
    report = reports_of(study)["svd"]
    (beaten,) = report.beaten_plans
    assert report.uniform_plans == 1
    assert (beaten.trial, beaten.by, beaten.by_label) == (0, 2, "allocated")
    assert beaten.bytes_share == pytest.approx(0.6)
    assert beaten.increase_share == pytest.approx(0.1)
    assert beaten.latency_share == pytest.approx(1.5)


def test_uniform_plans_are_beaten_by_divergence():
    def at(number, increase, size, kl, **fields):
        made = trial(number, increase, size, **fields)
        return replace(made, selection=replace(made.selection, divergence=kl))

    plan = uniform_plan(Quantize(4))
    baselines = at(0, -0.001, 2_000_000, 0.04, plan=plan, phase="baseline")
    study = study_of(baselines, at(1, 0.002, 2_000_000, 0.01), at(2, -0.002, 2_000_000, 0.05))
    (beaten,) = reports_of(study)["4 bit"].beaten_plans
    assert (beaten.by, beaten.increase_share) == (1, pytest.approx(0.25))
    unknown = replace(study, trials=(*study.trials[:2], at(2, -0.002, 2_000_000, math.nan)))
    assert not reports_of(unknown)["4 bit"].beaten_plans  # by perplexity it loses nothing


def test_uniform_plans_that_were_given_up_are_told_apart():
    plan = uniform_plan(Svd(rank=16))
    given_up = trial(0, 2.0, 1_600_000, plan=plan, phase="baseline", label="uniform SVD")
    given_up = replace(given_up, state="stopped", partial=given_up.selection, selection=None)
    searched = replace(given_up, number=1, phase="knobs")
    report = reports_of(study_of(given_up, searched))["svd"]
    (stopped,) = report.stopped_plans
    assert (stopped.trial, stopped.label, stopped.tokens) == (0, "uniform SVD", 8192)
    assert (report.uniform_plans, report.beaten_plans) == (0, ())


def test_nothing_beats_a_uniform_plan_that_loses_nothing_or_is_the_smallest():
    plans = [uniform_plan(Quantize(bits)) for bits in (8, 2)]
    study = study_of(
        trial(0, -0.001, 4_000_000, plan=plans[0], phase="baseline"),
        trial(1, 0.9, 1_000_000, plan=plans[1], phase="baseline"),
    )
    reports = reports_of(study)
    assert reports["8 bit"].beaten_plans == reports["2 bit"].beaten_plans == ()


def test_matrices_say_what_beats_a_method_and_by_how_much():
    menu = menu_of(
        [(10, 8.0), (20, 4.0), (30, 2.0), (80, 0.1), (20, 12.0), (40, 5.0)],
        [(10, 8.0), (20, 4.0), (30, 2.0), (80, 0.1), (8, 12.0), (40, 5.0)],
    )
    reports = reports_of(study_of(), offers_of(menu))
    svd, low = reports["svd"], reports["svd int8"]
    assert (svd.options, svd.beaten_options, svd.matrices, svd.unbeaten_matrices) == (2, 1, 2, 1)
    assert [(r.label, r.options, r.factor) for r in svd.rivals] == [("3 bit", 1, 3.0)]
    assert [(r.label, r.options, r.factor) for r in low.rivals] == [("4 bit", 2, 2.5)]
    assert reports["2 bit"].unbeaten_matrices == 2
    assert reports["8 bit"].rivals == ()


@given(OFFERS)
def test_beaten_options_equal_brute_force(offers):
    reports = reports_of(study_of(), {"layer": offers})
    for label, report in reports.items():
        own = [offer for offer in offers if offer.label == label]
        beaten = [
            offer
            for offer in own
            if any(
                o.label != label
                and o.bytes <= offer.bytes
                and o.loss_increase < offer.loss_increase
                for o in offers
            )
        ]
        assert (report.options, report.beaten_options) == (len(own), len(beaten))
        assert report.unbeaten_matrices == (len(beaten) < len(own))


def test_the_menu_of_the_run_folder_is_used_where_there_is_one(tmp_path):
    layers = [LayerMenu(s, (Option(Keep(), 9, 9, 0.0, 1.0), TWO_BIT)) for s in SPECS]
    study = study_of(folder=tmp_path)
    assert stored_offers(study) is None
    inventory = Inventory(SPECS, (), 0, study.dense_bytes, study.dense_bf16_bytes)
    keep_menu(tmp_path, StoredMenu(Menu(tuple(layers)), inventory))
    offers = stored_offers(study)
    assert offers.keys() == {spec.name for spec in SPECS}
    assert offers[SPECS[0].name] == (Offer("keep", 9, 0.0), Offer("2 bit", 4, 0.5))


def test_json_holds_it_all():
    offers = {"layer": [Offer("a", 4, 1.0), Offer("b", 4, 0.0)]}
    reports = report_methods(realistic_study(), offers)
    data = json.loads(
        json.dumps([report.to_dict(PERPLEXITY) for report in reports], allow_nan=False)
    )
    infinite = next(report for report in reports if report.label == "a").rivals[0].factor
    assert math.isinf(infinite)
    assert next(each for each in data if each["label"] == "a")["rivals"][0]["factor"] is None
