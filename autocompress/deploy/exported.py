"""What an export wrote, and what a fresh process saw of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from autocompress.deploy.card import trust_of
from autocompress.deploy.checkpoint import ExportReport
from autocompress.deploy.verify import Verification
from autocompress.methods.plan import Plan


@dataclass(frozen=True)
class Exported:
    """What was written, and what a fresh process saw of it.

    Attributes:
        report: the folder and its bytes.
        plan: what it stores how.
        verification: perplexity in a fresh process, on the text that the plan was measured on.
        text: which text that is.
        source: trial or recipe it came from.
        dense_bytes: bytes of the dense model.
        own_code: whether the model comes with code of its own, which must be let run.
    """

    report: ExportReport
    plan: Plan
    verification: Verification
    text: str
    source: str
    dense_bytes: int
    own_code: bool = False

    @property
    def call_to_load(self) -> str:
        """The Python that loads the folder."""
        return f"autocompress.load({json.dumps(str(self.report.folder))}{trust_of(self.own_code)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return self.report.to_dict() | {
            "from": self.source,
            "plan": self.plan.hash,
            "recipe": self.plan.to_recipe(),
            "text": self.text,
            "perplexity": self.verification.perplexity,
            "tokens": self.verification.tokens,
            "dense_bytes": self.dense_bytes,
            "ratio": self.dense_bytes / self.report.weight_bytes,
        }
