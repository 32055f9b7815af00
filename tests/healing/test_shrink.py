"""Ranks are cut where nothing much is lost, and what is lost is what was stated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from autocompress.errors import ConfigurationError, RecipeError
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.methods.base import MatrixProblem
from autocompress.methods.cp import Cp
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.placement import prefix_of
from autocompress.surgery.stored_weights import StoredWeights
from autocompress.surgery.workbench import Workbench
from tests.healing.plans import building, logits_of, some_ids
from tests.methods.matrices import linear_metric, matrix, spec_of

SPEC = spec_of(48, 64)
CPU = torch.device("cpu")
METRIC = linear_metric(48, 64)
WIDE = {
    "svd": Svd(40),
    "svd_int8": Svd(40, bits=8),
    "svd_plain": Svd(40, "plain"),
    "tensor_train": TensorTrain((48,), (6, 8), (8, 8)),
    "tensor_train_int8": TensorTrain((8, 24), (2, 4, 6), (4, 4, 4), 8),
    "tucker": Tucker((6, 8, 8, 8), (6, 8), (8, 8)),
}


def stored(weight, method, spec=SPEC, metric=None):
    layer = method.build(MatrixProblem(spec, weight, metric))
    return layer, {f"{prefix_of(spec)}{k}": t for k, t in layer.state_dict().items()}


def shrunk(weight, method, tolerance, *, metric=None):
    """The stored matrix before and after, and what became of it."""
    layer, numbers = stored(weight, method, metric=metric)
    metrics = {} if metric is None else {SPEC.name: metric}
    result = shrink(Plan.of({SPEC.name: method}), numbers, [SPEC], metrics, tolerance)
    (cut,) = result.cuts
    assert result.plan[SPEC.name] == cut.after
    after = StoredWeights(result.weights).matrix(SPEC, cut.after, CPU)
    return layer.to_dense(), after.to_dense(), cut


@pytest.mark.parametrize("metric", [None, METRIC], ids=["plain", "metric"])
@pytest.mark.parametrize("tolerance", [0.02, 0.2])
def test_two_factors_lose_what_is_stated_and_no_lower_rank_would_do(metric, tolerance):
    before, after, cut = shrunk(matrix(48, 64), WIDE["svd"], tolerance, metric=metric)
    assert 0 < cut.stated <= tolerance
    assert cut.after.rank < cut.before.rank
    assert cut.after.rank < 8 or cut.after.rank % 8 == 0
    assert cut.measured == pytest.approx(cut.stated, rel=0.05)
    if metric is None:
        change = (after - before).square().sum() / before.square().sum()
        assert float(change) == pytest.approx(cut.measured, rel=1e-3)
        values = torch.linalg.svdvals(before).square()
        lower = cut.after.rank - (8 if cut.after.rank >= 8 else 1)
        assert float(values[lower:].sum() / values.sum()) > tolerance
    else:
        assert cut.loss_increase == pytest.approx(metric.loss_increase(after - before), rel=1e-3)


@pytest.mark.parametrize("name", WIDE)
def test_ranks_that_nothing_needs_are_cut_at_no_loss(name):
    method = WIDE[name]
    weight = torch.kron(matrix(6, 8), matrix(8, 8, 3)) / 4  # one term along each bond but one
    if name.startswith("svd"):
        weight = matrix(48, 8) @ matrix(8, 64)
    before, after, cut = shrunk(weight, method, 0.003)
    assert cut.after.cost(SPEC) < method.cost(SPEC)
    assert cut.stated <= 0.003
    assert cut.measured <= 0.003
    assert float((after - before).norm() / before.norm()) <= math.sqrt(0.003)


@pytest.mark.parametrize("name", ["tensor_train", "tucker"])
def test_losses_over_several_bonds_stay_within_the_sum_that_is_stated(name):
    _, _, cut = shrunk(matrix(48, 64), WIDE[name], 0.2)
    assert cut.after != cut.before
    assert 0 < cut.measured <= cut.stated * 1.001 <= 0.2


def test_components_are_left_out_by_what_their_sum_amounts_to():
    method = Cp(24, (6, 8), (8, 8))
    _, numbers = stored(matrix(48, 64), method)
    weak = torch.arange(24) >= 13  # 11 of 24, which 16 is the next multiple of 8 for
    for name, tensor in numbers.items():
        if "out_factors.0" in name:
            tensor.view(6, 24)[:, weak] *= 1e-3
    result = shrink(Plan.of({SPEC.name: method}), numbers, [SPEC], {}, 0.001)
    assert result.plan[SPEC.name] == replace(method, rank=16)
    assert result.cuts[0].measured <= result.cuts[0].stated + 1e-6


def test_rounding_anew_that_would_lose_more_leaves_the_layer_as_it_was():
    weight = matrix(48, 8) @ matrix(8, 64)
    _, numbers = stored(weight, Svd(40, bits=4))
    result = shrink(Plan.of({SPEC.name: Svd(40, bits=4)}), numbers, [SPEC], {}, 1e-4)
    (cut,) = result.cuts
    assert cut.after == cut.before
    assert cut.reason
    assert result.weights.keys() == numbers.keys()
    for name, tensor in numbers.items():
        assert torch.equal(result.weights[name], tensor)


def test_correctors_are_cut_and_their_codes_stay():
    method = QuantizePlusLowRank(2, 16, 32)
    weight = matrix(48, 64)
    layer, numbers = stored(weight, method)
    result = shrink(Plan.of({SPEC.name: method}), numbers, [SPEC], {}, 0.3)
    (cut,) = result.cuts
    assert cut.after.rank < 32
    assert cut.measured <= 0.3
    after = StoredWeights(result.weights).matrix(SPEC, cut.after, CPU)
    assert torch.equal(after.codes.to_dense(), layer.codes.to_dense())
    left_out = (after.to_dense() - layer.to_dense()).square().sum()
    assert float(left_out / layer.corrector.to_dense().square().sum()) <= 0.3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_whole_model_keeps_its_outputs_and_its_other_numbers(family, tiny_model):
    model = tiny_model(family)
    workbench = Workbench(model)
    layers, build = workbench.inventory.layers, building(workbench)
    first, *_, last = (spec.name for spec in layers)
    plan = Plan.of({spec.name: Svd(min(spec.shape)) for spec in layers} | {last: Quantize(8, 0)})
    numbers = Student(workbench, plan, build).weights()
    ids = some_ids()
    result = shrink(plan, numbers, layers, {}, 0.1)
    assert result.plan.layer_bytes(layers) < plan.layer_bytes(layers)
    assert result.plan[first] != plan[first]
    assert result.plan[last] == plan[last]
    assert first not in [cut.name for cut in result.cuts if cut.reason]
    with workbench.applied(Compressed(plan, numbers), build) as applied:
        before = logits_of(applied, ids)
    with workbench.applied(Compressed(result.plan, result.weights), build) as applied:
        after = logits_of(applied, ids)
    assert float((after - before).norm() / before.norm()) < 5 * math.sqrt(0.1)
    same = shrink(plan, numbers, layers, {}, 1e-9)
    assert same.plan == plan
    assert same.weights.keys() == numbers.keys()


def test_bad_input_is_said():
    _, numbers = stored(matrix(48, 64), Svd(8))
    plan = Plan.of({SPEC.name: Svd(8)})
    with pytest.raises(ConfigurationError, match="tolerance"):
        shrink(plan, numbers, [SPEC], {}, 1.5)
    with pytest.raises(RecipeError, match="lack layer"):
        shrink(plan, {}, [SPEC], {})
    with pytest.raises(RecipeError, match="belong to another plan"):
        shrink(Plan.of({SPEC.name: Svd(16)}), numbers, [SPEC], {})
