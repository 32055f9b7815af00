"""What every option costs inside a compressed model, from one pass forth and back.

The second-order prediction around the dense model takes each matrix alone. Near a budget the others
are compressed as well: the divergence has a slope there. To second order an option whose error is
``E`` costs ``d(E) + <grad - H(P), E>`` more than the dense matrix in its place, where ``d`` is its
damage alone, ``P`` the error of the plan's option, ``H(P)`` the slope that this error alone makes,
and ``grad`` the gradient of the divergence by the matrix at the plan: what is not the matrix's own
is what the others do to it. One pass on a short text prices all options of all matrices, in the
time of a few swaps that are measured one by one.

The gradient is that of a sample. Its two halves tell how far chance goes, and slopes are shrunk by
as much (empirical Bayes, James and Stein 1961).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.calibration.menu import LayerMenu, Menu
from autocompress.calibration.statistics import stream_sums
from autocompress.calibration.weight_gradients import WeightGradient
from autocompress.errors import ModelError
from autocompress.evaluation.scoring import divergence_sum, score
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import ScoredText
from autocompress.search.priced_menu import Price, PricedMenu
from autocompress.surgery.dense_copies import dense_copies

PRICES_VERSION = 2


class Slope(NamedTuple):
    """What the halves of a text say the other matrices add to an option's damage."""

    first: float
    second: float
    damage: float

    @property
    def mean(self) -> float:
        """Over the whole text."""
        return (self.first + self.second) / 2


@dataclass(frozen=True)
class Priced:
    """What options cost inside a plan.

    Attributes:
        plan: the plan.
        slopes: what the other matrices add to options, by layer; empty where the plan predicts no
            numbers.
        divergence: of the plan on the text, KL from the dense model in nats per token; infinite
            where it is no number.
    """

    plan: Plan
    slopes: Mapping[str, Sequence[Slope]]
    divergence: float

    @cached_property
    def trust(self) -> float:
        """Share of the slopes that is no chance: what both halves of the text agree on.

        Slopes count by the root of the damage that they come with, as both their part that is
        chance and the other grow with it.
        """
        every = [slope for several in self.slopes.values() for slope in several]
        if not every:
            return 0.0
        first, second, damage = (np.array(each) for each in zip(*every, strict=True))
        signal = max(float((first * second / damage).sum()), 0.0)
        noise = float((np.square(first - second) / damage).sum()) / 4
        return signal / (signal + noise) if signal > 0 else 0.0

    def menu(self, step: float = 1.0) -> PricedMenu:
        """Prices: damages and a part of the slopes, shrunk by chance.

        Args:
            step: the part. Slopes are those at the plan; where many matrices change at once, each
                changes the slopes of the others.
        """
        part = step * self.trust
        return PricedMenu(
            {
                name: tuple(sorted(Price(s.damage, s.damage + part * s.mean) for s in some))
                for name, some in self.slopes.items()
            }
        )


def price_options(
    plan: Plan, menu: Menu, builder: LayerBuilder, text: ScoredText, progress: Progress = SILENT
) -> Priced:
    """Price the undominated options of every layer inside a plan.

    What is found is kept in the cache.

    Args:
        plan: one near the budget.
        menu: the options, with what is predicted of them around the dense model.
        builder: makes the layers of the plan and of the options.
        text: what to differentiate the divergence on; not the report text.
        progress: told how far things are, and why there are no prices.
    """
    place = _place(plan, builder, text)
    record = builder.cache.record("prices", place) or {"divergence": None, "layers": {}}
    known: dict[str, dict[str, list[float]]] = record["layers"]
    missing = [layer for layer in menu.layers if not _priced(layer, known)]
    with progress.task("Pricing options (tokens)", len(text.windows.ids)) as advance:
        if missing or record["divergence"] is None:
            try:
                record["divergence"] = _price(plan, missing, builder, text, known, advance)
            except ModelError:  # the compressed model predicts NaN
                record["divergence"] = math.inf
            builder.cache.keep_record("prices", place, record)
    divergence = float(record["divergence"])
    if not math.isfinite(divergence):
        progress.note("A plan near the budget predicts no numbers: options count as predicted.")
        return Priced(plan, {}, math.inf)
    slopes = {layer.spec.name: _slopes(layer, known[layer.spec.name]) for layer in menu.layers}
    return Priced(plan, slopes, divergence)


def divergence_of(plan: Plan, builder: LayerBuilder, text: ScoredText) -> float:
    """Divergence of a plan on a text, KL from the dense model in nats per token."""
    with builder.workbench.applied(plan, builder.build) as model, dense_copies(model):
        found = score(model, text.windows, text.teacher).kl
    return found if math.isfinite(found) else math.inf


def _place(plan: Plan, builder: LayerBuilder, text: ScoredText) -> str:
    """Where the prices inside a plan on a text are kept."""
    layers, windows = [builder.key(*item) for item in plan.items()], text.windows
    return content_key(
        layers, tensor_key(windows.ids), windows.context, windows.begin, PRICES_VERSION
    )


def _priced(layer: LayerMenu, known: Mapping[str, Mapping[str, Sequence[float]]]) -> bool:
    found = known.get(layer.spec.name, {})
    return all(_address(method) in found for method in _wanted(layer))


def _wanted(layer: LayerMenu) -> list[Method]:
    """The options to price, the dense matrix among them."""
    return list(dict.fromkeys([Keep(), *(option.method for option in layer.undominated)]))


def _address(method: Method) -> str:
    return json.dumps(method.to_dict(), sort_keys=True)


def _slopes(layer: LayerMenu, known: Mapping[str, Sequence[float]]) -> list[Slope]:
    """What the slope adds to the damage of each option of a layer, beyond its own curvature.

    ``<grad, E> - H(P)(E)``, with ``H(P)(E) = d(E) + d(P) - d(E - P)``, as the damage is quadratic.
    """
    of_the_plan = known[_address(Keep())][2]
    slopes = []
    for option in layer.undominated:
        first, second, from_the_plan = known[_address(option.method)]
        own = option.damage + of_the_plan - from_the_plan
        if option.damage > 0 and math.isfinite(first) and math.isfinite(second):
            slopes.append(Slope(first - own, second - own, option.damage))
    return slopes


def _price(
    plan: Plan,
    layers: Sequence[LayerMenu],
    builder: LayerBuilder,
    text: ScoredText,
    known: dict[str, dict[str, list[float]]],
    advance: Callable[[int], None],
) -> float:
    """Add what is found of some layers to what is known, and return the divergence of the plan."""
    windows, teacher = text.windows, text.teacher
    batches = list(windows)
    # Of the dense model's predictions, those of each window.
    starts = list(accumulate((len(window) - windows.given for window in batches), initial=0))
    menus = {layer.spec.name: layer for layer in layers}
    total = [0.0] * len(batches)
    tokens = [sum(len(window) - windows.given for window in batches[half::2]) for half in (0, 1)]

    def loss(batch: int, logits: Tensor) -> Tensor:
        found = divergence_sum(teacher, starts[batch], logits[0, windows.given - 1 : -1])
        total[batch] = float(found.detach())
        return found

    def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
        for name, places in done.items():
            halves = [_half(places, half, tokens) for half in (0, 1)]
            known[name] = _found(menus[name], plan, builder, halves)

    with builder.workbench.applied(plan, builder.build) as model, dense_copies(model):
        stream_sums(
            model,
            [layer.spec for layer in layers],
            WeightGradient,
            [window[None] for window in batches],
            keep,
            loss,
            advance=advance,
            folder=builder.cache.root,
        )
    return sum(total) / windows.tokens


def _half(places: Sequence[WeightGradient], half: int, tokens: Sequence[int]) -> Tensor | None:
    """Mean gradient over half of a text, of all places of a matrix; a text of one window has one.

    ``None`` where nothing came back to the matrix.
    """
    half = half if tokens[half] else 0
    found = [place.halves[half] for place in places]
    totals = [total for total in found if total is not None]
    return torch.stack(totals).sum(0) / tokens[half] if totals else None


def _found(
    layer: LayerMenu, plan: Plan, builder: LayerBuilder, halves: Sequence[Tensor | None]
) -> dict[str, list[float]]:
    """By the address of each option: ``<grad, E>`` on both halves of the text, ``d(E - P)``.

    ``E`` is the option's error, ``P`` that of the plan's option; all in nats per token.
    """
    name = layer.spec.name
    problem = builder.problem(name)

    def error_of(method: Method) -> Tensor:
        if method == Keep():
            return torch.zeros_like(problem.weight32)
        built = builder.build(name, method).to_dense().to(problem.weight.device)
        return built - problem.weight32

    current = error_of(plan[name])
    found = {}
    for method in _wanted(layer):
        error = error_of(method)
        slopes = [0.0 if half is None else float((half * error).sum()) for half in halves]
        found[_address(method)] = [*slopes, problem.metric.damage(error - current)]
    return found
