"""The front as one plain object for ``--json`` and for MLflow."""

from __future__ import annotations

import math
from typing import Any

from autocompress.records import Measurement
from autocompress.search.dominance import knee_of, latency
from autocompress.search.front import (
    HAND_WRITTEN,
    best_or_none,
    front_of,
    gain_over_hand_written,
    hypervolume,
    meets,
    rise,
)
from autocompress.search.study import StudyRecord, TrialRecord


def front_to_dict(study: StudyRecord) -> dict[str, Any]:
    """Put study, dense model, best trial and front into one mapping that JSON can hold.

    Points are measured on the report text; one that was not has ``text: selection``. ``best`` and ``knee`` are ``null``
    when no trial meets the limits, or none was measured.
    """
    front, best = front_of(study), best_or_none(study)
    gain = gain_over_hand_written(study)
    return {
        "study": study.name,
        "folder": str(study.folder),
        "model": study.model,
        "budget": {"memory_bytes": study.limits.memory_bytes, "latency_ms": study.limits.latency_ms},
        "dense": _dense(study),
        "best": None if best is None else point_to_dict(study, best),
        "knee": point_to_dict(study, knee_of(front)) if front else None,
        "front": [point_to_dict(study, trial) for trial in front],
        "trials": {state: sum(trial.state == state for trial in study.trials) for state in _states(study)},
        "hypervolume": hypervolume(study),
        "gain": None
        if gain is None
        else {
            "best": gain.best.number,
            "hand_written": gain.hand_written.number,
            "best_rise": finite(gain.best_rise),
            "hand_written_rise": finite(gain.hand_written_rise),
            "share": finite(gain.share),
            "text": gain.text,
        },
    }


def _states(study: StudyRecord) -> list[str]:
    return sorted({"complete", *(trial.state for trial in study.trials)})


def _dense(study: StudyRecord) -> dict[str, Any]:
    report = study.dense_report
    return {
        "perplexity": report.perplexity,
        "bytes": study.dense_bytes,
        "bytes_bf16": study.dense_bf16_bytes,
        "latency_ms": _first_latency(report, study.dense_selection),
        "tokens": report.tokens,
        "text": report.text,
        "selection_perplexity": study.dense_selection.perplexity,
        "device": report.device,
    }


def _first_latency(*measurements: Measurement) -> float | None:
    return next((each.latency_ms for each in measurements if each.latency_ms is not None), None)


def point_to_dict(study: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    """One measured trial as a plain mapping, its recipe included."""
    shown = trial.measurement
    return {
        "trial": trial.number,
        "label": trial.label,
        "phase": trial.phase,
        "hand_written": trial.phase == HAND_WRITTEN,
        "perplexity": None if shown is None else finite(shown.perplexity),
        "rise": finite(rise(study, trial)),
        "kl": None if shown is None else finite(shown.kl),
        "text": None if shown is None else shown.text,
        "tokens": None if shown is None else shown.tokens,
        "bytes": trial.bytes,
        "ratio": study.dense_bytes / trial.bytes,
        "ratio_bf16": study.dense_bf16_bytes / trial.bytes,
        "latency_ms": latency(trial),
        "meets_budget": meets(study.limits, trial),
        "plan_hash": trial.plan.hash,
        "recipe": trial.plan.to_recipe(),
    }


def finite(number: float) -> float | None:
    """The number, or ``None`` for NaN and infinity, which JSON has no words for."""
    return number if math.isfinite(number) else None
