"""Fitting cores in the metric: exact derivatives, never worse, and better where it can be."""

from __future__ import annotations

import math

import pytest
import torch

from autocompress.numerics.kronecker import gram_roots, root_whitening
from autocompress.numerics.metric import Metric
from autocompress.numerics.svd import decompose
from autocompress.numerics.tensors.cp import CpForm
from autocompress.numerics.tensors.tensor_fit import FitTarget, TensorForm, pad_to, refine
from autocompress.numerics.tensors.tensor_train import TrainForm
from autocompress.numerics.tensors.tucker import TuckerForm
from tests.methods.matrices import embedding_metric, linear_metric, matrix

SHAPE = (59, 35)
MODES = {"out_modes": (6, 10), "in_modes": (6, 6)}
FORMS = [
    TrainForm((7,), **MODES),
    TrainForm((5, 6), (4, 3, 5), (3, 3, 4)),
    TuckerForm((3, 5, 4, 3), **MODES),
    TuckerForm((12, 3, 4), (60,), (6, 6)),
    CpForm((40,), **MODES),
]
METRICS = {"linear": linear_metric(*SHAPE), "tied embedding": embedding_metric(*SHAPE)}


def target_of(form: TensorForm, metric: Metric, **settings: float) -> FitTarget:
    roots = gram_roots(metric)
    whitening = root_whitening(roots, form.out_modes, form.in_modes, torch.device("cpu"))
    return FitTarget(matrix(*SHAPE), metric, whitening, **settings)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_loss_increase_is_the_same_in_the_coordinates_of_the_target(
    form: TensorForm, metric: Metric
) -> None:
    target = target_of(form, metric, shrinkage=0.0)
    cores = form.decompose(pad_to(matrix(*SHAPE, seed=3), form.out_modes, form.in_modes))
    change = form.multiply_out(cores)[: SHAPE[0], : SHAPE[1]] - matrix(*SHAPE)
    absorbed = form.absorb(cores, target.whitening.rows, target.whitening.columns)
    assert target.loss_increase(form.multiply_out(absorbed)) == pytest.approx(
        metric.loss_increase(change), rel=1e-3
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_absorbed_matrices_can_be_given_back(form: TensorForm) -> None:
    target = target_of(form, METRICS["linear"])
    cores = form.decompose(target.matrix)
    whitening = target.whitening
    there = form.absorb(cores, whitening.rows_inverse, whitening.columns_inverse)
    back = form.absorb(there, whitening.rows, whitening.columns)
    for core, again in zip(cores, back, strict=True):
        torch.testing.assert_close(again, core, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_environments_are_gram_matrices_of_the_maps_from_the_cores(form: TensorForm) -> None:
    cores = [
        core.double()
        for core in form.decompose(pad_to(matrix(*SHAPE), form.out_modes, form.in_modes))
    ]
    for k, environment in enumerate(form.environments(cores)):

        def map_of(core: torch.Tensor, k: int = k) -> torch.Tensor:
            return form.multiply_out([*cores[:k], core, *cores[k + 1 :]])

        probe = torch.randn_like(cores[k])
        expected = probe
        for dim, gram in environment:
            expected = torch.tensordot(expected, gram, dims=([dim], [0])).movedim(-1, dim)
        torch.testing.assert_close(
            (map_of(probe) * map_of(probe)).sum(), (probe * expected).sum(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_refinement_lowers_the_loss_increase_and_more_of_it_lowers_it_more(
    form: TensorForm, metric: Metric
) -> None:
    target = target_of(form, metric)
    cores = form.decompose(target.matrix)
    loss_increases = [
        target.loss_increase(form.multiply_out(refine(form, cores, target, evaluations=n)))
        for n in (0, 5, 40)
    ]
    start = target.loss_increase(form.multiply_out(cores))
    assert loss_increases[0] <= start * (1 + 1e-4)
    assert loss_increases[2] < 0.8 * start
    assert loss_increases[2] <= loss_increases[1] <= start * (1 + 1e-4)


def test_refinement_reaches_the_optimum_where_that_is_known() -> None:
    """A train of modes ``(out, 1)`` by ``(1, in)`` is a product of two factors."""
    form, metric = TrainForm((6,), (59, 1), (1, 35)), METRICS["linear"]
    target = target_of(form, metric, shrinkage=1e-3)
    poor = form.absorb(
        form.decompose(matrix(*SHAPE)), target.whitening.rows, target.whitening.columns
    )
    refined = refine(form, poor, target, evaluations=300)
    spectrum = decompose(matrix(*SHAPE), metric.rows, metric.columns)
    optimum = 0.5 * float(spectrum.values[6:].square().sum())
    assert target.loss_increase(form.multiply_out(poor)) > 1.5 * optimum
    assert target.loss_increase(form.multiply_out(refined)) == pytest.approx(optimum, rel=0.02)


def test_fixed_cores_stay_and_others_make_up_for_them() -> None:
    form = FORMS[1]
    target = target_of(form, METRICS["linear"])
    cores = form.decompose(target.matrix)
    spoiled = [cores[0] + 0.1 * cores[0].abs().mean() * torch.randn_like(cores[0]), *cores[1:]]
    refined = refine(form, spoiled, target, fixed={0})
    assert torch.equal(refined[0], spoiled[0])
    assert target.loss_increase(form.multiply_out(refined)) < 0.9 * target.loss_increase(
        form.multiply_out(spoiled)
    )
    assert all(
        torch.equal(*pair)
        for pair in zip(refine(form, cores, target, fixed={0, 1, 2}), cores, strict=True)
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_exact_or_zero_stays(form: TensorForm) -> None:
    metric = METRICS["linear"]
    whitening = target_of(form, metric).whitening
    zero = FitTarget(torch.zeros(SHAPE), metric, whitening)
    cores = refine(form, form.decompose(zero.matrix), zero)
    assert math.isclose(float(form.multiply_out(cores).abs().max()), 0.0)
    assert all(torch.isfinite(core).all() for core in cores)
