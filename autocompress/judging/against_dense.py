"""What a trial costs and loses against the dense model, in words and units that a person reads."""

from __future__ import annotations

import math

from autocompress.judging.dominance import latency
from autocompress.judging.targets import LossOnText, Verdict, excess_of, judge_targets
from autocompress.records import Measurement
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.units import Limits, format_bytes


def targets_of(
    study: StudyRecord, trial: TrialRecord, limits: Limits | None = None
) -> tuple[Verdict, ...]:
    """How a trial stands against targets, those of its study when left out.

    Quality is judged on the selection text and, where it was measured there, on the report text.
    """
    return judge_targets(
        study.limits if limits is None else limits,
        trial.bytes,
        latency(trial),
        [
            loss_on(study, measured)
            for measured in (trial.selection, trial.report)
            if measured is not None
        ],
        study.gauge,
    )


def meets(study: StudyRecord, trial: TrialRecord, limits: Limits | None = None) -> bool:
    """Whether a trial meets all targets; what was not measured meets none."""
    return excess_of(targets_of(study, trial, limits)) <= 0


def loss_on(study: StudyRecord, measured: Measurement) -> LossOnText:
    """What a measurement lost against the dense model on the same text."""
    increase = measured.loss - dense_on(study, measured).loss
    return LossOnText(measured.text, increase, measured.cosine)


def within_costs(limits: Limits, trial: TrialRecord) -> bool:
    """Whether a trial is small and fast enough, whatever it loses."""
    small = limits.memory_bytes is None or trial.bytes <= limits.memory_bytes
    return small and latency_within(limits, trial)


def latency_within(limits: Limits, trial: TrialRecord) -> bool:
    """Whether a trial is fast enough; one without a latency is only if there is no limit."""
    time = latency(trial)
    return limits.latency_ms is None or (time is not None and time <= limits.latency_ms)


def dense_on(study: StudyRecord, measurement: Measurement) -> Measurement:
    """The dense model's measurement on the same text as ``measurement``."""
    return (
        study.dense_report if measurement.text == study.dense_report.text else study.dense_selection
    )


def increase(study: StudyRecord, trial: TrialRecord) -> float:
    """Increase of the loss over the dense model, on the text the trial shows."""
    shown = trial.measurement
    return math.nan if shown is None else loss_on(study, shown).increase


def shown_figure(study: StudyRecord, trial: TrialRecord) -> float:
    """The figure in the units of the final table, that is of the report text.

    A trial without a report measurement has its increase on the selection text put on the dense
    model's loss on the report text.
    """
    return study.gauge.figure_of(study.dense_report.loss + increase(study, trial))


def latency_ratio(study: StudyRecord, trial: TrialRecord) -> float | None:
    """Time of a decoded token as a multiple of the dense model's; ``None`` where one is unknown."""
    time = latency(trial)
    dense = study.dense_selection.latency_ms or study.dense_report.latency_ms
    return None if time is None or not dense else time / dense


def quality(study: StudyRecord, trial: TrialRecord) -> str:
    """The figure as measured, with the text if it is not the final one: ``perplexity 17.4``."""
    shown = trial.measurement
    if shown is None:
        return "not measured"
    return study.gauge.shown(shown.figure) + ("" if trial.report else " on the selection text")


def describe(study: StudyRecord, trial: TrialRecord) -> str:
    """One trial in a line: ``trial 3 (uniform 3 bit): 1.6 MB (10x), perplexity 17.4``."""
    time = latency(trial)
    share = latency_ratio(study, trial)
    timing = "" if time is None else f", {time:.3g} ms"
    timing += "" if share is None else f" ({share:.2f}x of dense)"
    size = f"{format_bytes(trial.bytes)} ({study.dense_bytes / trial.bytes:.3g}x)"
    return f"trial {trial.number} ({trial.label}): {size}, {quality(study, trial)}{timing}"
