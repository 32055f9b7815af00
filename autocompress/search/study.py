"""What a search has found: its trials and what they were measured against."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec, Measurement, Skipped
from autocompress.search.end_to_end import Relation
from autocompress.units import Limits

HAND_WRITTEN, ALLOCATION, KNOBS, SWAPS = "hand-written", "allocation", "knobs", "swaps"
PLANNED = (HAND_WRITTEN, ALLOCATION)  # phases whose trials are made whatever came before


@dataclass(frozen=True)
class TrialRecord:
    """One proposed plan and what became of it.

    Attributes:
        number: Optuna's number of the trial.
        phase: where the plan came from: ``hand-written``, ``allocation``, ``knobs`` or ``swaps``.
        label: what a person calls it: ``uniform 3 bit``, ``allocated 10x``, ``knobs``.
        state: ``complete``, ``infeasible`` (over the byte limit in closed form, not evaluated),
            ``stopped`` (clearly beaten on the first windows) or ``failed``.
        plan: the plan.
        bytes: stored bytes of the whole model under the plan, in closed form.
        selection: measurement on the selection text, when complete.
        report: measurement on the report text, for the members of the final front.
        partial: measurement on the first windows of the selection text, when stopped.
        seconds: wall time of the trial.
        params: knobs that the sampler chose.
        error: why it failed, when it did.
    """

    number: int
    phase: str
    label: str
    state: str
    plan: Plan
    bytes: int
    selection: Measurement | None = None
    report: Measurement | None = None
    partial: Measurement | None = None
    seconds: float = 0.0
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    error: str = ""

    @property
    def measurement(self) -> Measurement | None:
        """On the report text when there is one, else on the selection text."""
        return self.report or self.selection


@dataclass(frozen=True)
class StudyRecord:
    """A whole study, as read from its storage.

    Attributes:
        name: name of the study.
        folder: run folder, ``<runs dir>/<name>``.
        model: what the user named: a hub id, a folder, or ``autocompress-demo`` for the bundled
            model.
        fingerprint: hash of the model's weights.
        settings: everything that determines the trials: budget as typed, texts, space, sampler,
            seed, dtype, versions.
        limits: the budget in bytes and milliseconds.
        specs: the compressible matrices.
        skipped: modules left as they are, with the reason.
        dense_bytes: bytes of the dense model's tensors as loaded.
        dense_bf16_bytes: the same at two bytes an element.
        dense_selection: measurement of the dense model on the selection text.
        dense_report: the same on the report text.
        trials: in order of their numbers.
        relation: between the latency that a table adds up and the one that is measured; ``None``
            where latency was not limited.
    """

    name: str
    folder: Path
    model: str
    fingerprint: str
    settings: dict[str, Any] = field(hash=False)
    limits: Limits
    specs: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    dense_bytes: int
    dense_bf16_bytes: int
    dense_selection: Measurement
    dense_report: Measurement
    trials: tuple[TrialRecord, ...]
    relation: Relation | None = None

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        """Trials that were measured."""
        return tuple(trial for trial in self.trials if trial.state == "complete")
