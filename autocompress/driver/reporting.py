"""Measures trials on the report text, wherever that is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.records import Measurement
from autocompress.studies.healed_trials import compressed_of
from autocompress.studies.study import TrialRecord
from autocompress.surgery.compressed import Compressed


def measure_again(
    evaluator: Evaluator,
    compressed: Compressed,
    text: ScoredText,
    known: Measurement | None,
) -> Measurement:
    """Score what was measured before on a text, with the times that it was seen to take.

    Args:
        evaluator: scores it.
        compressed: the plan and its weights.
        text: what to score on.
        known: what was measured before; it is timed anew where that has no times.
    """
    if known is None or known.latency_ms is None:
        return evaluator.measure(compressed, text)
    return evaluator.measure(compressed, text, latency=False).with_times_of(known)


@dataclass(frozen=True)
class OnReport:
    """Measures a trial on the report text: a ``Task``, whose desks have an evaluator and the text.

    Attributes:
        trial: the trial.
        folder: its run folder, which has the weights of a healed one.
    """

    trial: TrialRecord
    folder: Path

    def done_on(self, desk: Any) -> Measurement:
        """See ``Task``."""
        compressed = compressed_of(self.folder, self.trial)
        return measure_again(desk.evaluator, compressed, desk.report, self.trial.selection)
