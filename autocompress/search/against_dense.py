"""What a trial costs and loses against the dense model, in words and units that a person reads."""

from __future__ import annotations

import math

from autocompress.records import Measurement
from autocompress.search.dominance import latency
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.units import Limits, format_bytes


def meets(limits: Limits, trial: TrialRecord) -> bool:
    """Whether a trial is within a study's limits; an unmeasured latency meets no latency limit."""
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


def rise(study: StudyRecord, trial: TrialRecord) -> float:
    """Rise of log-perplexity over the dense model, nats per token, on the text the trial shows."""
    shown = trial.measurement
    if shown is None or not shown.perplexity > 0:
        return math.nan
    return math.log(shown.perplexity / dense_on(study, shown).perplexity)


def shown_perplexity(study: StudyRecord, trial: TrialRecord) -> float:
    """Perplexity in the units of the final table, that is of the report text.

    A trial without a report measurement has its rise on the selection text put on the dense model's
    report perplexity.
    """
    return study.dense_report.perplexity * math.exp(rise(study, trial))


def quality(trial: TrialRecord) -> str:
    """Perplexity as measured, with the text if it is not the final one: ``perplexity 17.4``."""
    shown = trial.measurement
    if shown is None:
        return "not measured"
    return f"perplexity {shown.perplexity:.4g}" + ("" if trial.report else " on the selection text")


def describe(study: StudyRecord, trial: TrialRecord) -> str:
    """One trial in a line: ``trial 3 (uniform 3 bit): 1.6 MB (10x), perplexity 17.4, 5.1 ms``."""
    time = latency(trial)
    timing = "" if time is None else f", {time:.3g} ms"
    size = f"{format_bytes(trial.bytes)} ({study.dense_bytes / trial.bytes:.3g}x)"
    return f"trial {trial.number} ({trial.label}): {size}, {quality(trial)}{timing}"
