"""The loop: propose a plan, check its bytes in closed form, measure it, record it.

Every proposal is a trial of one Optuna study. Hand-written plans and a sweep of exact allocations
come first, then plans that the sampler proposes through the knobs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import Trial, TrialState

from autocompress.calibration.menu import Menu
from autocompress.errors import AutocompressError, StorageError
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.search.allocation import allocated_plan, bent_choices
from autocompress.search.allocator import Choice, smallest_bytes
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.front import finalists
from autocompress.search.hand_written import hand_written_plans
from autocompress.search.knob_sampler import KnobSampler, ask_with
from autocompress.search.knobs import Knobs
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.search.study_store import fail_unfinished, keep_report, to_record, to_trial_record
from autocompress.units import Limits, format_bytes

logger = logging.getLogger(__name__)

PREDICTED = Knobs(measured=0.0)
SWEEP = (1.0, 0.85, 0.7, 0.5, 1.25, 1.6, 2.2, 3.0)  # of the limit
SWEEP_WITHOUT_LIMIT = (0.5, 0.35, 0.25, 0.18, 0.125, 0.1, 0.08, 0.06, 0.05)  # of the dense model
# Plans for comparison are measured up to so many times the limit; larger ones say nothing of it.
REFERENCE_SPAN = 4.0
MOST_FAILURES = 5  # failed trials in a row; then something else is wrong


@dataclass(frozen=True)
class Proposal:
    """A plan that is to become a trial."""

    phase: str
    label: str
    plan: Plan
    knobs: Knobs | None = None


class Observer(Protocol):
    """Told what happens, to keep a record of it elsewhere. It must neither raise nor block."""

    def started(self, study: StudyRecord) -> None:
        """The study exists, and has these trials already."""

    def trial_finished(self, study_name: str, trial: TrialRecord) -> None:
        """One more trial has ended."""

    def finished(self, study: StudyRecord) -> None:
        """The search has ended."""


class Search:
    """One run of a search on a study, new or resumed.

    Args:
        study: the Optuna study, as made by ``create_study`` or loaded.
        folder: its run folder.
        evaluator: measures plans.
        menu: options of every layer.
        groups: layers that must take the same method.
        selection: the text that trials are scored on.
        report: the text that finalists are measured on.
        observers: told what happens.
        progress: shows how far the trials are.
        correct: measures how far the predicted damage of each layer is off inside a plan.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: Path,
        evaluator: Evaluator,
        menu: Menu,
        groups: tuple[tuple[str, ...], ...],
        selection: ScoredText,
        report: ScoredText,
        observers: Sequence[Observer] = (),
        progress: Progress = SILENT,
        correct: Callable[[Plan], Mapping[str, float]] = lambda _plan: {},
    ) -> None:
        self.study, self.folder = study, folder
        self.evaluator, self.menu, self.groups = evaluator, menu, groups
        self.selection, self.report = selection, report
        self.observers, self.progress, self.correct = observers, progress, correct
        self.inventory = evaluator.workbench.inventory
        self.header = to_record(study, folder)
        self.corrections: Mapping[str, float] | None = None  # until they are measured
        self.targets = self._targets()

    @property
    def limits(self) -> Limits:
        """What the plans may cost."""
        return self.header.limits

    def run(
        self, trials: int, seconds: float | None = None, *, sampler: str = "auto", seed: int = 0
    ) -> StudyRecord:
        """Search until enough trials or time is up, then measure the finalists on the report text.

        Args:
            trials: trials that the study shall have in all, failed ones not counted.
            seconds: no trial starts after so long.
            sampler: proposes the knobs; one of ``knob_sampler.SAMPLERS``.
            seed: of the sampler.

        Raises:
            AutocompressError: many trials in a row failed.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        fail_unfinished(self.study)
        record = to_record(self.study, self.folder)
        for observer in self.observers:
            observer.started(record)
        self._run_trials(record, trials, deadline, KnobSampler(self.study, sampler, seed))
        self._measure_finalists()
        record = to_record(self.study, self.folder)
        for observer in self.observers:
            observer.finished(record)
        return record

    def _run_trials(
        self, record: StudyRecord, trials: int, deadline: float, knobs: KnobSampler
    ) -> None:
        done = [trial for trial in record.trials if trial.state != "failed"]
        known = {(trial.phase, trial.label) for trial in done}
        first = self._allocation(self.targets[0], PREDICTED)
        planned = [] if (first.phase, first.label) in known else [first]
        count, failures = len(done), 0
        with self.progress.task("Searching (trials)", trials) as advance:
            advance(count)
            while count < trials and time.monotonic() < deadline:
                if not planned and self.corrections is None:
                    self.corrections = self.correct(first.plan)
                    planned = self._planned(known)
                proposal = planned.pop(0) if planned else self._from_knobs(knobs.propose())
                trial = self._run_trial(proposal)
                self.progress.note(describe_trial(trial, self.inventory.dense_bytes))
                for observer in self.observers:
                    observer.trial_finished(self.header.name, trial)
                failures = failures + 1 if trial.state == "failed" else 0
                if failures >= MOST_FAILURES:
                    raise AutocompressError(
                        f"{failures} trials in a row failed, the last with: {trial.error}"
                    )
                count += trial.state != "failed"
                advance(int(trial.state != "failed"))

    def _planned(self, done: set[tuple[str, str]]) -> list[Proposal]:
        """Make the proposals that need no sampler: the allocation, the hand-written, the sweep."""
        limit = self.limits.memory_bytes
        share = None if limit is None else min(limit / self.inventory.dense_bytes, 1.0)
        hand_written = [
            Proposal("hand-written", label, plan)
            for label, plan in hand_written_plans(self.inventory.layers, share)
        ]
        sweep = [self._allocation(target, Knobs()) for target in self.targets]
        ordered = [*sweep[:1], *hand_written, *sweep[1:]]
        return [proposal for proposal in ordered if (proposal.phase, proposal.label) not in done]

    def _targets(self) -> list[float]:
        """Bytes to allocate at, those of the budget first."""
        dense, limit = self.inventory.dense_bytes, self.limits.memory_bytes
        if limit is None:
            targets = [share * dense for share in SWEEP_WITHOUT_LIMIT]
        else:
            targets = [share * min(limit, dense) for share in SWEEP]
        least = self.inventory.rest_bytes + smallest_bytes(self._choices(PREDICTED))
        return [target for target in targets if least <= target <= dense] or [float(dense)]

    def _allocation(self, target: float, knobs: Knobs) -> Proposal:
        ratio = f"{self.inventory.dense_bytes / target:.3g}x"
        label = f"allocated {ratio}" + (" on predictions" if knobs == PREDICTED else "")
        # Only what spends the whole budget teaches the sampler, which spends it too.
        at_limit = target == self.targets[0]
        return Proposal(
            "allocation", label, self._allocated(knobs, target), knobs if at_limit else None
        )

    def _from_knobs(self, knobs: Knobs) -> Proposal:
        searched = len(self.study.get_trials(deepcopy=False))
        turn = 0 if self.limits.memory_bytes else searched % len(self.targets)
        target = self.targets[turn]
        return Proposal("knobs", "searched", self._allocated(knobs, target), knobs)

    def _choices(self, knobs: Knobs) -> list[Choice]:
        return bent_choices(self.menu, knobs, self.groups, self.corrections)

    def _allocated(self, knobs: Knobs, target_bytes: float) -> Plan:
        room = int(target_bytes) - self.inventory.rest_bytes
        return allocated_plan(self.menu, self._choices(knobs), room)

    def _run_trial(self, proposal: Proposal) -> TrialRecord:
        """Make a trial of a proposal, measure it unless its bytes rule it out, and store it."""
        started = time.monotonic()
        trial = ask_with(self.study, proposal.knobs)
        size = self.inventory.plan_bytes(proposal.plan)
        trial.set_user_attr(
            "proposal",
            {
                "phase": proposal.phase,
                "label": proposal.label,
                "bytes": size,
                "recipe": proposal.plan.to_recipe(),
            },
        )
        over = self._over_limit(size)
        if over is not None:
            trial.set_constraint("memory", over)
        span = REFERENCE_SPAN if proposal.knobs is None else 1.0
        if over is not None and over > span - 1:
            return self._tell(trial, started, state=TrialState.PRUNED)
        try:
            measurement = self.evaluator.measure(proposal.plan, self.selection)
        except KeyboardInterrupt:
            self._tell(trial, started, state=TrialState.FAIL, error="interrupted")
            raise
        except (AutocompressError, RuntimeError, MemoryError) as error:
            logger.warning("trial %d failed: %s", trial.number, error)
            return self._tell(trial, started, state=TrialState.FAIL, error=str(error))
        if not math.isfinite(measurement.perplexity):
            return self._tell(
                trial, started, state=TrialState.FAIL, error="the perplexity is not a finite number"
            )
        return self._tell(trial, started, measurement=measurement)

    def _over_limit(self, size: int) -> float | None:
        """How far bytes are above the limit, relative to it; ``None`` without a limit."""
        limit = self.limits.memory_bytes
        return None if limit is None else size / limit - 1

    def _tell(
        self,
        trial: Trial,
        started: float,
        *,
        state: TrialState | None = None,
        measurement: Measurement | None = None,
        error: str = "",
    ) -> TrialRecord:
        result: dict[str, Any] = {"seconds": time.monotonic() - started}
        values = None
        if error:
            result["error"] = error
        if measurement is not None:
            result["selection"] = measurement.to_dict()
            latency = measurement.latency_ms or 0.0
            values = [measurement.perplexity, float(measurement.bytes), latency]
            if self.limits.latency_ms is not None:
                trial.set_constraint("latency", latency / self.limits.latency_ms - 1)
        trial.set_user_attr("result", result)
        record = to_trial_record(self.study.tell(trial, values, state=state), {})
        if record is None:
            raise StorageError(f"the storage has lost trial {trial.number} while it ran")
        return record

    def _measure_finalists(self) -> None:
        """Measure the front, and the hand-written plan it is compared with, on the report text."""
        missing = [
            trial for trial in finalists(to_record(self.study, self.folder)) if trial.report is None
        ]
        with self.progress.task(
            "Measuring the front on the report text (plans)", len(missing)
        ) as advance:
            for trial in missing:
                keep_report(self.study, self.evaluator.measure(trial.plan, self.report))
                advance(1)


def describe_trial(trial: TrialRecord, dense_bytes: int) -> str:
    """One line about a trial that has ended."""
    size = f"{format_bytes(trial.bytes):>8} {dense_bytes / trial.bytes:5.2f}x"
    line = f"trial {trial.number:3}  {size}  {trial.label}"
    if trial.selection is None:
        reason = "over the budget, not measured" if trial.state == "infeasible" else trial.error
        return f"{line}: {reason}"
    return f"{line}: perplexity {trial.selection.perplexity:.4g}, KL {trial.selection.kl:.4f}"
