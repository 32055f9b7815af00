"""What several commands print. Imports what is heavy: commands import it when they need it."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.api.predicting import PredictedPlan
from autocompress.errors import BudgetUnreachable, StudyError
from autocompress.judging.against_dense import describe
from autocompress.judging.by_role import RoleBytes
from autocompress.judging.picking import pick
from autocompress.paths import shown
from autocompress.units import format_bytes

WIDTH_OF_A_FILE = 100  # where stdout is no terminal


def print_by_role(
    roles: Sequence[RoleBytes], dense_bytes: int, stored_bytes: int, console: Console
) -> None:
    """Print a row for each role, and one for all else in the file of weights.

    Args:
        roles: the matrices.
        dense_bytes: of the whole file before.
        stored_bytes: and after.
        console: where to print.
    """
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_OF_A_FILE, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Memory by role")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("role", no_wrap=True)
    # Codes stand for all weights of their matrix; only factors are fewer.
    fewer = any(role.parameters != role.dense_parameters for role in roles)
    for heading in ("matrices", "dense", "now", "ratio", *(["parameters"] if fewer else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("stored as")
    for role in roles:
        table.add_row(
            role.role,
            f"{role.matrices:,}",
            *_bytes(role.dense_bytes, role.bytes),
            *([f"{role.parameters / role.dense_parameters:.0%}"] if fewer else []),
            Text(role.stored_as),
        )
    rest = (
        dense_bytes - sum(role.dense_bytes for role in roles),
        stored_bytes - sum(role.bytes for role in roles),
    )
    blank = [""] if fewer else []
    table.add_row("all else", "", *_bytes(*rest), *blank, "norms, buffers, header", style="dim")
    table.add_row("file", "", *_bytes(dense_bytes, stored_bytes), *blank, "", style="bold")
    console.print(table)


def _bytes(dense: int, stored: int) -> tuple[str, str, str]:
    ratio = f"{dense / stored:.2f}x" if stored else ""
    return format_bytes(dense), format_bytes(stored), ratio


WIDEST_NOTE = 100


def print_speed(speed: Mapping[str, Any], console: Console) -> None:
    """Print the figures of a model and of the dense one, their ratios, and how they were taken."""
    model, dense, ratio = speed["model"], speed["dense"], speed["ratio"] or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Speed and memory")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("")
    columns = [model] if dense is None else [model, dense]
    for figures in columns:
        table.add_column(_heading(figures, beside=figures is dense), justify="right")
    if dense is not None:
        table.add_column("ratio", justify="right")
    prompt = f"{speed['prompt_tokens']} tokens"
    for title, key in (
        ("decode, a token", "decode"),
        (f"prefill, {prompt}", "prefill"),
        (f"first token, {prompt}", "first_token"),
    ):
        cells = [_milliseconds(figures[f"{key}_ms"]) for figures in columns]
        table.add_row(*map(Text, [title, *cells, *_ratio(ratio, key)]))
    for title, key in (
        ("peak memory", "peak_memory"),
        ("  before loading", "libraries_memory"),
        ("accelerator memory", "accelerator_memory"),
        ("weights", ""),
    ):
        values = [figures.get(f"{key}_bytes" if key else "bytes") for figures in columns]
        if any(values):
            cells = [format_bytes(value) if value else "" for value in values]
            table.add_row(*map(Text, [title, *cells, *_ratio(ratio, key or "bytes")]))
    console.print(table)
    note = " ".join(_conditions(speed))
    console.print(textwrap.fill(note, min(console.width, WIDEST_NOTE)), markup=False)


def _heading(figures: Mapping[str, Any], *, beside: bool) -> Text:
    kind = "compressed" if figures["exported"] else "dense" if beside else "model"
    return Text(f"{kind}, {figures['dtype']}")


def _milliseconds(latency: Mapping[str, float]) -> str:
    return f"{latency['median_ms']:.3g} ± {latency['spread_ms']:.2g} ms"


def _ratio(ratio: Mapping[str, float], key: str) -> list[str]:
    """The cell of a row's ratio, where there is such a column."""
    if not ratio:
        return []
    return [f"{ratio[key]:.2f}x" if key in ratio else ""]


def _conditions(speed: Mapping[str, Any]) -> list[str]:
    """How the figures were taken, in sentences."""
    turns = " in turn with the dense model" if speed["dense"] else ""
    lines = [
        f"On {speed['device']}, one sequence: medians ± half the interquartile range of "
        f"{speed['rounds']} rounds{turns}, {speed['decode_tokens']} tokens decoded after a prompt "
        f"of {speed['decode_prompt_tokens']}.",
        "The first token is that of model.generate.",
    ]
    if speed["model"].get("peak_memory_bytes"):
        lines.append(
            "Peak memory is the resident memory of a fresh process that loads one model alone and "
            "does the same; the libraries hold part of it before the model is loaded."
        )
    if speed["ratio"]:
        lines.append(f"Ratios are multiples of {speed['dense']['model']}.")
    return lines


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
    if prediction.divergence is None or prediction.increase is None:
        return "nothing: the study has no measured trial to go by"
    gauge = study.gauge
    figure = gauge.figure_of(study.dense_report.loss + prediction.increase)
    about = "more than" if prediction.beyond else "about"
    return (
        f"{gauge.figure} {about} {figure:.3g} (an increase of {about} {prediction.increase:.2g}), "
        f"{gauge.divergence} {about} {prediction.divergence:.2g}, from {prediction.trials} "
        "measured trials; not measured yet"
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
