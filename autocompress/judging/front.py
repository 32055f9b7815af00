"""The front of a study: the trials worth choosing from, and what the search gained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.judging.against_dense import dense_on, increase, latency_ratio, meets, targets_of
from autocompress.judging.bootstrap import Interval, increase_interval, loss_interval
from autocompress.judging.dominance import (
    divergence,
    knee_of,
    latency,
    non_dominated,
    ranking_loss,
    selection_loss,
)
from autocompress.judging.hypervolume import hypervolume, hypervolume_series, reference_increase
from autocompress.judging.picking import best_or_none, nearest_to_the_limits, pick
from autocompress.records import Measurement
from autocompress.studies.study import StudyRecord, TrialRecord

__all__ = [
    "Gain",
    "best_and_rival",
    "finalists",
    "front_of",
    "front_to_dict",
    "gain_over_baseline",
    "hypervolume",
    "pick",
]


def front_of(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The non-dominated complete trials, by bytes.

    Dominance is decided on the selection text, which every trial was measured on, never on a
    mixture of texts; ``dominance.dominates`` states the rule. It goes by divergence from the dense
    model: the loss need not fall from one member to the next larger one.
    """
    return non_dominated(study.complete)


def finalists(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The trials to measure on the report text: front, best, and the uniform baseline to beat."""
    return _each_once((*front_of(study), *best_and_rival(study)))


def best_and_rival(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The best trial within the limits, and the uniform baseline to beat where it is another."""
    best = best_or_none(study)
    pair = (best, best and baseline_rival(study, best))
    return _each_once([trial for trial in pair if trial is not None])


def _each_once(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """By bytes; of those that are the same model the first."""
    unique = {trial.key: trial for trial in reversed(trials)}
    return tuple(sorted(unique.values(), key=lambda trial: trial.bytes))


@dataclass(frozen=True)
class Gain:
    """What the search gained over the plans that a person would have written.

    Attributes:
        best: the best trial within the limits.
        baseline: the best uniform baseline within the same bytes.
        best_increase: increase of the loss of the best.
        baseline_increase: the same of the uniform baseline, on the same text.
        text: the text both were measured on.
        interval: of ``best_increase``; ``None`` where ``bootstrap.increase_interval`` has none.
        difference_interval: of what the uniform baseline loses more, made in pairs.
    """

    best: TrialRecord
    baseline: TrialRecord
    best_increase: float
    baseline_increase: float
    text: str
    interval: Interval | None = None
    difference_interval: Interval | None = None

    @property
    def difference(self) -> float:
        """What the uniform baseline loses more than the best."""
        return self.baseline_increase - self.best_increase

    @property
    def share(self) -> float:
        """The best's increase as a share of the uniform baseline's: 0.7 avoids 30 % of it."""
        return (
            self.best_increase / self.baseline_increase if self.baseline_increase > 0 else math.nan
        )


def baseline_rival(study: StudyRecord, best: TrialRecord) -> TrialRecord | None:
    """The uniform baseline that ranks first of those that fit where ``best`` had to fit.

    A trained plan is compared with trained ones, where there are any; refitting is no training.
    Under a target of quality it is the smallest uniform baseline that keeps it.
    """
    kept = study.limits.asks_quality
    room = max(best.bytes, study.limits.memory_bytes or 0) if meets(study, best) else best.bytes
    fitting = [
        trial
        for trial in study.complete
        if trial.baselines
        and (meets(study, trial) if kept else trial.bytes <= room)
        and math.isfinite(selection_loss(trial))
    ]
    trained = [trial for trial in fitting if _is_trained(trial)]
    if trained and _is_trained(best):
        fitting = trained
    elif best.healing is None:
        fitting = [trial for trial in fitting if trial.healing is None]
    else:
        fitting = [trial for trial in fitting if not _is_trained(trial)]
    loss = ranking_loss(fitting)
    ranks = (lambda t: (t.bytes, loss(t))) if kept else (lambda t: (loss(t), t.bytes))
    return min(fitting, key=ranks, default=None)


def _is_trained(trial: TrialRecord) -> bool:
    return trial.healing is not None and trial.healing.trained


def gain_over_baseline(study: StudyRecord) -> Gain | None:
    """Compare the best trial with the best uniform baseline in its bytes, if there are both.

    On the report text when both were measured on it, else on the selection text.
    """
    best = best_or_none(study)
    rival = best and baseline_rival(study, best)
    if best is None or rival is None:
        return None
    final = best.report is not None and rival.report is not None
    ours = best.report if final else best.selection
    theirs = rival.report if final else rival.selection
    if ours is None or theirs is None:
        return None
    dense = dense_on(study, ours).loss
    return Gain(
        best,
        rival,
        ours.loss - dense,
        theirs.loss - dense,
        ours.text,
        increase_interval(study, best) if final else None,
        loss_interval(rival, best),
    )


def front_to_dict(study: StudyRecord) -> dict[str, Any]:
    """Put study, dense model, best trial and front into one mapping that JSON can hold.

    Points are measured on the report text; one that was not has ``text: selection``. ``best`` is
    ``null`` when no trial meets all targets, and ``nearest`` is then the one that misses them by
    the least share; ``knee`` is ``null`` when none was measured.
    """
    front, best = front_of(study), best_or_none(study)
    gain = gain_over_baseline(study)
    near = nearest_to_the_limits(study) if best is None else None
    return {
        "study": study.name,
        "folder": str(study.folder),
        "model": study.model,
        "budget": {
            "memory_bytes": study.limits.memory_bytes,
            "latency_ms": study.limits.latency_ms,
            "log_perplexity_increase": study.limits.log_perplexity_increase,
            "cosine": study.limits.cosine,
        },
        "begin_token": study.identity.get("begin_token"),
        "dense": _dense(study),
        "best": None if best is None else point_to_dict(study, best),
        "nearest": None if near is None else point_to_dict(study, near),
        "knee": point_to_dict(study, knee_of(front)) if front else None,
        "front": [point_to_dict(study, trial) for trial in front],
        "skipped": [vars(matrix) for matrix in study.skipped],
        "unreached": [vars(matrix) for matrix in study.unreached],
        "latency_table": study.relation and study.relation.to_dict(),
        "trials": {
            state: sum(trial.state == state for trial in study.trials) for state in _states(study)
        },
        "hypervolume": hypervolume(study),
        "hypervolume_reference": {
            "bytes": study.dense_bytes,
            "increase": reference_increase(study),
        },
        "hypervolume_series": [step._asdict() for step in hypervolume_series(study)],
        "gain": None if gain is None else _gain_to_dict(gain),
    }


def _gain_to_dict(gain: Gain) -> dict[str, Any]:
    return {
        "best": gain.best.number,
        "best_bytes": gain.best.bytes,
        "baseline": gain.baseline.number,
        "baseline_bytes": gain.baseline.bytes,
        "best_increase": finite(gain.best_increase),
        "best_increase_interval": _ends(gain.interval),
        "baseline_increase": finite(gain.baseline_increase),
        "difference": finite(gain.difference),
        "difference_interval": _ends(gain.difference_interval),
        "share": finite(gain.share),
        "text": gain.text,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _states(study: StudyRecord) -> list[str]:
    return sorted({"complete", *(trial.state for trial in study.trials)})


def _dense(study: StudyRecord) -> dict[str, Any]:
    report = study.dense_report
    return study.gauge.named(
        {
            "figure": report.figure,
            "bytes": study.dense_bytes,
            "bytes_bf16": study.dense_bf16_bytes,
            "parameters": sum(spec.parameters for spec in study.specs),
            "latency_ms": _first_latency(report, study.dense_selection),
            "prefill_ms": study.dense_selection.prefill_ms,
            "tokens": report.tokens,
            "text": report.text,
            "selection_figure": study.dense_selection.figure,
            "device": report.device,
        }
    )


def _first_latency(*measurements: Measurement) -> float | None:
    return next((each.latency_ms for each in measurements if each.latency_ms is not None), None)


def point_to_dict(study: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    """One measured trial as a plain mapping, its recipe included.

    ``increase_interval`` is the 95 % interval of the increase on the report text, or ``null``;
    Figure and divergence stand under the names of the study's gauge. The divergence on the
    selection text is what trials are ranked by; ``parameters`` are those of the matrices.
    """
    gauge, healing = study.gauge, trial.healing
    shown = trial.measurement
    return {
        "trial": trial.number,
        "label": trial.label,
        "phase": trial.phase,
        "baseline": trial.baselines,
        "healing": healing and gauge.named(healing.to_dict()),
        gauge.figure: None if shown is None else finite(shown.figure),
        "increase": finite(increase(study, trial)),
        "increase_interval": _ends(increase_interval(study, trial)),
        **gauge.named(
            {
                "divergence": None if shown is None else finite(shown.divergence),
                "selection_divergence": finite(divergence(trial)),
            }
        ),
        "cosine": None if shown is None else shown.cosine,
        "text": None if shown is None else shown.text,
        "tokens": None if shown is None else shown.tokens,
        "bytes": trial.bytes,
        "ratio": study.dense_bytes / trial.bytes,
        "ratio_bf16": study.dense_bf16_bytes / trial.bytes,
        "parameters": trial.plan.parameters(study.specs),
        "latency_ms": latency(trial),
        "latency_ratio": latency_ratio(study, trial),
        "prefill_ms": trial.selection and trial.selection.prefill_ms,
        "meets_budget": meets(study, trial),
        "targets": [verdict.to_dict() for verdict in targets_of(study, trial)],
        "plan_hash": trial.plan.hash,
        "recipe": trial.plan.to_recipe(),
    }


def finite(number: float) -> float | None:
    """The number, or ``None`` for NaN and infinity, which JSON has no words for."""
    return number if math.isfinite(number) else None
