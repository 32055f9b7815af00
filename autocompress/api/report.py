"""What ``autocompress.compress`` returns: the model, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from autocompress.deploy.exported import Exported
from autocompress.judging.by_role import RoleBytes, StoredMatrix, by_role
from autocompress.judging.targets import Verdict
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import Gauge, Measurement, Skipped
from autocompress.session.left_dense import summary_of
from autocompress.stage_memory import describe_peaks
from autocompress.units import format_bytes

MOST_NAMED = 3  # layers that the summary names as those that lose most


@dataclass(frozen=True)
class LayerReport:
    """How one matrix is stored.

    Attributes:
        name: the layer.
        role: what it does.
        shape: ``[out, in]``.
        method: how it is stored, in words.
        settings: the same as in a recipe.
        dense_bytes: what it took.
        bytes: what it takes.
        parameters: weights that it stores; codes count for what they stand for.
        loss_increase: predicted increase of the loss, nats per token; ``None`` where none is known,
            as the calibration text does not reach the matrix.
        cosine: cosine between the outputs of the dense and the compressed layer on the calibration
            text.
    """

    name: str
    role: str
    shape: tuple[int, int]
    method: str
    settings: dict[str, Any]
    dense_bytes: int
    bytes: int
    parameters: int
    loss_increase: float | None
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON or a data frame."""
        return {**vars(self), "shape": list(self.shape), "settings": dict(self.settings)}


@dataclass(frozen=True)
class Quality:
    """The model before and after, on the same text.

    Attributes:
        dense_figure: of the dense model.
        measured: what was measured of the compressed one.
    """

    dense_figure: float
    measured: Measurement


@dataclass(frozen=True)
class CompressionReport:
    """What a model was compressed to, at what cost.

    Attributes:
        model: which model it was.
        source: what it was compressed to: a budget or a recipe.
        plan: what is stored how.
        dense_bytes: bytes of the file of weights before, its header included.
        bytes: and after.
        layers: the matrices one by one, in the order of the model.
        skipped: modules left as they are, with the reason.
        gauge: the words and the scale of the quality.
        quality: on the report text; ``None`` when it was not measured.
        exported: the folder that was written, if one was.
        begin_token: what each window of the texts started with; ``None`` for nothing.
        targets: whether each target is met, and by how much.
        peak_memory_bytes: most memory that the process has held; ``None`` where that is unknown.
        unreached: matrices without an input vector on the calibration text, with the reason.
        stage_memory_bytes: most memory while each stage ran, by its name.
    """

    model: str
    source: str
    plan: Plan
    dense_bytes: int
    bytes: int
    layers: tuple[LayerReport, ...]
    skipped: tuple[Skipped, ...]
    gauge: Gauge
    quality: Quality | None = None
    exported: Exported | None = None
    begin_token: str | None = None
    targets: tuple[Verdict, ...] = ()
    peak_memory_bytes: int | None = field(default=None, compare=False)
    unreached: tuple[Skipped, ...] = ()
    stage_memory_bytes: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def ratio(self) -> float:
        """How many times fewer bytes the model takes."""
        return self.dense_bytes / self.bytes

    @property
    def dense_parameters(self) -> int:
        """Weights of the matrices before."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights that the matrices store; see ``LayerReport``."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def loss_increase(self) -> float:
        """Predicted increase of the loss, nats per token, over the layers where it is known."""
        return sum(layer.loss_increase or 0.0 for layer in self.layers)

    @property
    def folder(self) -> Path | None:
        """The folder that was written, if one was."""
        return None if self.exported is None else self.exported.report.folder

    def table(self) -> list[dict[str, Any]]:
        """The layers as plain mappings: ``pandas.DataFrame(report.table())``."""
        return [layer.to_dict() for layer in self.layers]

    @property
    def by_role(self) -> tuple[RoleBytes, ...]:
        """Bytes and weights of the matrices by what they do, the largest first."""
        return by_role(
            StoredMatrix(
                layer.role,
                self.plan.get(layer.name, Keep()).form,
                layer.dense_bytes,
                layer.bytes,
                math.prod(layer.shape),
                layer.parameters,
            )
            for layer in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        facts = {
            "model": self.model,
            "from": self.source,
            "plan": self.plan.hash,
            "recipe": self.plan.to_recipe(),
            "dense_bytes": self.dense_bytes,
            "bytes": self.bytes,
            "ratio": self.ratio,
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "peak_memory_bytes": self.peak_memory_bytes,
            "stage_memory_bytes": dict(self.stage_memory_bytes),
            "predicted_loss_increase": self.loss_increase,
            "by_role": [role.to_dict() for role in self.by_role],
            "layers": self.table(),
            "skipped": [vars(skipped) for skipped in self.skipped],
            "begin_token": self.begin_token,
            "targets": [verdict.to_dict() for verdict in self.targets],
            "unreached": [vars(matrix) for matrix in self.unreached],
        }
        if self.quality is not None:
            measured = self.quality.measured
            facts |= self.gauge.named(
                {
                    "text": measured.text,
                    "tokens": measured.tokens,
                    "dense_figure": self.quality.dense_figure,
                    "figure": measured.figure,
                    "divergence": measured.divergence,
                    "cosine": measured.cosine,
                }
            )
        return facts if self.exported is None else facts | self.exported.to_dict()

    def __str__(self) -> str:
        """A short summary for people."""
        gauge = self.gauge
        lines = [
            f"{self.model}, {self.source}: {self.plan.summary() or 'all kept'}",
            f"  weights     {format_bytes(self.dense_bytes)} -> {format_bytes(self.bytes)}, "
            f"{self.ratio:.3g} times less{self._parameters()}",
            *self._not_reached(),
            f"  loss        {self.loss_increase:+.3g} {gauge.unit} predicted{self._worst()}",
        ]
        if self.quality is None:
            lines.append(f"  {gauge.figure:<11} not measured")
        else:
            measured = self.quality.measured
            lines.append(
                f"  {gauge.figure:<11} {self.quality.dense_figure:.4f} -> {measured.figure:.4f} "
                f"on {measured.tokens:,} tokens of the {measured.text} text, "
                f"{gauge.divergence} {measured.divergence:.4f} {gauge.unit}"
            )
        lines += [f"  target      {verdict}" for verdict in self.targets]
        if self.peak_memory_bytes is not None:
            lines.append(f"  memory      {format_bytes(self.peak_memory_bytes)} held at most")
            if self.stage_memory_bytes:
                lines[-1] += f": {describe_peaks(self.stage_memory_bytes)}"
        if self.exported is not None:
            lines.append(
                f"  written     {self.folder}, loaded again in a fresh process with the same result"
            )
        return "\n".join(lines)

    def _parameters(self) -> str:
        if self.parameters == self.dense_parameters:
            return ""
        return f"; {self.dense_parameters:,} -> {self.parameters:,} parameters in the matrices"

    def _not_reached(self) -> list[str]:
        if not self.unreached:
            return []
        loss = {layer.name: layer.loss_increase for layer in self.layers}
        stored = [matrix for matrix in self.unreached if loss[matrix.name] is None]
        how = f"{len(stored)} compressed all the same" if stored else "left dense"
        return [f"  unreached   {how}: {summary_of(self.unreached)}"]

    def _worst(self) -> str:
        known = [(layer.loss_increase, layer.name) for layer in self.layers if layer.loss_increase]
        worst = sorted(known, reverse=True)[:MOST_NAMED]
        named = [f"{name} ({loss_increase:.2g})" for loss_increase, name in worst]
        return f", most by {', '.join(named)}" if named else ""


class CompressResult(NamedTuple):
    """A compressed model and its report: ``model, report = autocompress.compress(...)``.

    Attributes:
        model: in evaluation mode; ``generate`` and ``save_pretrained`` work.
        report: what it was compressed to, at what cost.
    """

    model: PreTrainedModel
    report: CompressionReport

    def __str__(self) -> str:
        """The report."""
        return str(self.report)
