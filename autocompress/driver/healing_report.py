"""What healing changed, for people and scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autocompress.deploy.exported import Exported
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
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
    trial: int | None = None
    study: StudyRecord | None = None
    exported: Exported | None = None

    @property
    def rise_before(self) -> float:
        """Rise of log-perplexity over the dense model before healing, nats per token."""
        return math.log(self.before.perplexity / self.dense.perplexity)

    @property
    def rise_after(self) -> float:
        """The same after healing."""
        return math.log(self.after.perplexity / self.dense.perplexity)

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return {
            "source": self.source,
            "trial": self.trial,
            "study": self.study and self.study.name,
            "plan": self.plan.hash,
            "bytes": self.after.bytes,
            "rise_before": self.rise_before,
            "rise_after": self.rise_after,
            "dense": self.dense.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "healing": self.healing.to_dict(),
            "exported": self.exported and self.exported.to_dict(),
        }
