"""What every option costs inside a compressed model, from one pass forth and back.

The second-order prediction around the dense model takes each matrix alone. Near a budget the others
are compressed as well: the divergence has a slope there, and a change of a matrix costs, to second
order, ``<grad, D> + 1/2 tr(S D G D^T)``, where ``D`` is the change from the matrix of the plan,
``grad`` the gradient of the divergence by the matrix at the plan, and ``S``, ``G`` are the Gram
matrices of its metric. One pass on a short text prices all options of all matrices, in the time of
a few swaps that are measured one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.calibration.menu import LayerMenu, Menu
from autocompress.calibration.statistics import stream_sums
from autocompress.calibration.weight_gradients import WeightGradient
from autocompress.errors import ModelError
from autocompress.evaluation.scoring import divergence_sum
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import ScoredText
from autocompress.search.priced_menu import Price, PricedMenu
from autocompress.surgery.dense_copies import dense_copies

PRICES_VERSION = 1


@dataclass(frozen=True)
class Priced:
    """What options cost inside a plan.

    Attributes:
        plan: the plan.
        menu: the prices; empty where the plan predicts no numbers.
        divergence: of the plan on the text, KL from the dense model in nats per token; infinite
            where it is no number.
    """

    plan: Plan
    menu: PricedMenu
    divergence: float


def price_options(
    plan: Plan, menu: Menu, builder: LayerBuilder, text: ScoredText, progress: Progress = SILENT
) -> Priced:
    """Price the undominated options of every layer inside a plan.

    What an option costs is its price less that of the dense matrix at the same place. Prices are
    kept in the cache.

    Args:
        plan: one near the budget.
        menu: the options, with what is predicted of them around the dense model.
        builder: makes the layers of the plan and of the options.
        text: what to differentiate the divergence on; not the report text.
        progress: told how far things are, and why there are no prices.
    """
    place = _place(plan, builder, text)
    record = builder.cache.record("prices", place) or {"divergence": None, "layers": {}}
    known: dict[str, dict[str, float]] = record["layers"]
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
        return Priced(plan, PricedMenu(), math.inf)
    prices = PricedMenu({layer.spec.name: _above_dense(layer, known) for layer in menu.layers})
    return Priced(plan, prices, divergence)


def _place(plan: Plan, builder: LayerBuilder, text: ScoredText) -> str:
    """Where the prices inside a plan on a text are kept."""
    layers, windows = [builder.key(*item) for item in plan.items()], text.windows
    return content_key(
        layers, tensor_key(windows.ids), windows.context, windows.begin, PRICES_VERSION
    )


def _priced(layer: LayerMenu, known: Mapping[str, Mapping[str, float]]) -> bool:
    prices = known.get(layer.spec.name, {})
    return all(_address(method) in prices for method in _wanted(layer))


def _wanted(layer: LayerMenu) -> list[Method]:
    """The options to price, the dense matrix among them."""
    return list(dict.fromkeys([Keep(), *(option.method for option in layer.undominated)]))


def _address(method: Method) -> str:
    return json.dumps(method.to_dict(), sort_keys=True)


def _above_dense(layer: LayerMenu, known: Mapping[str, Mapping[str, float]]) -> tuple[Price, ...]:
    """What each option of a layer costs more than the dense matrix in its place."""
    prices = known[layer.spec.name]
    dense = prices[_address(Keep())]
    costs = [
        Price(option.damage, prices[_address(option.method)] - dense)
        for option in layer.undominated
        if option.damage > 0
    ]
    return tuple(sorted(cost for cost in costs if math.isfinite(cost.priced)))


def _price(
    plan: Plan,
    layers: Sequence[LayerMenu],
    builder: LayerBuilder,
    text: ScoredText,
    known: dict[str, dict[str, float]],
    advance: Callable[[int], None],
) -> float:
    """Add the prices of some layers to those known, and return the divergence of the plan."""
    windows, teacher = text.windows, text.teacher
    batches = list(windows)
    # Of the dense model's predictions, those of each window.
    starts = list(accumulate((len(window) - windows.given for window in batches), initial=0))
    menus = {layer.spec.name: layer for layer in layers}
    total = [0.0] * len(batches)

    def loss(batch: int, logits: Tensor) -> Tensor:
        found = divergence_sum(teacher, starts[batch], logits[0, windows.given - 1 : -1])
        total[batch] = float(found.detach())
        return found

    def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
        for name, places in done.items():
            totals = [place.total for place in places if place.total is not None]
            gradient = torch.stack(totals).sum(0) / windows.tokens if totals else None
            known[name] = _prices(menus[name], plan, builder, gradient)

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


def _prices(
    layer: LayerMenu, plan: Plan, builder: LayerBuilder, gradient: Tensor | None
) -> dict[str, float]:
    """Price of each option of a layer, nats per token, by its address."""
    name = layer.spec.name
    problem = builder.problem(name)

    def dense_of(method: Method) -> Tensor:
        if method == Keep():
            return problem.weight32
        return builder.build(name, method).to_dense().to(problem.weight.device)

    current = dense_of(plan[name])
    prices = {}
    for method in _wanted(layer):
        change = dense_of(method) - current
        linear = 0.0 if gradient is None else float((gradient * change).sum())
        prices[_address(method)] = linear + problem.metric.damage(change)
    return prices
