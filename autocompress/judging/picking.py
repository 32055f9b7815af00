"""The ways to choose one trial from a study."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autocompress.errors import BudgetUnreachable, ConfigurationError, StudyError
from autocompress.judging.against_dense import describe, shown_figure, targets_of
from autocompress.judging.dominance import (
    Loss,
    knee_of,
    latency,
    non_dominated,
    ranking_loss,
    selection_loss,
)
from autocompress.judging.targets import describe_limits, excess_of
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.units import Limits

WAYS_TO_PICK = ("best", "knee", "smallest", "fastest")
MOST_NUMBERS_LISTED = 40


def pick(
    study: StudyRecord,
    how: str = "best",
    *,
    max_bytes: int | None = None,
    worst_figure: float | None = None,
    max_latency_ms: float | None = None,
    max_increase: float | None = None,
    min_cosine: float | None = None,
) -> TrialRecord:
    """Choose one trial.

    Args:
        study: the study.
        how: ``best`` (least divergence from the dense model within the limits, on the selection
            text, see ``dominance.ranking_loss``; under a target of quality the smallest within the
            limits), ``knee`` (largest distance to the chord of the front), ``smallest``,
            ``fastest``, or the number of a trial.
        max_bytes: most stored bytes. For ``best`` it replaces the study's own limit.
        worst_figure: the most perplexity, or the worst of another figure, as the table shows it;
            see ``shown_figure``.
        max_latency_ms: most milliseconds a token. For ``best`` it replaces the study's own limit.
        max_increase: most increase of the loss, on every text that a trial was measured on. For
            ``best`` a target of quality replaces the study's own and, as the smallest is sought,
            the study's limit of bytes.
        min_cosine: least cosine to the dense model's hidden states, likewise.

    Returns:
        A trial that no other trial within the same limits dominates.

    Raises:
        BudgetUnreachable: no trial is within the limits; the message names the nearest.
        StudyError: no such trial, it was not measured, or no trial has a latency.
        ConfigurationError: ``how`` is none of the words and no number.
    """
    wanted = Limits(max_bytes, max_latency_ms, max_increase, min_cosine)
    if how == "best":
        wanted = _filled_in(wanted, study.limits)
    limits = _Limits(wanted, worst_figure)
    digits = how.strip().removeprefix("#")
    if digits.isdecimal():
        return _within(study, _numbered(study, int(digits)), limits)
    if how not in WAYS_TO_PICK:
        ways = f"{', '.join(WAYS_TO_PICK)} or the number of a trial"
        raise ConfigurationError("no such way to pick a trial", got=repr(how), wanted=ways)
    candidates = [trial for trial in study.complete if math.isfinite(selection_loss(trial))]
    if not candidates:
        raise StudyError(f"study {study.name} has no measured trial yet", hint="Resume the search.")
    known = (trial.selection for trial in candidates if trial.selection is not None)
    if wanted.cosine is not None and all(measured.cosine is None for measured in known):
        raise StudyError(
            f"no trial of study {study.name} has a cosine",
            hint="It was made before cosines were measured, or its model names no head: ask for a "
            "quality in per cent or nats.",
        )
    loss = ranking_loss(candidates)
    within = (trial for trial in candidates if limits.excess(study, trial) <= 0)
    fitting = non_dominated(within, loss)
    if not fitting:
        nearest = _nearest(study, candidates, limits)
        raise BudgetUnreachable(
            f"no measured trial of study {study.name} is within the limits",
            wanted=limits.describe(study),
            hint=f"The nearest is {describe(study, nearest)}: {limits.missed(study, nearest)}.",
        )
    if how == "best" and wanted.asks_quality:
        how = "smallest"
    return _choose(study, how, fitting, loss)


def _filled_in(wanted: Limits, own: Limits) -> Limits:
    """The limits that were named, and where none of a kind was, the study's own."""
    latency_ms = own.latency_ms if wanted.latency_ms is None else wanted.latency_ms
    if wanted.asks_quality:
        return replace(wanted, latency_ms=latency_ms)
    memory = own.memory_bytes if wanted.memory_bytes is None else wanted.memory_bytes
    return replace(own, memory_bytes=memory, latency_ms=latency_ms)


def _nearest(study: StudyRecord, candidates: list[TrialRecord], limits: _Limits) -> TrialRecord:
    loss = ranking_loss(candidates)
    return min(candidates, key=lambda trial: (limits.excess(study, trial), loss(trial)))


def nearest_to_the_limits(study: StudyRecord) -> TrialRecord | None:
    """The trial whose largest miss of a target of the study, as a share of it, is the least."""
    candidates = [trial for trial in study.complete if math.isfinite(selection_loss(trial))]
    return _nearest(study, candidates, _Limits(study.limits)) if candidates else None


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
        raise BudgetUnreachable(
            f"{describe(study, trial)} is not within the limits ({limits.missed(study, trial)})",
            wanted=limits.describe(study),
            hint="Pick best to have one that is.",
        )
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
    """The targets, and the worst figure as the table shows it."""

    targets: Limits
    worst_figure: float | None = None

    def excess(self, study: StudyRecord, trial: TrialRecord) -> float:
        """Largest share by which the trial is over a limit; zero or less when it meets them all."""
        over = max(0.0, excess_of(targets_of(study, trial, self.targets)))
        if self.worst_figure is None:
            return over
        return max(over, study.gauge.excess(shown_figure(study, trial), self.worst_figure))

    def describe(self, study: StudyRecord) -> str:
        """All of them in words."""
        gauge = study.gauge
        words = describe_limits(self.targets, study.dense_bytes, gauge)
        if self.worst_figure is None:
            return words
        limit = f"{gauge.figure} {gauge.bound} {self.worst_figure:g}"
        return f"{words}{', ' if words else ''}{limit}"

    def missed(self, study: StudyRecord, trial: TrialRecord) -> str:
        """What a trial does not meet, and by how much."""
        missed = [str(each) for each in targets_of(study, trial, self.targets) if not each.met]
        if self.worst_figure is not None:
            gauge, shown = study.gauge, shown_figure(study, trial)
            if gauge.excess(shown, self.worst_figure) > 0:
                limit = f"{gauge.bound} {self.worst_figure:g}"
                missed.append(f"{gauge.figure} MISSED: {shown:{gauge.form}}, {limit}")
        return "; ".join(missed)


def best_or_none(study: StudyRecord) -> TrialRecord | None:
    """The best trial within the study's limits, or ``None`` when no trial meets them."""
    try:
        return pick(study, "best")
    except (BudgetUnreachable, StudyError):
        return None
