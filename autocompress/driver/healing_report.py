"""What healing changed, for people and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autocompress.deploy.exported import Exported
from autocompress.methods.plan import Plan
from autocompress.records import Gauge, Measurement
from autocompress.studies.study import Healing, StudyRecord


@dataclass(frozen=True)
class HealingReport:
    """What healing changed, on the report text.

    Attributes:
        source: what was healed.
        plan: how the healed model stores what: as before, but for ranks that were cut afterwards
            where that was asked for.
        dense: the dense model.
        before: the compressed model as it was.
        after: healed.
        healing: how.
        gauge: the words and the scale of the figures.
        trial: the healed trial, where it is one of a study.
        study: that study, the new trial included.
        exported: the folder that was written, if one was.
    """

    source: str
    plan: Plan
    dense: Measurement
    before: Measurement
    after: Measurement
    healing: Healing
    gauge: Gauge
    trial: int | None = None
    study: StudyRecord | None = None
    exported: Exported | None = None

    @property
    def increase_before(self) -> float:
        """Increase of the loss over the dense model before healing."""
        return self.before.loss - self.dense.loss

    @property
    def increase_after(self) -> float:
        """The same after healing."""
        return self.after.loss - self.dense.loss

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return {
            "source": self.source,
            "trial": self.trial,
            "study": self.study and self.study.name,
            "plan": self.plan.hash,
            "bytes": self.after.bytes,
            "increase_before": self.increase_before,
            "increase_after": self.increase_after,
            "dense": self.gauge.named(self.dense.to_dict()),
            "before": self.gauge.named(self.before.to_dict()),
            "after": self.gauge.named(self.after.to_dict()),
            "healing": self.gauge.named(self.healing.to_dict()),
            "exported": self.exported and self.exported.to_dict(),
        }
