"""What every option costs inside a compressed model, from one pass forth and back.

The second-order prediction around the dense model takes each matrix alone. Near a budget the others
are compressed as well: the divergence has a slope there. To second order an option whose error is
``E`` costs ``d(E) + <grad - H(P), E>`` more than the dense matrix in its place, where ``d`` is its
loss increase alone, ``P`` the error of the plan's option, ``H(P)`` the slope that this error alone
makes, and ``grad`` the gradient of the divergence by the matrix at the plan: what is not the
matrix's own is what the others do to it. One pass on a short text prices all options of all
matrices, in the time of a few swaps that are measured one by one.

The gradient is that of a sample. Its two halves tell how far chance goes, and slopes are shrunk by
as much (empirical Bayes, James and Stein 1961).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import over_layers
from autocompress.calibration.menu import LayerMenu, Menu
from autocompress.calibration.priced_menu import Price, PricedMenu
from autocompress.calibration.statistics import stream_sums
from autocompress.calibration.weight_gradients import WeightGradient
from autocompress.crew import Crew
from autocompress.errors import ModelError, StorageError
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import divergence_sum, score
from autocompress.free_memory import give_back_memory
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Advance, Progress
from autocompress.records import LayerSpec
from autocompress.store import content_key, tensor_key
from autocompress.surgery.dense_copies import dense_copies

PRICES_VERSION = 2
BLOCK_ELEMENTS = 2**20  # that are multiplied at a time
GRADIENTS = "gradients"  # what they are kept under while several processes price options

Found = dict[str, list[float]]
"""By the address of each option: two slopes and a loss increase; see ``_found``."""


class Slope(NamedTuple):
    """What the halves of a text say the other matrices add to an option's loss increase."""

    first: float
    second: float
    loss_increase: float

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
        divergence: of the plan from the dense model on the text; infinite where it is no number.
    """

    plan: Plan
    slopes: Mapping[str, Sequence[Slope]]
    divergence: float

    @cached_property
    def trust(self) -> float:
        """Share of the slopes that is no chance: what both halves of the text agree on.

        Slopes count by the root of the loss increase that they come with, as both their part that
        is chance and the other grow with it.
        """
        every = [slope for several in self.slopes.values() for slope in several]
        if not every:
            return 0.0
        first, second, loss_increase = (np.array(each) for each in zip(*every, strict=True))
        signal = max(float((first * second / loss_increase).sum()), 0.0)
        noise = float((np.square(first - second) / loss_increase).sum()) / 4
        return signal / (signal + noise) if signal > 0 else 0.0

    def menu(self, step: float = 1.0) -> PricedMenu:
        """Prices: loss increases and a part of the slopes, shrunk by chance.

        Args:
            step: the part. Slopes are those at the plan; where many matrices change at once, each
                changes the slopes of the others.
        """
        part = step * self.trust
        return PricedMenu(
            {
                name: tuple(
                    sorted(Price(s.loss_increase, s.loss_increase + part * s.mean) for s in some)
                )
                for name, some in self.slopes.items()
            }
        )


def price_options(
    plan: Plan,
    menu: Menu,
    builder: LayerBuilder,
    text: ScoredText,
    progress: Progress = SILENT,
    crew: Crew | None = None,
) -> Priced:
    """Price the undominated options of every layer inside a plan.

    What is found is kept in the cache.

    Args:
        plan: one near the budget.
        menu: the options, with what is predicted of them around the dense model.
        builder: makes the layers of the plan and of the options.
        text: what to differentiate the divergence on; not the report text.
        progress: told how far things are, and why there are no prices.
        crew: shares the work where it is idle; its desks have the same text as
            ``pricing_texts.slopes``. Gradients lie in the cache meanwhile.
    """
    place = _place(plan, builder, text)
    record = builder.cache.record("prices", place) or {"divergence": None, "layers": {}}
    known: dict[str, Found] = record["layers"]
    missing = [layer for layer in menu.layers if not _priced(layer, known)]
    with progress.task("Pricing options (tokens)", len(text.windows.ids)) as advance:
        if missing or record["divergence"] is None:
            try:
                if crew is not None and crew.idle:
                    found = _priced_by_a_crew(plan, missing, builder, text, advance, crew)
                else:
                    found = _priced_here(plan, missing, builder, text, advance)
                record["divergence"], prices = found
                known |= prices
            except ModelError:  # the compressed model predicts NaN
                record["divergence"] = math.inf
            builder.cache.keep_record("prices", place, record)
    divergence = float(record["divergence"])
    if not math.isfinite(divergence):
        progress.note("A plan near the budget predicts no numbers: options count as predicted.")
        return Priced(plan, {}, math.inf)
    slopes = {layer.spec.name: _slopes(layer, known[layer.spec.name]) for layer in menu.layers}
    return Priced(plan, slopes, divergence)


def divergence_of(
    plan: Plan, builder: LayerBuilder, text: ScoredText, progress: Progress = SILENT
) -> float:
    """Divergence of a plan from the dense model on a text."""
    with (
        progress.task("Scoring a plan by prices (windows)", len(text.windows)) as advance,
        builder.workbench.applied(plan, builder.build) as model,
        dense_copies(model),
    ):
        found = score(model, text.windows, text.teacher, advance=advance).divergence
    return found if math.isfinite(found) else math.inf


def _place(plan: Plan, builder: LayerBuilder, text: ScoredText) -> str:
    """Where the prices inside a plan on a text are kept."""
    layers, windows = [builder.key(*item) for item in plan.items()], text.windows
    return content_key(
        layers,
        tensor_key(windows.ids),
        windows.context,
        windows.begin,
        text.teacher.objective.name,
        PRICES_VERSION,
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
    """What the slope adds to the loss increase of each option of a layer, beyond its own curvature.

    ``<grad, E> - H(P)(E)``, with ``H(P)(E) = d(E) + d(P) - d(E - P)``, as the loss increase is
    quadratic.
    """
    of_the_plan = known[_address(Keep())][2]
    slopes = []
    for option in layer.undominated:
        first, second, from_the_plan = known[_address(option.method)]
        own = option.loss_increase + of_the_plan - from_the_plan
        if option.loss_increase > 0 and math.isfinite(first) and math.isfinite(second):
            slopes.append(Slope(first - own, second - own, option.loss_increase))
    return slopes


def _priced_here(
    plan: Plan,
    layers: Sequence[LayerMenu],
    builder: LayerBuilder,
    text: ScoredText,
    advance: Advance,
) -> tuple[float, dict[str, Found]]:
    """The divergence of the plan, and what is found of some layers, block by block in one pass."""
    menus = {layer.spec.name: layer for layer in layers}
    tokens, prices = _tokens_of_halves(text), dict[str, Found]()

    def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
        for name, places in done.items():
            halves = [
                _mean([place.take(half) for place in places], count)
                for half, count in enumerate(tokens)
            ]
            prices[name] = _found(menus[name], plan[name], builder, halves)

    specs = [layer.spec for layer in layers]
    total = _differentiated(plan, specs, builder, text, range(len(text.windows)), keep, advance)
    return total / sum(tokens), prices


def _priced_by_a_crew(
    plan: Plan,
    layers: Sequence[LayerMenu],
    builder: LayerBuilder,
    text: ScoredText,
    advance: Advance,
    crew: Crew,
) -> tuple[float, dict[str, Found]]:
    """The same by several: first parts of the text, of both halves alike, then the matrices."""
    parts = min(len(text.windows), 2 * math.ceil(crew.workers / 2))
    names = tuple(layer.spec.name for layer in layers)
    place = _place(plan, builder, text)
    gradients = [_Gradients(plan, names, place, part, parts) for part in range(parts)]
    tell = _in_shares(advance, len(text.windows.ids), parts + len(layers))
    tokens = _tokens_of_halves(text)
    try:
        done = crew.do(gradients, lambda _part, _found: tell(1))
        works = [
            _LayerPrices(
                layer,
                plan[layer.spec.name],
                tuple(keys.get(layer.spec.name) for _, keys in done),
                tokens,
            )
            for layer in layers
        ]
        prices = over_layers(builder, works, tell, crew=crew)
    finally:  # they are as large as the model, twice
        for name, part in product(names, range(parts)):
            builder.cache.drop_tensors(GRADIENTS, _gradient_key(place, part, parts, name))
    return sum(total for total, _ in done) / sum(tokens), prices


def _in_shares(advance: Advance, total: int, steps: int) -> Advance:
    """Tell of steps as equal shares of a total."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        advance(total * done // steps - total * before // steps)

    return tell


@dataclass(frozen=True)
class _Gradients:
    """Sums the gradients of some matrices over a part of the text, and keeps them: a ``Task``."""

    plan: Plan
    names: tuple[str, ...]
    place: str
    part: int
    parts: int

    def done_on(self, desk: Any) -> tuple[float, dict[str, str]]:
        """The divergence, summed over the tokens of the part, and where gradients are, by name."""
        builder: LayerBuilder = desk.builder
        text: ScoredText = desk.pricing_texts.slopes
        keys: dict[str, str] = {}

        def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
            for name, places in done.items():
                total = _mean([place.take(half) for place in places for half in (0, 1)], 1)
                if total is not None:
                    keys[name] = _gradient_key(self.place, self.part, self.parts, name)
                    builder.cache.keep_tensors(GRADIENTS, keys[name], {"gradient": total})

        specs = [builder.workbench.inventory[name] for name in self.names]
        windows = range(self.part, len(text.windows), self.parts)
        return _differentiated(self.plan, specs, builder, text, windows, keep), keys


@dataclass(frozen=True)
class _LayerPrices:
    """Prices the options of a layer by gradients that are kept: a ``LayerWork``.

    Attributes:
        layer: the options.
        of_the_plan: the plan's.
        gradients: where they are, of each part of the text; ``None`` where nothing came back.
        tokens: of the halves, to which the parts belong in turn.
    """

    layer: LayerMenu
    of_the_plan: Method
    gradients: tuple[str | None, ...]
    tokens: tuple[int, ...]

    @property
    def spec(self) -> LayerSpec:
        """The layer."""
        return self.layer.spec

    def done_with(self, builder: LayerBuilder) -> Found:
        """See ``_found``.

        Raises:
            StorageError: gradients are gone.
        """

        def gradient(key: str | None) -> Tensor | None:
            if key is None:
                return None
            kept = builder.cache.tensors(GRADIENTS, key)
            if kept is None:
                raise StorageError(
                    f"the gradients of {self.spec.name} are gone from {builder.cache.root}",
                    hint="Another search that prices in the same plan removes them, or a cache "
                    "that was emptied: the same command goes on.",
                )
            return kept["gradient"]

        halves = [
            _mean([gradient(key) for key in self.gradients[half::2]], count)
            for half, count in enumerate(self.tokens)
        ]
        return _found(self.layer, self.of_the_plan, builder, halves)


def _gradient_key(place: str, part: int, parts: int, name: str) -> str:
    return content_key(place, part, parts, name)


def _differentiated(
    plan: Plan,
    specs: Sequence[LayerSpec],
    builder: LayerBuilder,
    text: ScoredText,
    chosen: Sequence[int],
    keep: Callable[[Mapping[str, Sequence[WeightGradient]]], None],
    advance: Advance = lambda _tokens: None,
) -> float:
    """Differentiate the divergence of a plan by some matrices; its sum over some windows."""
    windows, teacher = text.windows, text.teacher
    objective, batches = teacher.objective, list(windows)
    # Of the dense model's outputs, those of each window.
    starts = list(accumulate(objective.counts(windows), initial=0))
    totals = dict.fromkeys(chosen, 0.0)

    def loss(batch: int, start: int, outputs: Tensor) -> Tensor | None:
        window = chosen[batch]
        rows = objective.compared(len(batches[window]), windows.given)
        before = start - rows.start
        compared = outputs[max(-before, 0) : max(rows.stop - start, 0)]
        if not len(compared):
            return None
        found = divergence_sum(teacher, starts[window] + max(before, 0), compared)
        totals[window] += float(found.detach())
        return found

    with builder.workbench.applied(plan, builder.build) as model, dense_copies(model):
        stream_sums(
            model,
            specs,
            WeightGradient,
            [batches[window][None] for window in chosen],
            keep,
            loss,
            advance=advance,
            folder=builder.cache.root,
        )
    give_back_memory()
    return sum(totals.values())


def _tokens_of_halves(text: ScoredText) -> tuple[int, ...]:
    """Compared rows of every other window, from the first and from the second on.

    A text of one window has one half.
    """
    counts = text.teacher.objective.counts(text.windows)
    return tuple(sum(some) for some in (counts[0::2], counts[1::2]) if some)


def _mean(totals: Sequence[Tensor | None], tokens: int) -> Tensor | None:
    """Sum of what came back to a matrix at several places, a token; ``None`` if nothing did.

    The first of them becomes it.
    """
    found = [total for total in totals if total is not None]
    if not found:
        return None
    for other in found[1:]:
        found[0] += other
    return found[0].div_(tokens)


def _inner(one: Tensor, other: Tensor) -> float:
    """Sum of the products of two matrices, element by element, some rows at a time."""
    rows = max(1, BLOCK_ELEMENTS // one.shape[-1])
    parts = zip(torch.split(one, rows), torch.split(other, rows), strict=True)
    return sum(float((mine * its).sum()) for mine, its in parts)


def _found(
    layer: LayerMenu, of_the_plan: Method, builder: LayerBuilder, halves: Sequence[Tensor | None]
) -> Found:
    """By the address of each option: ``<grad, E>`` on both halves of the text, ``d(E - P)``.

    ``E`` is the option's error, ``P`` that of the plan's option; all means over the tokens.
    """
    name = layer.spec.name
    problem = builder.problem(name)

    def error_of(method: Method) -> Tensor:
        if method == Keep():
            return torch.zeros_like(problem.weight32)
        built = builder.build(name, method).to_dense().to(problem.weight.device)
        return built - problem.weight32

    current = error_of(of_the_plan)
    found = {}
    for method in _wanted(layer):
        error = error_of(method)
        slopes = [0.0 if half is None else _inner(half, error) for half in halves]
        found[_address(method)] = [
            slopes[0],
            slopes[-1],
            problem.metric.loss_increase(error - current),
        ]
    return found
