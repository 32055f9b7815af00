"""Who is told what happens in a search, and a trial in a line."""

from __future__ import annotations

from typing import Protocol

from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.units import format_bytes


class Observer(Protocol):
    """Told what happens, to keep a record of it elsewhere. It must neither raise nor block."""

    def started(self, study: StudyRecord) -> None:
        """The study exists, and has these trials already."""

    def trial_finished(self, study_name: str, trial: TrialRecord) -> None:
        """One more trial has ended."""

    def finished(self, study: StudyRecord) -> None:
        """The search has ended."""


def describe_trial(study: StudyRecord, trial: TrialRecord) -> str:
    """One line about a trial that has ended."""
    gauge = study.gauge
    size = f"{format_bytes(trial.bytes):>8} {study.dense_bytes / trial.bytes:5.2f}x"
    line = f"trial {trial.number:3}  {size}  {trial.label}"
    if trial.state == "stopped" and trial.partial is not None:
        seen = f"{gauge.divergence} {trial.partial.divergence:.4f}"
        return f"{line}: given up after {trial.partial.tokens:,} tokens, {seen}"
    if trial.selection is None:
        reason = "over the budget, not measured" if trial.state == "infeasible" else trial.error
        return f"{line}: {reason}"
    quality = gauge.shown(trial.selection.figure)
    return f"{line}: {quality}, {gauge.divergence} {trial.selection.divergence:.4f}"
