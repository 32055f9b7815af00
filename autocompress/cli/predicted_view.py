"""A plan for a new budget from a finished study, as people read it, and what to type next."""

from __future__ import annotations

import math
import shlex

from rich.console import Console

from autocompress.api.predicting import PredictedPlan
from autocompress.errors import BudgetUnreachable, StudyError
from autocompress.judging.against_dense import describe
from autocompress.judging.picking import pick
from autocompress.paths import shown
from autocompress.units import format_bytes


def print_predicted(predicted: PredictedPlan, console: Console) -> None:
    """Print what is predicted, the best measured trial as small, and how to measure the plan."""
    study, prediction = predicted.study, predicted.prediction
    size = f"{format_bytes(prediction.bytes)} ({predicted.ratio:.3g}x)"
    lines = [
        f"Study {study.name}: {shown(study.model)}",
        f"  allocated  {size}: {prediction.plan.summary()}",
        f"  predicted  {_expected(predicted)}",
        f"  measured   {_measured(predicted)}",
        f"  recipe     {predicted.recipe}",
        "",
        "Next, to measure and export it:",
        f"  {_next_command(predicted)}",
    ]
    if study.limits.latency_ms is not None:
        lines.insert(1, "  (by bytes alone: the study's limit of latency is not looked at)")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _expected(predicted: PredictedPlan) -> str:
    study, prediction = predicted.study, predicted.prediction
    if prediction.kl is None or prediction.rise is None:
        return "nothing: the study has no measured trial to go by"
    perplexity = study.dense_report.perplexity * math.exp(prediction.rise)
    about = "more than" if prediction.beyond else "about"
    return (
        f"perplexity {about} {perplexity:.3g} (a rise of {about} {prediction.rise:.2g}), "
        f"KL {about} {prediction.kl:.2g}, from {prediction.trials} measured trials; not measured "
        "yet"
    )


def _measured(predicted: PredictedPlan) -> str:
    try:
        best = pick(predicted.study, max_bytes=predicted.prediction.bytes)
    except (BudgetUnreachable, StudyError):
        return "no trial as small meets the study's targets"
    return f"the best trial as small is {describe(predicted.study, best)}"


def _next_command(predicted: PredictedPlan) -> str:
    study = predicted.study
    out = shlex.quote(f"{study.name}-{predicted.ratio:.3g}x")
    recipe = shlex.quote(str(predicted.recipe))
    model = shlex.quote(shown(study.model))
    return f"autocompress compress {model} --recipe {recipe} --out {out}"
