from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from autocompress.calibration import collection
from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import build_menu
from autocompress.calibration.menu import Menu
from autocompress.calibration.statistics import collect_statistics
from autocompress.driver import prices
from autocompress.driver.prices import Priced, Slope, divergence_of, price_options
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.numerics.metric import Metric
from autocompress.progress import Notes
from autocompress.records import Kind, LayerSpec
from autocompress.store import Cache
from autocompress.surgery.placement import weight_path
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY
from tests.fake_crew import FakeCrew

BITS = (8, 4, 3, 2)
OPTIONS = (Keep(), *(Quantize(bits, 16) for bits in BITS))


class World:
    """A tiny model with a menu, a text and a compressed plan."""

    def __init__(self, model: Any, folder: Any, begin: tuple[int, ...] = (1,)) -> None:
        self.workbench = Workbench(model)
        ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(0))
        windows = Windows(ids, 32, begin)
        metrics = collect_statistics(
            model, self.workbench.inventory.layers, list(ids.view(5, 1, 30))
        )
        self.builder = LayerBuilder(self.workbench, metrics, Cache(folder))
        self.menu: Menu = build_menu(
            self.builder, lambda _spec: OPTIONS, self.workbench.inventory.layers
        )
        self.text = ScoredText("calibration", windows, Teacher.of(model, windows))
        names = [spec.name for spec in self.workbench.inventory.layers]
        self.plan = Plan.of(dict.fromkeys(names, Quantize(3, 16)))

    def divergence(self, plan: Plan, text: ScoredText | None = None) -> float:
        text = text or self.text
        with self.workbench.applied(plan, self.builder.build) as model:
            return score(model, text.windows, text.teacher).divergence


@pytest.fixture(params=["llama", "gpt2"])
def world(request, tiny_model, tmp_path) -> World:
    return World(tiny_model(request.param), tmp_path / "cache")


def dense_form(world: World, name: str, method: Method) -> Tensor:
    """The matrix ``[out, in]`` of an option."""
    if method == Keep():
        return world.builder.problem(name).weight32
    return world.builder.build(name, method).to_dense()


def matrix_in(tensor: Tensor, spec: LayerSpec) -> Tensor:
    """The matrix ``[out, in]`` in a parameter of the dense model or in its gradient, a view."""
    if tensor.ndim == 3:  # a stack of experts
        return tensor[int(spec.name.rpartition(".")[2])]
    return tensor.T if spec.kind is Kind.CONV1D else tensor


def gradients_by_autograd(world: World, plan: Plan) -> tuple[float, list[dict[str, Tensor]]]:
    """The divergence of a plan, and its gradients by the matrices on both halves of the text.

    They are those of a dense model into which the matrices of the plan are written.
    """
    dense, windows = world.workbench.model, list(world.text.windows)
    given = world.text.windows.given
    specs = world.workbench.inventory.layers
    model = copy.deepcopy(dense).requires_grad_(True)
    model.get_input_embeddings().padding_idx = None  # else autograd leaves its row out
    parameters = {spec.name: model.get_parameter(weight_path(dense, spec)) for spec in specs}
    for spec in specs:
        matrix = dense_form(world, spec.name, plan[spec.name])
        matrix_in(parameters[spec.name].data, spec).copy_(matrix)
    total, gradients = 0.0, []
    for half in (windows[0::2], windows[1::2]):
        model.zero_grad()
        for ids in half:
            expected = dense(input_ids=ids[None]).logits[0, given - 1 : -1].softmax(-1)
            expected = expected.half().double()  # as a teacher keeps it
            expected /= expected.sum(-1, keepdim=True)
            found = model(input_ids=ids[None]).logits[0, given - 1 : -1].double().log_softmax(-1)
            divergence = torch.nn.functional.kl_div(found, expected, reduction="sum")
            divergence.backward()
            total += divergence.item()
        tokens = sum(len(ids) - given for ids in half)
        gradients.append(
            {spec.name: matrix_in(parameters[spec.name].grad, spec) / tokens for spec in specs}
        )
    return total / sum(len(ids) - given for ids in windows), gradients


def own_curvature(metric: Metric, error: Tensor, of_the_plan: Tensor) -> float:
    """``tr(S E G P^T)``: the slope for an error of a matrix that its error in the plan makes."""
    total = 0.0
    for term in metric.terms:
        rows, columns = (
            (torch.diag(gram) if gram.ndim == 1 else gram).double()
            for gram in (term.rows, term.columns)
        )
        total += float((rows @ error.double() @ columns * of_the_plan.double()).sum())
    return total


@pytest.mark.parametrize(
    ("family", "rows"), [("llama", 31), ("gpt2", 2), ("gemma2", 1000), ("mixtral", 7)]
)
def test_slopes_are_those_of_autograd_beyond_their_own_curvature(
    family, rows, tiny_model, tmp_path, monkeypatch
):
    """Of all options of all matrices: tied to the head, scaled, transposed or experts as well.

    The divergence is differentiated by some rows of the logits at a time.
    """
    monkeypatch.setattr(collection, "BLOCK_ELEMENTS", rows * VOCABULARY)
    world = World(tiny_model(family), tmp_path / "cache", begin=(1, 2, 3))
    kinds = (Quantize(3, 16), Keep(), Quantize(2, 16))
    names = list(world.plan)
    plan = Plan.of({name: kinds[place % 3] for place, name in enumerate(names)})
    priced = price_options(plan, world.menu, world.builder, world.text)
    divergence, gradients = gradients_by_autograd(world, plan)
    assert priced.divergence == pytest.approx(divergence, rel=1e-3)
    assert set(priced.slopes) == set(names)
    assert len(set(map(len, world.text.windows))) == 2  # so that tokens count, not windows
    for layer in world.menu.layers:
        name = layer.spec.name
        problem = world.builder.problem(name)
        of_the_plan = dense_form(world, name, plan[name]) - problem.weight32
        options = [option for option in layer.undominated if option.method != Keep()]
        assert len(options) == len(BITS)
        for slope, option in zip(priced.slopes[name], options, strict=True):
            error = dense_form(world, name, option.method) - problem.weight32
            assert slope.loss_increase == option.loss_increase
            own = own_curvature(problem.metric, error, of_the_plan)
            for found, half in zip((slope.first, slope.second), gradients, strict=True):
                expected = float((half[name] * error).sum()) - own
                most = float(half[name].norm() * error.norm())  # Cauchy and Schwarz
                assert found == pytest.approx(expected, rel=1e-3, abs=1e-5 * most), option


def test_whole_slopes_rank_options_as_measured_swaps_on_their_text_do(world, monkeypatch):
    """Nearly: a swap is a step, which its slope and the metric tell to second order only."""
    monkeypatch.setattr(Priced, "trust", 1.0)
    priced = price_options(world.plan, world.menu, world.builder, world.text)
    assert priced.plan == world.plan
    same = world.divergence(world.plan, world.text)
    assert priced.divergence == pytest.approx(same, rel=1e-4)
    assert divergence_of(world.plan, world.builder, world.text) == pytest.approx(same, rel=1e-4)
    found, measured = [], []
    for layer in world.menu.layers:
        name = layer.spec.name
        dense = world.divergence(Plan.of({**world.plan, name: Keep()}))
        swaps = {price.predicted: price.priced for price in priced.menu().by_layer[name]}
        for option in layer.undominated:
            if option.method == Keep():
                continue
            found.append(swaps[option.loss_increase])
            swapped = world.divergence(Plan.of({**world.plan, name: option.method}))
            measured.append(swapped - dense)
    assert len(found) > 20
    assert spearmanr(found, measured).statistic > 0.85


def priced_with(slopes):
    return Priced(Plan(()), {"a": slopes}, 0.1)


@pytest.mark.parametrize(("signal", "noise"), [(4.0, 0.1), (0.5, 0.5), (0.01, 3.0)])
def test_slopes_count_as_far_as_the_halves_agree(signal, noise):
    rng = np.random.default_rng(0)
    loss_increases = np.exp(rng.normal(size=40_000))
    found = (signal * loss_increases) ** 0.5 * rng.normal(size=40_000)
    chance = (2 * noise * loss_increases) ** 0.5 * rng.normal(size=(2, 40_000))  # of half a text
    slopes = [Slope(*each) for each in zip(*(found + chance), loss_increases, strict=True)]
    priced = priced_with(slopes)
    assert priced.trust == pytest.approx(signal / (signal + noise), abs=0.01)
    seen = np.array([slope.mean for slope in slopes])

    def error(share):
        return float(np.square(share * seen - found).mean())

    assert error(priced.trust) < 1.02 * error((seen @ found) / (seen @ seen))  # least squares


def test_without_signal_nothing_counts_and_without_noise_everything():
    against = [Slope(1.0, -1.0, 1.0), Slope(-2.0, 2.0, 1.0)]
    assert priced_with(against).menu().by_layer["a"] == ((1.0, 1.0), (1.0, 1.0))
    agreed = priced_with([Slope(1.0, 1.0, 1.0), Slope(4.0, 4.0, 2.0)])
    assert agreed.menu().by_layer["a"] == ((1.0, 2.0), (2.0, 6.0))
    assert agreed.menu(0.5).by_layer["a"] == ((1.0, 1.5), (2.0, 4.0))


def test_a_model_is_passed_once_and_prices_are_kept(world, monkeypatch):
    first = price_options(world.plan, world.menu, world.builder, world.text)
    monkeypatch.setattr(prices, "stream_sums", None)
    assert price_options(world.plan, world.menu, world.builder, world.text) == first
    other = Plan.of({**world.plan, world.menu.layers[0].spec.name: Keep()})
    with pytest.raises(TypeError):  # another plan is passed afresh
        price_options(other, world.menu, world.builder, world.text)


def test_only_new_options_are_priced(world):
    narrow = Menu(world.menu.layers[:3])
    some = price_options(world.plan, narrow, world.builder, world.text)
    everything = price_options(world.plan, world.menu, world.builder, world.text)
    assert set(some.menu().by_layer) < set(everything.menu().by_layer)
    for name, swaps in some.menu().by_layer.items():
        predicted = [price.predicted for price in everything.menu().by_layer[name]]
        assert predicted == [price.predicted for price in swaps]
    assert everything.divergence == pytest.approx(some.divergence, rel=1e-6)


def test_the_dense_model_is_left_as_it_was(world):
    model = world.workbench.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    price_options(world.plan, world.menu, world.builder, world.text)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_plan_that_predicts_no_numbers_prices_nothing_and_says_so(world, monkeypatch):
    notes = Notes()
    built = world.builder.build

    def broken(name, method):
        layer = built(name, method)
        layer.cache_dense_ = lambda _dtype: layer
        layer.multiply = lambda x: x.new_full((*x.shape[:-1], layer.out_features), torch.nan)
        return layer

    monkeypatch.setattr(world.builder, "build", broken)
    priced = price_options(world.plan, world.menu, world.builder, world.text, notes)
    assert priced.divergence == float("inf")
    assert not priced.menu().by_layer
    assert any("predicts no numbers" in note for note in notes.said)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_several_find_the_prices_that_one_finds_alone(tiny_model, tmp_path, workers):
    world = World(tiny_model("mixtral"), tmp_path / "cache")
    alone = price_options(world.plan, world.menu, world.builder, world.text)
    other = World(tiny_model("mixtral"), tmp_path / "other")
    desk = SimpleNamespace(builder=other.builder, pricing_texts=SimpleNamespace(slopes=other.text))
    crew, notes = FakeCrew(desk, workers), Notes()
    several = price_options(other.plan, other.menu, other.builder, other.text, notes, crew)
    assert crew.done > 2
    assert several.divergence == pytest.approx(alone.divergence, rel=1e-6)
    for name, slopes in alone.slopes.items():
        for one, another in zip(slopes, several.slopes[name], strict=True):
            assert another == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert not list((tmp_path / "other").rglob("gradients/*"))  # they are as large as the model


def test_gradients_do_not_stay_where_pricing_is_cut_off(tiny_model, tmp_path):
    world = World(tiny_model("llama"), tmp_path / "cache")
    desk = SimpleNamespace(builder=world.builder, pricing_texts=SimpleNamespace(slopes=world.text))

    class CutOff(FakeCrew):
        def do(self, tasks, done=lambda _number, _value: None, deadline=math.inf):
            if self.done:
                assert list((tmp_path / "cache").rglob("gradients/*"))
                raise KeyboardInterrupt
            return super().do(tasks, done, deadline)

    with pytest.raises(KeyboardInterrupt):
        price_options(world.plan, world.menu, world.builder, world.text, crew=CutOff(desk))
    assert not list((tmp_path / "cache").rglob("gradients/*"))
