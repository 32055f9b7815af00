"""A relaxed choice of options: mixtures of forms, with a gradient and an exact knapsack each step.

Helcig and Alistarh 2026 (RCO, arXiv 2605.00649) relax the choice of an option to a softmax, descend
on the loss with gradients through it, and keep the budget exactly. Here Frank-Wolfe solves a
relaxation (Jaggi 2013, algorithm 1): every matrix is a convex mixture of its options' dense forms.
One pass forth and back gives the gradient of the divergence at the mixture. The project's exact
allocation gives the plan that the gradient points to. The mixture moves a step towards this plan. A
mixture of plans within the budget is within it, so there is no softmax, no Gumbel noise, no Adam
and no manifold.

Plain Frank-Wolfe scores an option by ``<grad, E>`` alone, where ``E`` is its error. The gradient
says little that far from the mixture. The curvature adds ``d(E - M)``, the predicted loss increase
of the difference from the error ``M`` of the mixture, so that a step minimises a second-order model
of the divergence. The result is the plan of those met that diverges least on another text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from own_search import PASSES
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.menu import Menu
from autocompress.calibration.statistics import stream_sums
from autocompress.calibration.weight_gradients import WeightGradient
from autocompress.driver.prices import divergence_of
from autocompress.driver.proposing.allocation import allocated_plan
from autocompress.driver.proposing.allocator import choices_of
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import divergence_sum
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.dense import DenseMatrix
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.surgery.dense_copies import dense_copies

Scores = dict[tuple[str, Method], float]
"""By layer name and method, in nats per token."""

OFFSET = 3  # of the steps 2 / (t + 3), t = 0, 1, ...: the first does not leave the start entirely


class Mixture:
    """A model whose matrices are convex mixtures of the dense forms of options.

    Args:
        menu: the options; those that are undominated are mixed.
        builder: makes their layers.
        start: the plan that is all of the mixture at first.

    Attributes:
        errors: the mixture less the dense matrix ``[out, in]``, in fp32, by layer name.
    """

    def __init__(self, menu: Menu, builder: LayerBuilder, start: Plan) -> None:
        self.menu = Menu(tuple(replace(each, options=each.undominated) for each in menu.layers))
        self.builder = builder
        self.errors = {name: self.error_of(name, method) for name, method in start.items()}

    def error_of(self, name: str, method: Method) -> Tensor:
        """An option less the dense matrix ``[out, in]``, in fp32."""
        dense = self.builder.problem(name).weight32
        if method == Keep():
            return torch.zeros_like(dense)
        return self.builder.build(name, method).to_dense().to(dense.device) - dense

    def move(self, plan: Plan, step: float) -> None:
        """Go a part of the way towards a plan."""
        for name, method in plan.items():
            self.errors[name].lerp_(self.error_of(name, method), step)

    def scores(self, text: ScoredText, *, curvature: bool) -> Scores:
        """Model of the divergence on a text around the mixture, option by option.

        Args:
            text: to differentiate the divergence on.
            curvature: whether the second order counts.
        """
        scores: Scores = {}

        def keep(done: Mapping[str, Sequence[WeightGradient]]) -> None:
            for name, places in done.items():
                halves = [half for place in places for half in place.halves if half is not None]
                gradient = sum(halves, torch.zeros(())) / text.windows.tokens
                scores.update(self._layer_scores(name, gradient, curvature))

        # Any method but keep serves: ``_build`` makes the mixture of it.
        plan = Plan.of({each.spec.name: each.options[0].method for each in self.menu.layers})
        workbench, batches = self.builder.workbench, list(text.windows)
        with workbench.applied(plan, self._build) as model, dense_copies(model):
            stream_sums(
                model,
                [layer.spec for layer in self.menu.layers],
                WeightGradient,
                [window[None] for window in batches],
                keep,
                _Divergence(text),
                folder=self.builder.cache.root,
            )
        return scores

    def _layer_scores(self, name: str, gradient: Tensor, curvature: bool) -> Scores:
        metric, mixed = self.builder.problem(name).metric, self.errors[name]
        scores = {}
        for option in self.menu[name].options:
            error = self.error_of(name, option.method)
            score = float((gradient * error).sum())
            score += metric.loss_increase(error - mixed) if curvature else 0.0
            scores[name, option.method] = score
        return scores

    def _build(self, name: str, _method: Method) -> CompressedMatrix:
        """The mixture of a matrix as a layer."""
        problem = self.builder.problem(name)
        biased = problem.bias is not None
        layer = DenseMatrix(*problem.spec.shape, bias=biased, dtype=torch.float32)
        tensors = {"weight": problem.weight32 + self.errors[name]}
        if problem.bias is not None:
            tensors["bias"] = problem.bias.float()
        layer.load_state_dict(tensors, assign=True)
        return layer.requires_grad_(False)


class _Divergence:
    """Divergence from the dense model on the windows of a text, as ``stream_sums`` asks for it."""

    def __init__(self, text: ScoredText) -> None:
        self.given, self.teacher = text.windows.given, text.teacher
        self.lengths = [len(window) for window in text.windows]
        predicted = (length - self.given for length in self.lengths)
        self.starts = list(accumulate(predicted, initial=0))

    def __call__(self, batch: int, start: int, logits: Tensor) -> Tensor | None:
        """Sum over some rows of a window; what given tokens and the last one predict is left out.

        Args:
            batch: number of the window.
            start: number of the first row.
            logits: ``[m, vocabulary]``.
        """
        row = start - (self.given - 1)
        predicting = logits[max(-row, 0) : max(self.lengths[batch] - 1 - start, 0)]
        if not len(predicting):
            return None
        return divergence_sum(self.teacher, self.starts[batch] + max(row, 0), predicting)


class RelaxedChoice:
    """Chooses options by Frank-Wolfe on mixtures of their forms.

    Args:
        menu: the options; those that are undominated are chosen from.
        builder: makes layers.
        room: bytes for all matrices.
        texts: what to differentiate the divergence on, in turn.
        check: another text, that plans are judged on.
        curvature: whether the second order counts.

    Attributes:
        tokens: passed so far, in forward passes.
    """

    def __init__(
        self,
        menu: Menu,
        builder: LayerBuilder,
        room: int,
        texts: Sequence[ScoredText],
        check: ScoredText,
        *,
        curvature: bool = True,
    ) -> None:
        self.menu, self.builder, self.room = menu, builder, room
        self.texts, self.check, self.curvature = texts, check, curvature
        self.tokens = 0

    def choose(self, start: Plan, steps: int, progress: Progress = SILENT) -> Plan:
        """Take some steps from a plan; the plan that diverges least of those that were met."""
        mixture = Mixture(self.menu, self.builder, start)
        divergences = {start: self._divergence(start)}
        with progress.task("Relaxed choice (steps)", steps) as advance:
            for number in range(steps):
                text = self.texts[number % len(self.texts)]
                scores = mixture.scores(text, curvature=self.curvature)
                self.tokens += PASSES * len(text.windows.ids)
                plan = self._allocated(mixture.menu, scores)
                if plan not in divergences:
                    divergences[plan] = self._divergence(plan)
                mixture.move(plan, 2 / (number + OFFSET))
                advance(1)
        return min(divergences, key=divergences.__getitem__)

    def _divergence(self, plan: Plan) -> float:
        self.tokens += len(self.check.windows.ids)
        return divergence_of(plan, self.builder, self.check)

    def _allocated(self, menu: Menu, scores: Scores) -> Plan:
        """The plan of least score; the solver's gap is relative to scores above zero."""
        least = {
            layer.spec.name: min(scores[layer.spec.name, o.method] for o in layer.options)
            for layer in menu.layers
        }
        choices = choices_of(
            menu, lambda layer, o: scores[layer.spec.name, o.method] - least[layer.spec.name]
        )
        return allocated_plan(menu, choices, self.room)
