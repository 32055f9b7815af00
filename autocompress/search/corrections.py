"""How far the prediction of each layer's damage is off, measured inside a compressed model.

The second-order prediction is made around the dense model, one matrix at a time. Near a budget the
other matrices are compressed as well, and damages are neither small nor additive. So a plan near
the budget is scored with each layer in turn put back to dense: what the divergence falls by is what
that layer costs there, and its ratio to the prediction corrects all of the layer's options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from autocompress.calibration.cache import Cache, content_key, tensor_key
from autocompress.calibration.menu import Menu
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import Evaluator, ScoredText

LARGEST_CORRECTION = 4.0  # either way: a ratio of two small numbers is not to be trusted further
CORRECTIONS_VERSION = 1


def measure_corrections(
    evaluator: Evaluator,
    menu: Menu,
    plan: Plan,
    text: ScoredText,
    cache: Cache,
    address: Callable[[str, Method], str],
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Measure the ratio of true to predicted damage of each layer, inside a compressed model.

    Args:
        evaluator: measures plans.
        menu: has the predictions.
        plan: the compressed model that the layers are put back into, one near the budget.
        text: what to score on; neither the selection nor the report text.
        cache: keeps each measurement, so that an interrupted run goes on.
        address: hash of all that a built layer depends on.
        progress: told how far things are.

    Returns:
        Factor by layer name; layers that the plan keeps, or whose ratio cannot be told, are absent.
    """
    changed = [name for name, method in plan.items() if method != Keep()]
    layers = [address(name, plan[name]) for name in changed]
    place = content_key(layers, tensor_key(text.windows.ids), CORRECTIONS_VERSION)
    known: dict[str, float] = cache.record("corrections", place) or {}
    with progress.task("Measuring layers inside a compressed model", len(changed)) as advance:
        advance(len(known))
        whole = None
        for name in changed:
            if name in known:
                continue
            whole = evaluator.divergence(plan, text) if whole is None else whole
            without = Plan.of({layer: plan[layer] for layer in plan if layer != name})
            known[name] = whole - evaluator.divergence(without, text)
            if not math.isfinite(known[name]):
                return {}
            cache.keep_record("corrections", place, known)
            advance(1)
    return ratios(known, {name: _predicted(menu, name, plan) for name in changed})


def ratios(measured: Mapping[str, float], predicted: Mapping[str, float]) -> dict[str, float]:
    """Divide measured by predicted damages, relative to their totals, within bounds.

    What all layers are off by alike changes no allocation, so it is taken out.
    """
    total_measured, total_predicted = sum(measured.values()), sum(predicted.values())
    if not (0 < total_measured < math.inf and 0 < total_predicted < math.inf):
        return {}
    scale = total_predicted / total_measured
    return {
        name: min(max(scale * value / predicted[name], 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
        for name, value in measured.items()
        if predicted[name] > 0
    }


def _predicted(menu: Menu, name: str, plan: Plan) -> float:
    return next(o.damage for o in menu[name].options if o.method == plan[name])
