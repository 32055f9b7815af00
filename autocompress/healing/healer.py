"""Heals: trains a compressed model's stored weights against the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import AutocompressError, StorageError
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import LOGIT_BYTES_ACCELERATOR, Windows
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.entanglement import EntanglementPenalty
from autocompress.healing.hardware import explained_memory, half_precision
from autocompress.healing.losses import Losses
from autocompress.healing.optimiser import Optimiser
from autocompress.healing.schedule import batches, rate_at, windows_of
from autocompress.healing.student import Student
from autocompress.healing.teacher import DenseTeacher
from autocompress.healing.watch import Watch
from autocompress.numerics.metric import Metric
from autocompress.progress import SILENT, Progress
from autocompress.requests.healing import HealSettings

CHECKS = 12  # on the selection text in a run
CHECK_TOKENS = 8_192  # of it
MOST_BACK_STEPS = 5
CPU_TOKENS = 1_024  # of a pass on a CPU, where more take memory without being faster


@dataclass(frozen=True)
class Check:
    """How far healing was at a step.

    Attributes:
        step: of the optimiser.
        training_loss: on the healing text, smoothed; NaN before the first step.
        divergence: from the dense model on the selection text.
        loss: there.
        penalty: what the settings' penalties amount to then.
    """

    step: int
    training_loss: float
    divergence: float
    loss: float
    penalty: float = 0.0


@dataclass(frozen=True)
class Healed:
    """What came of healing.

    Attributes:
        weights: the stored tensors that were trained, under the names of a checkpoint: those of the
            best check.
        checks: in the order of their steps, the first before anything was trained.
        best: the check whose weights these are.
        tokens: trained on, repeats counted.
    """

    weights: dict[str, Tensor]
    checks: tuple[Check, ...]
    best: Check
    tokens: int


class Healer:
    """One run of healing.

    Args:
        dense: the dense model.
        student: the compressed one; trained in place.
        ids: tokens ``[n]`` to train on.
        selection: windows to watch progress on; healing never trains on them.
        settings: see there.
        checkpoint: where the run is kept, to go on after a kill; nowhere when left out.
        progress: shows how far it is.
        metrics: by layer name, for the penalties of the settings; plain where there are none.
        teacher: of the same dense model, to share its outputs with other runs on this text.

    Raises:
        AutocompressError: there is not enough memory.
        DataError: too few tokens to train on.
        ConfigurationError: a penalty counts for no factorised layer of the plan.
    """

    def __init__(
        self,
        dense: Any,
        student: Student,
        ids: Tensor,
        selection: Windows,
        settings: HealSettings,
        checkpoint: Checkpoint | None = None,
        progress: Progress = SILENT,
        metrics: Mapping[str, Metric] | None = None,
        teacher: DenseTeacher | None = None,
    ) -> None:
        self.student, self.settings = student, settings
        self.checkpoint, self.progress = checkpoint, progress
        self.context = selection.context
        self.windows = windows_of(ids, self.context, selection.begin)
        self.selection = selection.first(CHECK_TOKENS // self.context)
        teacher = teacher or DenseTeacher(dense, given=selection.given)
        self.losses = Losses(dense, student.model, settings.lm, teacher)
        with explained_memory(settings):
            self.teacher = Teacher.of(dense, self.selection)
            self.penalty = EntanglementPenalty(student, settings.penalties, metrics)
            self.optimiser = Optimiser(student, settings.train)
        self.checks: list[Check] = []
        self.best_weights: dict[str, Tensor] = {}
        self.step, self.slower = 0, 1.0
        self._watch = Watch()
        self._kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    @property
    def best(self) -> Check:
        """The check of least divergence so far, penalties included."""
        return min(self.checks, key=lambda check: check.divergence + check.penalty)

    def run(self) -> Healed:
        """Train to the end, or until progress ends.

        Raises:
            AutocompressError: there is not enough memory, or the loss diverges again and again.
            ConfigurationError: the checkpoint is of another run.
            StorageError: the checkpoint cannot be read or written.
        """
        settings = self.settings
        with explained_memory(settings):
            self._resume_or_begin()
        self.progress.note(self._forecast())
        every = max(1, settings.steps // CHECKS)
        with (
            self.progress.task("Healing (steps)", settings.steps) as advance,
            explained_memory(settings),
        ):
            advance(self.step)
            drawn = islice(self._batches(), self.step, None)
            while self.step < settings.steps and not self._stagnant:
                before = self.step
                sound = self._take_step(next(drawn))
                if sound and (self.step % every == 0 or self.step == settings.steps):
                    sound = self._check()
                if not sound:
                    self._step_back()
                    drawn = islice(self._batches(), self.step, None)
                advance(self.step - before)
        if self._stagnant and self.step < settings.steps:
            self.progress.note(
                f"Healing ends at step {self.step}: {settings.patience} checks "
                "on the selection text without progress."
            )
        tokens = self.step * self._size * self.context
        return Healed(self.best_weights, tuple(self.checks), self.best, tokens)

    @property
    def _size(self) -> int:
        """Windows of a step."""
        return max(1, self.settings.tokens // self.context)

    @property
    def _aligning(self) -> bool:
        return self.step < round(self.settings.align * self.settings.steps)

    @property
    def _stagnant(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best not in self.checks[-patience:]

    def _batches(self) -> Iterator[Tensor]:
        return batches(self.windows, self._size, self.settings.seed)

    def _take_step(self, windows: Tensor) -> bool:
        """Train on some windows ``[b, length]``; whether the loss is as it should be."""
        aligning = self._aligning
        lossy = self.losses.on_blocks if aligning else self.losses.on_outputs
        total = 0.0
        for part in torch.split(windows, self._at_once):
            with half_precision(self.student.model.device):
                loss = lossy(part.to(self.student.model.device))
            share = len(part) / len(windows)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total += share * float(loss.detach())
        if not self._watch.fine(total, aligning):
            self.optimiser.forget()
            return False
        asked = self.penalty.on_step(self.step)
        if asked is not None:
            asked.backward()  # type: ignore[no-untyped-call]
        self.step += 1
        settings = self.settings
        self.optimiser.step(rate_at(self.step, settings.steps, settings.rate * self.slower))
        self.student.after_step_(self.step)
        return True

    @property
    def _at_once(self) -> int:
        """Windows of a pass."""
        if self.settings.tokens_at_once is not None:
            return max(1, self.settings.tokens_at_once // self.context)
        model = self.student.model
        tokens: int = LOGIT_BYTES_ACCELERATOR // (4 * model.config.get_text_config().vocab_size)
        most = min(tokens, CPU_TOKENS) if model.device.type == "cpu" else tokens
        return max(1, most // self.context)

    def _check(self) -> bool:
        """Score the selection text and keep the run; whether its scores are numbers at all."""
        self.student.settle_()
        with torch.no_grad():
            scored = score(self.student.model, self.selection, self.teacher)
        if self.checks and not math.isfinite(scored.divergence):
            return False
        smoothed, penalty = self._watch.smoothed, self.penalty.total()
        self.checks.append(Check(self.step, smoothed, scored.divergence, scored.loss, penalty))
        if self.best is self.checks[-1]:
            self.best_weights = self.student.weights()
        self._keep()
        return True

    def _keep(self) -> None:
        """Keep how far the run is, in its file or else in memory."""
        self._kept = None  # free what is kept before there is more to keep
        state = self.optimiser.state()
        best = {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        facts: dict[str, Any] = {
            "step": self.step,
            "slower": self.slower,
            "checks": [asdict(check) for check in self.checks],
        }
        if self.checkpoint is not None:
            self.checkpoint.keep(state | best, facts)
        else:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
            self._kept = copies | best, facts

    def _resume_or_begin(self) -> None:
        if not self._put_back():
            self._check()
            return
        self.progress.note(f"Going on with healing at step {self.step} of {self.settings.steps}.")

    def _put_back(self) -> bool:
        """Return to what is kept; whether anything is."""
        kept = self._kept if self.checkpoint is None else self.checkpoint.read()
        if kept is None:
            return False
        tensors, facts = kept
        self.optimiser.load_state(tensors)
        self.step, self.slower = facts["step"], facts["slower"]
        self.checks = [Check(**check) for check in facts["checks"]]
        self.best_weights = {
            name.removeprefix("best."): tensor
            for name, tensor in tensors.items()
            if name.startswith("best.")
        }
        self._watch = Watch()
        return True

    def _step_back(self) -> None:
        """Return to the last check and halve the rate.

        Raises:
            AutocompressError: that has been tried often enough.
            StorageError: the file with the last check is gone.
        """
        failed, slower = self.step + 1, self.slower / 2
        if not self._put_back():
            raise StorageError(
                "the checkpoint of healing is gone",
                hint=f"The loss diverges at step {failed}: begin anew, at a lower --rate.",
            )
        self.slower = slower
        if slower < 0.5**MOST_BACK_STEPS:
            raise AutocompressError(
                f"healing diverges at step {failed}, also at a rate of "
                f"{self.settings.rate * self.slower:.2g}",
                hint="Lower --rate, or raise --tokens; the model before healing is untouched.",
            )
        self.progress.note(
            f"The loss diverges at step {failed}: back to step {self.step}, at half the rate "
            f"({self.settings.rate * slower:.2g})."
        )

    def _forecast(self) -> str:
        held = self.optimiser.memory_bytes / 2**20
        tokens = self.settings.steps * self._size * self.context
        text = self.windows.numel()
        return (
            f"Healing on {tokens:,} tokens, {tokens / text:.1f} times the text of {text:,}; "
            f"weights in training and the optimiser's take {held:,.0f} MiB."
        )
