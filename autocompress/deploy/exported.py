"""What is exported, what that wrote, and what a fresh process saw of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocompress.deploy.verify import Verification
from autocompress.methods.plan import Plan
from autocompress.records import Gauge
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.loading import LoadedModel
from autocompress.surgery.workbench import Build, Workbench


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
        loaded: the dense model with its tokenizer; it is dense again afterwards.
        workbench: holds the same model.
        compressed: what to store how, with the weights of what was healed.
        build: makes the compressed matrix of a layer by a method.
        measurement: what is known of the plan, for the model card and the measurements.
        header: what the recipe says beside the plan, such as the seed.
    """

    loaded: LoadedModel
    workbench: Workbench
    compressed: Compressed
    build: Build
    measurement: Mapping[str, Any] | None = None
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """What is stored how."""
        return self.compressed.plan


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where it is.
        weight_bytes: bytes of all weights as one file, its header included.
        file_bytes: bytes of the files of weights; more only where there are several.
        tensors: number of tensors.
    """

    folder: Path
    weight_bytes: int
    file_bytes: int
    tensors: int

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class Exported:
    """What was written, and what a fresh process saw of it.

    Attributes:
        report: the folder and its bytes.
        plan: what it stores how.
        verification: the figure in a fresh process, on the text that the plan was measured on.
        text: which text that is.
        source: trial or recipe it came from.
        dense_bytes: bytes of the dense model.
        call_to_load: loads the folder.
        gauge: the name of the figure.
    """

    report: ExportReport
    plan: Plan
    verification: Verification
    text: str
    source: str
    dense_bytes: int
    call_to_load: str
    gauge: Gauge

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return self.report.to_dict() | {
            "from": self.source,
            "plan": self.plan.hash,
            "recipe": self.plan.to_recipe(),
            "text": self.text,
            self.gauge.figure: self.verification.figure,
            "tokens": self.verification.tokens,
            "dense_bytes": self.dense_bytes,
            "ratio": self.dense_bytes / self.report.weight_bytes,
        }
