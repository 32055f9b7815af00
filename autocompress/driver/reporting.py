"""Measures trials on the report text, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.records import Measurement
from autocompress.studies.healed_trials import read_numbers
from autocompress.studies.study import TrialRecord


def measure_trial(
    evaluator: Evaluator,
    trial: TrialRecord,
    text: ScoredText,
    numbers: Mapping[str, Tensor] | None,
    *,
    timed: bool = False,
) -> Measurement:
    """Score a trial's plan on a text, with the times that the trial was seen to take.

    Args:
        evaluator: scores it.
        trial: has the plan, and its times where it was timed.
        text: what to score on.
        numbers: stored tensors of a healed plan.
        timed: time it anew, whatever is known.
    """
    known = trial.selection
    if timed or known is None or known.latency_ms is None:
        return evaluator.measure(trial.plan, text, numbers=numbers)
    seen = evaluator.measure(trial.plan, text, latency=False, numbers=numbers)
    return seen.with_times_of(known)


@dataclass(frozen=True)
class OnReport:
    """Measures a trial on the report text: a ``Task``, whose desks have an evaluator and the text.

    Attributes:
        trial: the trial.
        folder: its run folder, which has the numbers of a healed one.
    """

    trial: TrialRecord
    folder: Path

    def done_on(self, desk: Any) -> Measurement:
        """See ``Task``."""
        numbers = read_numbers(self.folder, self.trial)
        return measure_trial(desk.evaluator, self.trial, desk.report, numbers)
