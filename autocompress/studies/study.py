"""What a search has found: its trials and what they were measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.methods.plan import Plan
from autocompress.records import Gauge, LayerSpec, Measurement, Skipped
from autocompress.studies.relation import Relation
from autocompress.units import Limits

BASELINE, ALLOCATION, KNOBS, SWAPS = "baseline", "allocation", "knobs", "swaps"
HEALED = "healed"  # weights trained or refitted after the search, in a plan it had measured
PLANNED = (BASELINE, ALLOCATION)  # phases whose trials are made whatever came before
GAUGE_SETTING = "gauge"  # in a study's settings, from its start
INTERRUPTED = "interrupted"  # the error of a trial that its search let go of


@dataclass(frozen=True)
class Healing:
    """How stored weights were trained.

    Attributes:
        steps: of training.
        tokens: trained on, repeats counted.
        text: what it was trained on.
        settings: of the healing.
        checks: ``step``, smoothed ``training_loss``, ``divergence`` and ``loss`` on the selection
            text.
        of: number of the trial that it started from, where it is one of a study.
        phase: of that trial.
        weights: hash of the stored weights, which lie in the run folder.
        tokens_hash: of the text's tokens.
    """

    steps: int
    tokens: int
    text: str
    settings: dict[str, Any] = field(hash=False)
    checks: tuple[dict[str, float], ...] = field(hash=False, repr=False)
    of: int = -1
    phase: str = ""
    weights: str = ""
    tokens_hash: str = ""

    @property
    def trained(self) -> bool:
        """Whether anything was to be trained; else matrices were only refitted, or cut."""
        return int(self.settings.get("steps", self.steps)) > 0

    @property
    def done(self) -> str:
        """What was done: ``healed``, ``refitted``, or only ``shrunk``."""
        if self.trained:
            return "healed"
        return "refitted" if self.settings.get("refit", True) else "shrunk"

    @property
    def doing(self) -> str:
        """The same while it is done, at the beginning of a sentence."""
        return {"healed": "Healing", "refitted": "Refitting", "shrunk": "Shrinking"}[self.done]

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Healing:
        """Read what ``to_dict`` gave, through JSON or not."""
        return cls(**{**values, "checks": tuple(values["checks"])})


@dataclass(frozen=True)
class TrialRecord:
    """One proposed plan and what became of it.

    Attributes:
        number: Optuna's number of the trial.
        phase: where the plan came from: ``baseline``, ``allocation``, ``knobs`` or ``swaps``.
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
        healing: how its weights were trained or refitted; ``None`` when they are as the methods
            fitted them.
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
    healing: Healing | None = None

    @property
    def cut_off(self) -> bool:
        """Whether it ended with its search, which says nothing about its plan."""
        return self.state == "failed" and self.error in ("", INTERRUPTED)

    @property
    def baselines(self) -> bool:
        """Whether a person would have written the plan, healed or not."""
        return (self.healing.phase if self.healing else self.phase) == BASELINE

    @property
    def key(self) -> str:
        """What was measured: the plan's hash, and that of its weights if they were healed."""
        return self.plan.hash + (f"-{self.healing.weights}" if self.healing else "")

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
        settings: what was asked (``request``), what tells the study from others (``identity``), and
            what else determines the trials; and the gauge.
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
        unreached: matrices without an input vector on the calibration text, with the reason.
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
    unreached: tuple[Skipped, ...] = ()

    @property
    def gauge(self) -> Gauge:
        """The words and the scale of the model's quality."""
        return Gauge(**self.settings[GAUGE_SETTING])

    @property
    def identity(self) -> dict[str, Any]:
        """What determines its trials, contents by their hashes."""
        return dict(self.settings.get("identity", {}))

    @property
    def each_setting(self) -> dict[str, Any]:
        """Every setting once, whether it was asked for or made up."""
        asked = {
            name: value
            for name, value in self.settings.get("request", {}).items()
            if value is not None
        }
        groups = ("identity", "request", "texts", GAUGE_SETTING)
        made_up = {**self.settings, **self.identity}
        return {name: made_up[name] for name in made_up if name not in groups} | asked

    @property
    def unhealed(self) -> StudyRecord:
        """The study as it would be if nothing had been healed."""
        return replace(self, trials=tuple(trial for trial in self.trials if not trial.healing))

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        """Trials that were measured."""
        return tuple(trial for trial in self.trials if trial.state == "complete")
