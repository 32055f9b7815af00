"""The front of a study: the trials worth choosing from, and what the search gained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.judging.against_dense import dense_on, latency_ratio, meets, rise, targets_of
from autocompress.judging.bootstrap import Interval, loss_interval, rise_interval
from autocompress.judging.dominance import (
    divergence,
    knee_of,
    latency,
    non_dominated,
    ranking_loss,
    selection_loss,
)
from autocompress.judging.hypervolume import hypervolume, hypervolume_series, reference_rise
from autocompress.judging.picking import best_or_none, nearest_to_the_limits, pick
from autocompress.records import Measurement
from autocompress.studies.study import StudyRecord, TrialRecord

__all__ = [
    "Gain",
    "best_and_rival",
    "finalists",
    "front_of",
    "front_to_dict",
    "gain_over_hand_written",
    "hypervolume",
    "pick",
]


def front_of(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The non-dominated complete trials, by bytes.

    Dominance is decided on the selection text, which every trial was measured on, never on a
    mixture of texts; ``dominance.dominates`` states the rule. It goes by divergence from the dense
    model: perplexity need not fall from one member to the next larger one.
    """
    return non_dominated(study.complete)


def finalists(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The trials to measure on the report text: front, best, and the hand-written plan to beat."""
    return _each_once((*front_of(study), *best_and_rival(study)))


def best_and_rival(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The best trial within the limits, and the hand-written plan to beat where it is another."""
    best = best_or_none(study)
    pair = (best, best and hand_written_rival(study, best))
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
        hand_written: the best hand-written plan within the same bytes.
        best_rise: rise of log-perplexity of the best, in nats per token.
        hand_written_rise: the same of the hand-written plan, on the same text.
        text: the text both were measured on.
        interval: of ``best_rise``; ``None`` where ``bootstrap.rise_interval`` has none.
        difference_interval: of what the hand-written plan loses more, made in pairs.
    """

    best: TrialRecord
    hand_written: TrialRecord
    best_rise: float
    hand_written_rise: float
    text: str
    interval: Interval | None = None
    difference_interval: Interval | None = None

    @property
    def difference(self) -> float:
        """What the hand-written plan loses more than the best, in nats per token."""
        return self.hand_written_rise - self.best_rise

    @property
    def share(self) -> float:
        """The best's rise as a share of the hand-written plan's: 0.7 avoids 30 % of the damage."""
        return self.best_rise / self.hand_written_rise if self.hand_written_rise > 0 else math.nan


def hand_written_rival(study: StudyRecord, best: TrialRecord) -> TrialRecord | None:
    """The hand-written plan that ranks first of those that fit where ``best`` had to fit.

    A trained plan is compared with trained ones, where there are any; fitting anew is no training.
    Under a target of quality it is the smallest hand-written plan that keeps it.
    """
    kept = study.limits.asks_quality
    room = max(best.bytes, study.limits.memory_bytes or 0) if meets(study, best) else best.bytes
    fitting = [
        trial
        for trial in study.complete
        if trial.by_hand
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


def gain_over_hand_written(study: StudyRecord) -> Gain | None:
    """Compare the best trial with the best hand-written plan in its bytes, if there are both.

    On the report text when both were measured on it, else on the selection text.
    """
    best = best_or_none(study)
    rival = best and hand_written_rival(study, best)
    if best is None or rival is None:
        return None
    final = best.report is not None and rival.report is not None
    ours = best.report if final else best.selection
    theirs = rival.report if final else rival.selection
    if ours is None or theirs is None:
        return None
    dense = dense_on(study, ours).perplexity
    return Gain(
        best,
        rival,
        math.log(ours.perplexity / dense),
        math.log(theirs.perplexity / dense),
        ours.text,
        rise_interval(study, best) if final else None,
        loss_interval(rival, best),
    )


def front_to_dict(study: StudyRecord) -> dict[str, Any]:
    """Put study, dense model, best trial and front into one mapping that JSON can hold.

    Points are measured on the report text; one that was not has ``text: selection``. ``best`` is
    ``null`` when no trial meets all targets, and ``nearest`` is then the one that misses them by
    the least share; ``knee`` is ``null`` when none was measured.
    """
    front, best = front_of(study), best_or_none(study)
    gain = gain_over_hand_written(study)
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
        "begin_token": study.settings.get("begin_token"),
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
        "hypervolume_reference": {"bytes": study.dense_bytes, "rise": reference_rise(study)},
        "hypervolume_series": [step._asdict() for step in hypervolume_series(study)],
        "gain": None if gain is None else _gain_to_dict(gain),
    }


def _gain_to_dict(gain: Gain) -> dict[str, Any]:
    return {
        "best": gain.best.number,
        "best_bytes": gain.best.bytes,
        "hand_written": gain.hand_written.number,
        "hand_written_bytes": gain.hand_written.bytes,
        "best_rise": finite(gain.best_rise),
        "best_rise_interval": _ends(gain.interval),
        "hand_written_rise": finite(gain.hand_written_rise),
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
    return {
        "perplexity": report.perplexity,
        "bytes": study.dense_bytes,
        "bytes_bf16": study.dense_bf16_bytes,
        "parameters": sum(spec.parameters for spec in study.specs),
        "latency_ms": _first_latency(report, study.dense_selection),
        "prefill_ms": study.dense_selection.prefill_ms,
        "tokens": report.tokens,
        "text": report.text,
        "selection_perplexity": study.dense_selection.perplexity,
        "device": report.device,
    }


def _first_latency(*measurements: Measurement) -> float | None:
    return next((each.latency_ms for each in measurements if each.latency_ms is not None), None)


def point_to_dict(study: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    """One measured trial as a plain mapping, its recipe included.

    ``rise_interval`` is the 95 % interval of the rise on the report text, or ``null``;
    ``selection_kl`` is what trials are ranked by; ``parameters`` are those of the matrices.
    """
    shown = trial.measurement
    return {
        "trial": trial.number,
        "label": trial.label,
        "phase": trial.phase,
        "hand_written": trial.by_hand,
        "healing": trial.healing and trial.healing.to_dict(),
        "perplexity": None if shown is None else finite(shown.perplexity),
        "rise": finite(rise(study, trial)),
        "rise_interval": _ends(rise_interval(study, trial)),
        "kl": None if shown is None else finite(shown.kl),
        "selection_kl": finite(divergence(trial)),
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
