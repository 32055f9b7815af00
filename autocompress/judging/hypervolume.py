"""How much room the trials of a study cover, and how it grew: the measure of a search's progress.

The plane is log2 of the compression ratio against the increase of the loss on the selection text.
The reference corner is the dense model's size and an increase that makes a plan worth nothing; both
are fixed when the study begins, so that its curve never jumps, whatever later versions hold for
worth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from autocompress.judging.dominance import (
    HYPERVOLUME_REFERENCE_INCREASE,
    area_below,
    selection_loss,
)
from autocompress.studies.study import StudyRecord

REFERENCE_SETTING = "hypervolume_reference_increase"  # in a study's settings, from its start


class Growth(NamedTuple):
    """The hypervolume after a trial: that of the complete trials up to its number."""

    trial: int
    phase: str
    hypervolume: float


def reference_increase(study: StudyRecord) -> float:
    """Increase of the loss at the reference corner of a study."""
    return float(study.settings.get(REFERENCE_SETTING, HYPERVOLUME_REFERENCE_INCREASE))


def hypervolume(study: StudyRecord, *, until: int | None = None) -> float:
    """Area that the complete trials, or those up to number ``until``, dominate.

    Comparable between studies of one model, text and reference: what was healed after the search
    does not count.
    """
    dense = study.dense_selection.loss
    points = [
        (-math.log2(study.dense_bytes / trial.bytes), selection_loss(trial) - dense)
        for trial in study.unhealed.complete
        if (until is None or trial.number <= until) and math.isfinite(selection_loss(trial))
    ]
    return area_below(points, (0.0, reference_increase(study)))


def hypervolume_series(study: StudyRecord) -> tuple[Growth, ...]:
    """The hypervolume after each complete trial, in the order of their numbers."""
    return tuple(
        Growth(trial.number, trial.phase, hypervolume(study, until=trial.number))
        for trial in sorted(study.unhealed.complete, key=lambda trial: trial.number)
    )
