"""A menu of which little is fitted: the rest is predicted by what was, or left out as hopeless.

Fits to a few matrices of each kind say how much worse, or better, each method does there than can
be expected without a fit (``Method.expected_loss_increase``); other matrices of that kind are
predicted to do as much worse. Options far above the lower convex hull of bytes and loss increase
are left out: an allocation under a budget of bytes takes what is on it. What remains is fitted when
a plan takes it (``fitting.fit_taken``).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import fit_layer, over_layers
from autocompress.calibration.menu import LayerMenu, Menu, Option, State, judge
from autocompress.crew import Crew
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.numerics.metric import Curvature, Metric
from autocompress.progress import SILENT, Progress
from autocompress.records import LayerSpec
from autocompress.store import content_key

SAMPLES = 2  # matrices of each kind that are fitted
FEW_OPTIONS = 3  # up to so many are fitted at once
# Elements of a matrix, from which on a sample is a part of its rows: methods differ as much on it.
MOST_SAMPLED = 2**20
HOPELESS = 3.0  # times the hull on the first sample: not fitted to the others
# Predictions are off by a factor; options are left out beyond so many standard deviations of it,
# but not below the least margin, nor above the most.
DEVIATIONS = 2.0
LEAST_MARGIN, MOST_MARGIN = 1.25, 3.0
# What is expected of methods that know nothing without a fit is a share of this one's.
COMMON = Quantize(3, 0)
SCREENING_VERSION = 1  # raise it when what is seen of a part changes

OptionsOf = Callable[[LayerSpec], Sequence[Method]]


@dataclass(frozen=True)
class _Sample:
    """What came of fits to a matrix, or a part of one.

    Attributes:
        depth: of its block.
        ratios: logarithms of loss increases over what was expected.
        hopeless: methods far above the hull there.
    """

    depth: int
    ratios: Mapping[Method, float]
    hopeless: frozenset[Method]


def screened_menu(
    builder: LayerBuilder,
    options_of: OptionsOf,
    specs: Sequence[LayerSpec],
    *,
    timed: bool = False,
    samples: int = SAMPLES,
    progress: Progress = SILENT,
    deadline: float = math.inf,
    crew: Crew | None = None,
) -> Menu:
    """Fit options of a few matrices of each kind, and predict or leave out those of the others.

    Args:
        builder: builds and keeps layers.
        options_of: the methods to consider for a layer.
        specs: the layers.
        timed: whether latency counts; then options are left out only where others of the same
            method beat them.
        samples: matrices of each kind to fit.
        progress: told how far things are.
        deadline: see ``over_layers``.
        crew: see ``over_layers``.
    """
    layers: dict[str, LayerMenu] = {}
    screens = [_Screen(options_of, members) for members in _kinds(options_of, specs).values()]
    screen_of = {member.name: screen for screen in screens for member in screen.members}
    spread = [_spread(screen.members, samples) for screen in screens]
    with progress.task("Fitting samples of each kind (matrices)", sum(map(len, spread))) as advance:
        for turn in range(samples):
            found = over_layers(
                builder,
                [screen_of[some[turn].name].sampling(some[turn]) for some in spread if some[turn:]],
                advance,
                deadline=deadline,
                crew=crew,
            )
            for name, (sample, fitted) in found.items():
                screen_of[name].samples.append(sample)
                if fitted is not None:
                    layers[name] = fitted
    rest = [screen_of[spec.name].predicting(spec) for spec in specs if spec.name not in layers]
    with progress.task("Predicting the others (matrices)", len(rest)) as advance:
        layers |= over_layers(builder, rest, advance, deadline=deadline, crew=crew)
    margins = {screen: _margins(screen.samples) for screen in screens}
    return Menu(
        tuple(
            _without_hopeless(layers[spec.name], margins[screen_of[spec.name]], timed)
            for spec in specs
        )
    )


def sampled_fits(
    options_of: OptionsOf, specs: Sequence[LayerSpec], samples: int = SAMPLES
) -> Iterator[tuple[LayerSpec, Method]]:
    """The fits that ``screened_menu`` makes to samples, about: parts of large matrices as specs.

    Later samples are taken to leave out what cuts ranks, where other methods are on offer.
    """
    for members in _kinds(options_of, specs).values():
        methods = [method for method in options_of(members[0]) if method != Keep()]
        plain = [method for method in methods if not method.factorised] or methods
        if len(methods) < FEW_OPTIONS:  # the dense matrix beside them
            yield from ((spec, method) for spec in members for method in methods)
            continue
        for turn, spec in enumerate(_spread(members, samples)):
            part = _part_spec(spec)
            yield from ((part, method) for method in (plain if turn else methods))


def _kinds(
    options_of: OptionsOf, specs: Sequence[LayerSpec]
) -> dict[tuple[object, ...], list[LayerSpec]]:
    """Matrices that are alike, by depth: of one role and shape, with the same options."""
    kinds: dict[tuple[object, ...], list[LayerSpec]] = defaultdict(list)
    for spec in sorted(specs, key=_depth):
        kinds[spec.role, spec.shape, tuple(options_of(spec))].append(spec)
    return kinds


def _spread(members: Sequence[LayerSpec], samples: int) -> list[LayerSpec]:
    """Some of the members, spread over their depths."""
    count = min(samples, len(members))
    return [members[int((turn + 0.5) / count * len(members))] for turn in range(count)]


class _Screen:
    """The matrices of one kind, with the samples taken of them."""

    def __init__(self, options_of: OptionsOf, members: Sequence[LayerSpec]) -> None:
        self.options_of = options_of
        self.methods, self.members = tuple(options_of(members[0])), members
        self.samples: list[_Sample] = []

    def sampling(self, spec: LayerSpec) -> _Sampling:
        """Fitting the options of a member, those apart that were hopeless on an earlier one."""
        hopeless = frozenset[Method]().union(*(earlier.hopeless for earlier in self.samples))
        wanted = tuple(method for method in self.methods if method not in hopeless)
        left = tuple(method for method in self.methods if method in hopeless)
        stand_ins = None
        if spec.parameters > MOST_SAMPLED and len(self.methods) > FEW_OPTIONS:
            part = _part_spec(spec)
            stand_ins = _counterparts(wanted, self.options_of(part), part)
        return _Sampling(spec, wanted, left, tuple(self.samples), stand_ins)

    def predicting(self, spec: LayerSpec) -> _Predicting:
        """Predicting the menu of a member; where there are few options they are fitted."""
        few = len(self.methods) <= FEW_OPTIONS
        fitted = tuple(method for method in self.methods if few or method == Keep())
        left = tuple(method for method in self.methods if method not in fitted)
        return _Predicting(spec, fitted, left, tuple(self.samples))


@dataclass(frozen=True)
class _Sampling:
    """Fits options of a matrix to learn from: a ``LayerWork``.

    Attributes:
        spec: the matrix.
        wanted: what to fit.
        left: what was hopeless on earlier samples.
        samples: those.
        stand_ins: what is fitted in the place of each method to a part of the matrix, which no plan
            can use; without it the whole is fitted. Methods that nothing stands for are taken to be
            hopeless.
    """

    spec: LayerSpec
    wanted: tuple[Method, ...]
    left: tuple[Method, ...]
    samples: tuple[_Sample, ...]
    stand_ins: Mapping[Method, Method] | None

    def done_with(self, builder: LayerBuilder) -> tuple[_Sample, LayerMenu | None]:
        """The sample, and the menu of the matrix where it was fitted as a whole."""
        if self.stand_ins is not None:
            return self._of_a_part(builder, self.stand_ins), None
        fits = fit_layer(builder, self.spec, self.wanted)
        problem = builder.problem(self.spec.name)
        sample = _sampled(problem, fits, frozenset(self.left))
        predicted = _expected(builder, self.spec, self.left, self.samples)
        return sample, LayerMenu.of(self.spec, [*fits.values(), *predicted.values()])

    def _of_a_part(self, builder: LayerBuilder, stand_ins: Mapping[Method, Method]) -> _Sample:
        """The sample of some rows; its figures are kept."""
        name = self.spec.name
        part = part_of(builder.problem(name))
        place = content_key(builder.content_of(name), part.spec.out_features, SCREENING_VERSION)
        known = builder.cache.record("screens", place) or {}
        kinds: dict[type[Method], list[Method]] = defaultdict(list)
        for method in stand_ins:
            if method != Keep() and builder.key(name, method) not in known:
                kinds[type(method)].append(method)
        for kind, methods in kinds.items():
            kind.prepare(part, [stand_ins[method] for method in methods])
            for method in methods:
                fit = judge(part, stand_ins[method].build(part))
                known[builder.key(name, method)] = fit.loss_increase
            builder.cache.keep_record("screens", place, known)
        loss_increases = {method: known.get(builder.key(name, method), 0.0) for method in stand_ins}
        target = builder.workbench.inventory.target
        options = {
            method: Option.of(
                used, part.spec, {"loss_increase": loss_increases[method], "cosine": 1.0}, target
            )
            for method, used in stand_ins.items()
        }
        return _sampled(part, options, frozenset(set(self.wanted) - set(stand_ins)))


@dataclass(frozen=True)
class _Predicting:
    """Predicts the menu of a matrix from samples: a ``LayerWork``.

    Attributes:
        spec: the matrix.
        fitted: what is fitted all the same.
        left: what is predicted.
        samples: what to predict from.
    """

    spec: LayerSpec
    fitted: tuple[Method, ...]
    left: tuple[Method, ...]
    samples: tuple[_Sample, ...]

    def done_with(self, builder: LayerBuilder) -> LayerMenu:
        """See ``LayerWork``."""
        fits = fit_layer(builder, self.spec, self.fitted)
        expected = _expected(builder, self.spec, self.left, self.samples)
        return LayerMenu.of(self.spec, [*fits.values(), *expected.values()])


def describe_fits(menu: Menu) -> str:
    """Say in a sentence or two what of a menu was fitted, what was not and why, and how well."""
    fitted, left = menu.count(State.FITTED), menu.count(State.LEFT_OUT)
    said = f"Fitted {fitted:,} of {menu.options:,} options"
    if left:
        said += (
            f"; {left:,} were left out, as others at their bytes lose clearly less on similar "
            "matrices"
        )
    if predicted := menu.count(State.PREDICTED):
        said += f"; {predicted:,} were taken by no plan"
    errors = [
        abs(math.log(option.loss_increase / option.predicted))
        for layer in menu.layers
        for option in layer.options
        if option.state is State.FITTED and option.predicted and option.loss_increase > 0
    ]
    if errors:
        off = math.expm1(statistics.median(errors))
        said += f". What was predicted of those fitted later was off by {off:.0%} in the median"
    return f"{said}."


def _counterparts(
    methods: Sequence[Method], offered: Sequence[Method], part: LayerSpec
) -> dict[Method, Method]:
    """What stands for each method on a part of the matrix: itself, or one of like bytes.

    Where a space offers as many settings of a method to the part as to the whole, they are alike in
    the order of their bytes.
    """
    kinds: dict[object, tuple[list[Method], list[Method]]] = defaultdict(lambda: ([], []))
    found = {}
    for index, several in enumerate((methods, offered)):
        for method in several:
            if index == 0 and method.suits(part):
                found[method] = method
            else:
                kinds[type(method), method.bits_per_element][index].append(method)
    for wanted, others in kinds.values():
        if len(wanted) == len(others):
            found |= dict(zip(wanted, others, strict=True))
    return found


def _part_spec(spec: LayerSpec) -> LayerSpec:
    """The spec of some rows of a matrix of more than about ``MOST_SAMPLED`` elements, else its."""
    if spec.parameters <= MOST_SAMPLED:
        return spec
    rows = max(1, MOST_SAMPLED // spec.in_features)
    return replace(spec, out_features=min(rows, spec.out_features), tied=(), factors=())


def part_of(problem: MatrixProblem) -> MatrixProblem:
    """The problem of some rows of a matrix, evenly spread, about ``MOST_SAMPLED`` elements."""
    spec, metric = problem.spec, problem.metric
    part = _part_spec(spec)
    rows = torch.linspace(0, spec.out_features - 1, part.out_features).long()
    terms = []
    for term in metric.terms:
        at = rows.to(term.rows.device)
        gram = term.rows[at] if term.rows.ndim == 1 else term.rows[at][:, at]
        terms.append(Curvature(gram, term.columns, term.tokens))
    weight = problem.weight[rows.to(problem.weight.device)]
    bias = None if problem.bias is None else problem.bias[rows.to(problem.bias.device)]
    return MatrixProblem(part, weight, Metric(tuple(terms)), bias)


def _depth(spec: LayerSpec) -> int:
    return -1 if spec.depth is None else spec.depth


def _sampled(
    problem: MatrixProblem, fits: Mapping[Method, Option], hopeless: frozenset[Method]
) -> _Sample:
    """Compare fits with what was to be expected of them."""
    expected = _expectations(problem, fits)
    ratios = {
        method: math.log(option.loss_increase / expected[method])
        for method, option in fits.items()
        if option.loss_increase > 0 and expected[method] > 0
    }
    excess = _excess(list(fits.values()))
    beyond = {method for method, option in fits.items() if excess[option] > HOPELESS}
    return _Sample(_depth(problem.spec), ratios, hopeless | beyond)


def _expectations(problem: MatrixProblem, methods: Iterable[Method]) -> dict[Method, float]:
    """What is to be expected of each method without a fit, up to a factor."""
    common = COMMON.expected_loss_increase(problem)
    found: dict[Method, float] = {}
    for method in methods:
        expected = None if method == Keep() else method.expected_loss_increase(problem)
        found[method] = common if expected is None else expected
    return found


def _expected(
    builder: LayerBuilder,
    spec: LayerSpec,
    methods: Sequence[Method],
    samples: Sequence[_Sample],
) -> dict[Method, Option]:
    if not methods:
        return {}
    problem, target = builder.problem(spec.name), builder.workbench.inventory.target
    seen = problem if spec.parameters <= MOST_SAMPLED else part_of(problem)
    expectations = _expectations(seen, methods)
    share = 1.0 if seen is problem else _row_energy(problem) / _row_energy(seen)
    return {
        method: Option.expected(
            method,
            spec,
            share * expectations[method] * math.exp(_ratio(method, _depth(spec), samples)),
            target,
        )
        for method in methods
    }


def _row_energy(problem: MatrixProblem) -> float:
    """What the rows weigh in the metric, as loss increases of parts are to those of the whole."""
    rows = problem.metric.rows.to(problem.weight32)
    weights = rows if rows.ndim == 1 else rows.diagonal()
    return float(weights @ problem.weight32.square().sum(1)) or 1.0


def _ratio(method: Method, depth: int, samples: Sequence[_Sample]) -> float:
    """Logarithm of loss increase over expectation at a depth, linear between samples."""
    seen = sorted((s.depth, s.ratios[method]) for s in samples if method in s.ratios)
    if not seen:
        return 0.0
    depths, ratios = zip(*seen, strict=True)
    return float(np.interp(depth, depths, ratios))


def _margins(samples: Sequence[_Sample]) -> dict[Method, float]:
    """How far above the hull an option may be predicted before it is left out, by method.

    Where there is one sample nothing is known of the spread, and the margin is the most. What no
    sample could be taken of is always left out.
    """
    ratios: dict[Method, list[float]] = defaultdict(list)
    for sample in samples:
        for method, ratio in sample.ratios.items():
            ratios[method].append(ratio)
    unknown = frozenset[Method]().union(*(sample.hopeless for sample in samples)) - set(ratios)
    return dict.fromkeys(unknown, 0.0) | {
        method: min(max(math.exp(DEVIATIONS * statistics.stdev(seen)), LEAST_MARGIN), MOST_MARGIN)
        for method, seen in ratios.items()
        if len(seen) > 1
    }


def _without_hopeless(layer: LayerMenu, margins: Mapping[Method, float], timed: bool) -> LayerMenu:
    """Leave out what is predicted too far above the hull of what it competes with."""
    rivals: dict[object, list[Option]] = defaultdict(list)
    for option in layer.options:
        rivals[option.method.gram_kind, option.method.name if timed else ""].append(option)
    excess: dict[Option, float] = {}
    for several in rivals.values():
        excess |= _excess(several)
    return LayerMenu.of(
        layer.spec,
        [
            replace(each, state=State.LEFT_OUT)
            if each.state is State.PREDICTED
            and excess[each] > margins.get(each.method, MOST_MARGIN)
            else each
            for each in layer.options
        ],
    )


def _excess(options: Sequence[Option]) -> dict[Option, float]:
    """Loss increase of each option over the lower hull of all at its bytes; 1 on the hull."""
    points = sorted((option.file_bytes, option.loss_increase) for option in options)
    hull: list[tuple[float, float]] = []
    for x, y in points:
        if hull and y >= hull[-1][1]:
            continue  # larger and no better
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    sizes, loss_increases = zip(*hull, strict=True)
    excess = {}
    for option in options:
        least = float(np.interp(option.file_bytes, sizes, loss_increases))
        excess[option] = option.loss_increase / least if least > 0 else math.inf
        if option.loss_increase <= least:
            excess[option] = 1.0
    return excess


def _turns_up(
    first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Whether the middle one of three points is on or above the line between the others."""
    (x0, y0), (x1, y1), (x2, y2) = first, middle, last
    return (y1 - y0) * (x2 - x0) >= (y2 - y0) * (x1 - x0)
