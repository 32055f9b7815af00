"""What is told of studies and trials: names, parameters, metrics and tags, without a tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autocompress.judging.against_dense import (
    dense_on,
    describe,
    increase,
    latency_ratio,
    meets,
    targets_of,
)
from autocompress.judging.bootstrap import increase_interval
from autocompress.judging.dominance import latency
from autocompress.judging.front import front_of, front_to_dict, gain_over_baseline
from autocompress.judging.method_report import report_methods
from autocompress.judging.method_rivals import stored_offers
from autocompress.judging.picking import best_or_none, nearest_to_the_limits
from autocompress.judging.recipe_summary import bits_per_weight, methods_by_role
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.units import format_bytes

LONGEST_PARAMETER = 500
TAG = "autocompress."
TABLE_COLUMNS = (
    "trial", "label", "phase", "figure", "increase", "increase_interval", "divergence", "bytes",
    "ratio", "ratio_bf16", "parameters", "latency_ms", "latency_ratio", "meets_budget", "text",
    "methods",
)  # fmt: skip


@dataclass(frozen=True)
class RunData:
    """One run as a tracker stores it."""

    name: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def study_data(study: StudyRecord) -> RunData:
    """The parent run: settings, the dense model, the limits."""
    params = {
        "model": study.model,
        "fingerprint": study.fingerprint,
        "matrices": str(len(study.specs)),
        "skipped": str(len(study.skipped)),
        "limit_bytes": str(study.limits.memory_bytes),
        "limit_latency_ms": str(study.limits.latency_ms),
        "limit_log_perplexity_increase": str(study.limits.log_perplexity_increase),
        "limit_cosine": str(study.limits.cosine),
    }
    dense = {
        "dense_figure": study.dense_report.figure,
        "dense_selection_figure": study.dense_selection.figure,
        "dense_bytes": study.dense_bytes,
        "dense_bytes_bf16": study.dense_bf16_bytes,
        "dense_latency_ms": study.dense_report.latency_ms or study.dense_selection.latency_ms,
    }
    tags = {TAG + "study": study.name, TAG + "role": "study", TAG + "model": study.model}
    return RunData(
        study.name,
        _short(_flat(study.each_setting) | params),
        _numbers(study.gauge.named(dense)),
        tags,
    )


def trial_data(study: StudyRecord, trial: TrialRecord) -> RunData:
    """A child run: what was proposed and what was measured."""
    params = {
        "label": trial.label,
        "phase": trial.phase,
        "methods": trial.plan.summary(),
        "plan_hash": trial.plan.hash,
        **{f"knob.{key}": str(value) for key, value in _flat(trial.params).items()},
        **{
            f"role.{role}": methods
            for role, methods in methods_by_role(study.specs, trial.plan).items()
        },
        **_healing_params(trial),
    }
    metrics: dict[str, float | None] = {
        "bytes": trial.bytes,
        "ratio": study.dense_bytes / trial.bytes,
        "bits_per_weight": bits_per_weight(study.specs, trial.plan),
        "parameters": trial.plan.parameters(study.specs),
        "seconds": trial.seconds,
    }
    if trial.selection is not None:
        metrics |= measurement_metrics(study, trial.selection, "") | {
            "latency_ms": latency(trial),
            "latency_ratio": latency_ratio(study, trial),
            "prefill_ms": trial.selection.prefill_ms,
        }
    tags = {
        TAG + "study": study.name,
        TAG + "role": "trial",
        TAG + "trial": str(trial.number),
        TAG + "phase": trial.phase,
        TAG + "state": trial.state,
        TAG + "meets_budget": "yes" if trial.state == "complete" and meets(study, trial) else "no",
    }
    if trial.error:
        tags[TAG + "error"] = trial.error[:LONGEST_PARAMETER]
    return RunData(f"{trial.number:03d} {trial.label}", _short(params), _numbers(metrics), tags)


def _healing_params(trial: TrialRecord) -> dict[str, str]:
    """How the weights of a healed trial were trained, without the curve."""
    if trial.healing is None:
        return {}
    known = {key: value for key, value in trial.healing.to_dict().items() if key != "checks"}
    return _flat(known, "healing.")


def measurement_metrics(
    study: StudyRecord, measured: Measurement, prefix: str
) -> dict[str, float | None]:
    """The figure, the increase of the loss and the divergence, named by gauge and text.

    The selection text has no prefix, the report text ``report_``.
    """
    return study.gauge.named(
        {
            f"{prefix}figure": measured.figure,
            f"{prefix}increase": measured.loss - dense_on(study, measured).loss,
            f"{prefix}divergence": measured.divergence,
            f"{prefix}cosine": measured.cosine,
        }
    )


def report_metrics(study: StudyRecord, trial: TrialRecord) -> dict[str, float]:
    """What the final measurement adds to a child run, the interval of its increase included."""
    if trial.report is None:
        return {}
    interval = increase_interval(study, trial)
    ends = {} if interval is None else interval._asdict()
    return _numbers(
        measurement_metrics(study, trial.report, "report_")
        | {f"report_increase_{end}": value for end, value in ends.items()}
    )


def place_tags(study: StudyRecord) -> dict[int, dict[str, str]]:
    """Per trial, whether it is on the front and whether it is the best."""
    members = {trial.number for trial in front_of(study)}
    best = best_or_none(study)
    return {
        trial.number: {
            TAG + "front": "yes" if trial.number in members else "no",
            TAG + "best": "yes" if best is not None and trial.number == best.number else "no",
        }
        for trial in study.complete
    }


def front_table(study: StudyRecord) -> dict[str, list[Any]]:
    """The front by columns, without the recipes."""
    points = front_to_dict(study)["front"]
    plans = {trial.number: trial.plan for trial in study.complete}
    for point in points:
        point["methods"] = plans[point["trial"]].summary()
    columns = study.gauge.named(dict.fromkeys(TABLE_COLUMNS))
    return {column: [point[column] for point in points] for column in columns}


def methods_table(study: StudyRecord) -> dict[str, list[Any]]:
    """What each method is good for, by columns; see ``MethodReport``."""
    reports = report_methods(study, stored_offers(study))
    rows = [
        {
            "method": report.label,
            "front_plans": len(report.uses),
            "least_ratio": min((use.ratio for use in report.uses), default=None),
            "most_ratio": max((use.ratio for use in report.uses), default=None),
            "bytes_share": report.share,
            "options": report.options,
            "fitted_options": report.fitted_options,
            "beaten_options": report.beaten_options,
            "unbeaten_matrices": report.unbeaten_matrices,
            "matrices": report.matrices,
            "beaten_by": ", ".join(f"{rival.label} {rival.factor:.3g}x" for rival in report.rivals),
            "beaten_plans": ", ".join(
                f"{plan.label} by trial {plan.by}" for plan in report.beaten_plans
            ),
        }
        for report in reports
    ]
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}


def split_table(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """The form in which MLflow's ``log_table`` stores a table.

    That function appends, which doubles a resumed study.
    """
    return {
        "columns": list(columns),
        "data": [list(row) for row in zip(*columns.values(), strict=True)],
    }


def describe_study(study: StudyRecord) -> str:
    """A few lines of Markdown that a person meets first."""
    lines = [
        f"**{study.model}**: {format_bytes(study.dense_bytes)}, "
        f"{study.gauge.shown(study.dense_report.figure)}."
    ]
    best, gain = best_or_none(study), gain_over_baseline(study)
    if best is not None and best.measurement is not None:
        lines.append(
            f"Best that meets every target: trial {best.number} ({best.label}), "
            f"{format_bytes(best.bytes)} ({study.dense_bytes / best.bytes:.3g}x), "
            f"{study.gauge.shown(best.measurement.figure)} "
            f"({increase(study, best):+.4f} {study.gauge.unit}, {best.measurement.text} text)."
        )
    near = nearest_to_the_limits(study) if best is None else best
    if near is not None:
        if best is None and not study.limits.unlimited:
            lines.append(f"No trial meets every target. The nearest is {describe(study, near)}.")
        lines.append("\n".join(f"- {verdict}" for verdict in targets_of(study, near)))
    if gain is not None and math.isfinite(gain.share) and not study.limits.asks_quality:
        lines.append(
            f"It loses {gain.share:.0%} of what {gain.baseline.label} loses in the same bytes."
        )
    lines.append(
        "Artifacts: `front.html` (interactive), `front.png`, `front.json`, `front_table.json`, "
        "`methods_table.json`, `best.yaml`."
    )
    return "\n\n".join(line for line in lines if line)


def recipe_yaml(plan: Plan) -> str:
    """The plan as a recipe that ``autocompress compress --recipe`` takes."""
    import yaml

    return str(yaml.safe_dump(plan.to_recipe(), sort_keys=False))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + str(key)] = json.dumps(value, default=str)
        else:
            flat[prefix + str(key)] = str(value)
    return flat


def _short(params: dict[str, str]) -> dict[str, str]:
    return {
        key: text if len(text) <= LONGEST_PARAMETER else text[: LONGEST_PARAMETER - 3] + "..."
        for key, text in params.items()
    }


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if value is not None and math.isfinite(value)
    }
