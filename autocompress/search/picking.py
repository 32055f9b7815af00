"""The ways to choose one trial from a study."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autocompress.errors import BudgetUnreachable, ConfigurationError, StudyError
from autocompress.search.against_dense import describe, shown_perplexity
from autocompress.search.dominance import (
    Loss,
    knee_of,
    latency,
    non_dominated,
    ranking_loss,
    selection_loss,
)
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.units import format_bytes

WAYS_TO_PICK = ("best", "knee", "smallest", "fastest")
MOST_NUMBERS_LISTED = 40


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
        how: ``best`` (least divergence from the dense model within the limits, on the selection
            text; see ``dominance.ranking_loss``), ``knee`` (largest distance to the chord of the
            front), ``smallest``, ``fastest``, or the number of a trial.
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
    digits = how.strip().removeprefix("#")
    if digits.isdecimal():
        return _within(study, _numbered(study, int(digits)), limits)
    if how not in WAYS_TO_PICK:
        wanted = f"{', '.join(WAYS_TO_PICK)} or the number of a trial"
        raise ConfigurationError("no such way to pick a trial", got=repr(how), wanted=wanted)
    candidates = [trial for trial in study.complete if math.isfinite(selection_loss(trial))]
    if not candidates:
        raise StudyError(f"study {study.name} has no measured trial yet", hint="Resume the search.")
    loss = ranking_loss(candidates)
    within = (trial for trial in candidates if limits.excess(study, trial) <= 0)
    fitting = non_dominated(within, loss)
    if not fitting:
        nearest = min(candidates, key=lambda trial: (limits.excess(study, trial), loss(trial)))
        raise BudgetUnreachable(
            f"no measured trial of study {study.name} is within the limits",
            wanted=str(limits),
            hint=f"The nearest is {describe(study, nearest)}.",
        )
    return _choose(study, how, fitting, loss)


def _choose(
    study: StudyRecord, how: str, front: tuple[TrialRecord, ...], loss: Loss
) -> TrialRecord:
    if how == "knee":
        return knee_of(front, loss)
    if how == "smallest":
        return min(front, key=lambda trial: trial.bytes)
    if how == "fastest":
        timed = [
            (time, trial.bytes, trial) for trial in front if (time := latency(trial)) is not None
        ]
        if not timed:
            raise StudyError(
                f"no trial of study {study.name} has a latency",
                hint="Pick best, knee or smallest instead.",
            )
        return min(timed, key=lambda entry: entry[:2])[2]
    return min(front, key=loss)


def _within(study: StudyRecord, trial: TrialRecord, limits: _Limits) -> TrialRecord:
    if limits.excess(study, trial) > 0:
        what = f"{describe(study, trial)} is not within the limits"
        raise BudgetUnreachable(what, wanted=str(limits), hint="Pick best to have one that is.")
    return trial


def _numbered(study: StudyRecord, number: int) -> TrialRecord:
    complete = {trial.number: trial for trial in study.complete}
    if number in complete:
        return complete[number]
    others = {trial.number: trial for trial in study.trials}
    there = [str(known) for known in sorted(complete)]
    listed = ", ".join(there[:MOST_NUMBERS_LISTED]) + (
        ", ..." if len(there) > MOST_NUMBERS_LISTED else ""
    )
    if number in others:
        state = others[number].state
        what, hint = f"trial {number} of study {study.name} was not measured", others[number].error
        raise StudyError(what, got=state, wanted=f"one of {listed or 'none yet'}", hint=hint)
    raise StudyError(
        f"study {study.name} has no trial {number}", wanted=f"one of {listed or 'none yet'}"
    )


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
