"""The front of a study: the trials worth choosing from, the ways to choose, and what the search gained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autocompress.errors import BudgetUnreachable, ConfigurationError, StudyError
from autocompress.records import Measurement
from autocompress.search.dominance import (
    HYPERVOLUME_REFERENCE_RISE,
    area_below,
    knee_of,
    latency,
    non_dominated,
    selection_perplexity,
)
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.units import Limits, format_bytes

HAND_WRITTEN = "hand-written"
WAYS_TO_PICK = ("best", "knee", "smallest", "fastest")
MOST_NUMBERS_LISTED = 40


def front_of(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The non-dominated complete trials, by bytes.

    Dominance is decided on the selection text, which every trial was measured on, never on a mixture of texts;
    ``dominance.dominates`` states the rule.
    """
    return non_dominated(study.complete)


def finalists(study: StudyRecord) -> tuple[TrialRecord, ...]:
    """The trials that should be measured on the report text: the front, the best, and the hand-written plan to beat."""
    wanted = list(front_of(study))
    best = best_or_none(study)
    wanted += [trial for trial in (best, best and hand_written_rival(study, best)) if trial is not None]
    unique = {trial.plan.hash: trial for trial in reversed(wanted)}
    return tuple(sorted(unique.values(), key=lambda trial: trial.bytes))


def pick(
    study: StudyRecord,
    how: str = "best",
    *,
    max_bytes: int | None = None,
    max_perplexity: float | None = None,
    max_latency_ms: float | None = None,
) -> TrialRecord:
    """Choose one trial.

    Args:
        study: the study.
        how: ``best`` (lowest perplexity within the limits), ``knee`` (largest distance to the chord of the front),
            ``smallest``, ``fastest``, or the number of a trial.
        max_bytes: most stored bytes. For ``best`` it replaces the study's own limit.
        max_perplexity: most perplexity, as the table shows it; see ``shown_perplexity``.
        max_latency_ms: most milliseconds a token. For ``best`` it replaces the study's own limit.

    Returns:
        A trial that no other trial within the same limits dominates.

    Raises:
        BudgetUnreachable: no trial is within the limits; the message names the nearest.
        StudyError: no such trial, it was not measured, or no trial has a latency.
        ConfigurationError: ``how`` is none of the words and no number.
    """
    if how == "best":
        max_bytes = study.limits.memory_bytes if max_bytes is None else max_bytes
        max_latency_ms = study.limits.latency_ms if max_latency_ms is None else max_latency_ms
    limits = _Limits(max_bytes, max_perplexity, max_latency_ms)
    if how.strip().lstrip("#").isdigit():
        candidates: tuple[TrialRecord, ...] = (_numbered(study, int(how.strip().lstrip("#"))),)
    elif how in WAYS_TO_PICK:
        candidates = tuple(trial for trial in study.complete if math.isfinite(selection_perplexity(trial)))
    else:
        wanted = f"{', '.join(WAYS_TO_PICK)} or the number of a trial"
        raise ConfigurationError("no such way to pick a trial", got=repr(how), wanted=wanted)
    if not candidates:
        raise StudyError(f"study {study.name} has no measured trial yet", hint="Resume the search.")
    fitting = non_dominated(trial for trial in candidates if limits.excess(study, trial) <= 0)
    if not fitting:
        nearest = min(candidates, key=lambda trial: (limits.excess(study, trial), selection_perplexity(trial)))
        raise BudgetUnreachable(
            f"no measured trial of study {study.name} is within the limits" if how in WAYS_TO_PICK else f"trial {how}",
            wanted=str(limits),
            hint=f"The nearest is {describe(study, nearest)}.",
        )
    return _choose(study, how, fitting)


def _choose(study: StudyRecord, how: str, front: tuple[TrialRecord, ...]) -> TrialRecord:
    if how == "knee":
        return knee_of(front)
    if how == "smallest":
        return min(front, key=lambda trial: trial.bytes)
    if how == "fastest":
        timed = [(time, trial.bytes, trial) for trial in front if (time := latency(trial)) is not None]
        if not timed:
            raise StudyError(
                f"no trial of study {study.name} has a latency", hint="Pick best, knee or smallest instead."
            )
        return min(timed, key=lambda entry: entry[:2])[2]
    return min(front, key=selection_perplexity)


def _numbered(study: StudyRecord, number: int) -> TrialRecord:
    complete = {trial.number: trial for trial in study.complete}
    if number in complete:
        return complete[number]
    others = {trial.number: trial for trial in study.trials}
    there = [str(known) for known in sorted(complete)]
    listed = ", ".join(there[:MOST_NUMBERS_LISTED]) + (", ..." if len(there) > MOST_NUMBERS_LISTED else "")
    if number in others:
        state = others[number].state
        what, hint = f"trial {number} of study {study.name} was not measured", others[number].error
        raise StudyError(what, got=state, wanted=f"one of {listed or 'none yet'}", hint=hint)
    raise StudyError(f"study {study.name} has no trial {number}", wanted=f"one of {listed or 'none yet'}")


@dataclass(frozen=True)
class _Limits:
    max_bytes: int | None
    max_perplexity: float | None
    max_latency_ms: float | None

    def excess(self, study: StudyRecord, trial: TrialRecord) -> float:
        """Largest share by which the trial is over a limit; zero or less when it meets them all."""
        over = [0.0]
        if self.max_bytes is not None:
            over.append(trial.bytes / max(self.max_bytes, 1) - 1)
        if self.max_perplexity is not None:
            over.append(shown_perplexity(study, trial) / max(self.max_perplexity, 1e-9) - 1)
        if self.max_latency_ms is not None:
            time = latency(trial)
            over.append(math.inf if time is None else time / max(self.max_latency_ms, 1e-9) - 1)
        return max(over)

    def __str__(self) -> str:
        parts = []
        if self.max_bytes is not None:
            parts.append(f"at most {format_bytes(self.max_bytes)}")
        if self.max_perplexity is not None:
            parts.append(f"perplexity at most {self.max_perplexity:g}")
        if self.max_latency_ms is not None:
            parts.append(f"at most {self.max_latency_ms:.3g} ms a token")
        return ", ".join(parts)


def best_or_none(study: StudyRecord) -> TrialRecord | None:
    """The best trial within the study's limits, or ``None`` when no trial meets them."""
    try:
        return pick(study, "best")
    except (BudgetUnreachable, StudyError):
        return None


def meets(limits: Limits, trial: TrialRecord) -> bool:
    """Whether a trial is within a study's limits; a latency that was not measured meets no latency limit."""
    time = latency(trial)
    small = limits.memory_bytes is None or trial.bytes <= limits.memory_bytes
    return small and (limits.latency_ms is None or (time is not None and time <= limits.latency_ms))


def dense_on(study: StudyRecord, measurement: Measurement) -> Measurement:
    """The dense model's measurement on the same text as ``measurement``."""
    return study.dense_report if measurement.text == study.dense_report.text else study.dense_selection


def rise(study: StudyRecord, trial: TrialRecord) -> float:
    """Rise of log-perplexity over the dense model in nats per token, both on the text that is shown for the trial."""
    shown = trial.measurement
    if shown is None or not shown.perplexity > 0:
        return math.nan
    return math.log(shown.perplexity / dense_on(study, shown).perplexity)


def shown_perplexity(study: StudyRecord, trial: TrialRecord) -> float:
    """Perplexity in the units of the final table, that is of the report text.

    A trial without a report measurement has its rise on the selection text put on the dense model's report perplexity.
    """
    return study.dense_report.perplexity * math.exp(rise(study, trial))


def describe(study: StudyRecord, trial: TrialRecord) -> str:
    """One trial in a sentence: ``trial 3 (uniform 3 bit): 1.6 MB, perplexity 17.4, 5.1 ms``."""
    time = latency(trial)
    timing = "" if time is None else f", {time:.3g} ms"
    size = f"{format_bytes(trial.bytes)} ({study.dense_bytes / trial.bytes:.3g}x)"
    return f"trial {trial.number} ({trial.label}): {size}, perplexity {shown_perplexity(study, trial):.4g}{timing}"


@dataclass(frozen=True)
class Gain:
    """What the search gained over the plans that a person would have written.

    Attributes:
        best: the best trial within the limits.
        hand_written: the best hand-written plan within the same bytes.
        best_rise: rise of log-perplexity of the best, in nats per token.
        hand_written_rise: the same of the hand-written plan, on the same text.
        text: the text both were measured on.
    """

    best: TrialRecord
    hand_written: TrialRecord
    best_rise: float
    hand_written_rise: float
    text: str

    @property
    def share(self) -> float:
        """The best's rise as a share of the hand-written plan's: 0.7 means that 30 % of the damage was avoided."""
        return self.best_rise / self.hand_written_rise if self.hand_written_rise > 0 else math.nan


def hand_written_rival(study: StudyRecord, best: TrialRecord) -> TrialRecord | None:
    """The hand-written plan with the lowest perplexity that fits where ``best`` had to fit."""
    room = max(best.bytes, study.limits.memory_bytes or 0) if meets(study.limits, best) else best.bytes
    fitting = [trial for trial in study.complete if trial.phase == HAND_WRITTEN and trial.bytes <= room]
    fitting = [trial for trial in fitting if math.isfinite(selection_perplexity(trial))]
    return min(fitting, key=lambda trial: (selection_perplexity(trial), trial.bytes), default=None)


def gain_over_hand_written(study: StudyRecord) -> Gain | None:
    """Compare the best trial with the best hand-written plan in the same bytes; ``None`` when either is missing.

    On the report text when both were measured on it, else on the selection text.
    """
    best = best_or_none(study)
    rival = best and hand_written_rival(study, best)
    if best is None or rival is None:
        return None
    pair = (best.report, rival.report)
    if None in pair:
        pair = (best.selection, rival.selection)
    ours, theirs = pair
    if ours is None or theirs is None:
        return None
    dense = dense_on(study, ours).perplexity
    return Gain(best, rival, math.log(ours.perplexity / dense), math.log(theirs.perplexity / dense), ours.text)


def hypervolume(study: StudyRecord, *, until: int | None = None) -> float:
    """Room covered by the complete trials up to number ``until``, on the selection text: one figure for progress.

    The plane is log2 of the compression ratio against rise of log-perplexity; the fixed reference corner is the dense
    model's size and a rise of ``HYPERVOLUME_REFERENCE_RISE``. Comparable between studies of one model and text.
    """
    dense = study.dense_selection.perplexity
    points = [
        (-math.log2(study.dense_bytes / trial.bytes), math.log(selection_perplexity(trial) / dense))
        for trial in study.complete
        if (until is None or trial.number <= until) and math.isfinite(selection_perplexity(trial))
    ]
    return area_below(points, (0.0, HYPERVOLUME_REFERENCE_RISE))
