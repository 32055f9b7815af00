from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.cache import Cache
from autocompress.calibration.fitting import build_menu
from autocompress.calibration.menu import Menu
from autocompress.calibration.statistics import collect_statistics
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.search import prices
from autocompress.search.evaluator import ScoredText
from autocompress.search.prices import Priced, Slope, divergence_of, price_options
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY
from tests.notes import Notes

BITS = (8, 4, 3, 2)
OPTIONS = (Keep(), *(Quantize(bits, 16) for bits in BITS))


class World:
    """A tiny model with a menu, a text and a compressed plan."""

    def __init__(self, model: Any, folder: Any) -> None:
        self.workbench = Workbench(model)
        ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(0))
        windows = Windows(ids, 32, (1,))
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
            return score(model, text.windows, text.teacher).kl


@pytest.fixture(params=["llama", "gpt2"])
def world(request, tiny_model, tmp_path) -> World:
    return World(tiny_model(request.param), tmp_path / "cache")


def test_whole_slopes_rank_options_as_measured_swaps_on_their_text_do(world, monkeypatch):
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
            found.append(swaps[option.damage])
            swapped = world.divergence(Plan.of({**world.plan, name: option.method}))
            measured.append(swapped - dense)
    assert len(found) > 20
    assert spearmanr(found, measured).statistic > 0.85


def priced_with(slopes):
    return Priced(Plan(()), {"a": slopes}, 0.1)


@pytest.mark.parametrize(("signal", "noise"), [(4.0, 0.1), (0.5, 0.5), (0.01, 3.0)])
def test_slopes_count_as_far_as_the_halves_agree(signal, noise):
    rng = np.random.default_rng(0)
    damages = np.exp(rng.normal(size=4000))
    found = (signal * damages) ** 0.5 * rng.normal(size=4000)
    chance = (2 * noise * damages) ** 0.5 * rng.normal(size=(2, 4000))  # of half a text
    slopes = [Slope(*each) for each in zip(*(found + chance), damages, strict=True)]
    priced = priced_with(slopes)
    assert priced.trust == pytest.approx(signal / (signal + noise), abs=0.05)
    seen = np.array([slope.mean for slope in slopes])

    def error(guess):
        return float(np.square(guess - found).mean())

    assert error(priced.trust * seen) < 1.2 * min(error(0 * seen), error(seen))


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
