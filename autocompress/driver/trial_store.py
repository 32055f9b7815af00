"""Writes trials into the stored study: what is proposed, and what becomes of it."""

from __future__ import annotations

import logging
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.driver.proposing.knob_sampler import ask_with
from autocompress.driver.proposing.proposer import Proposal
from autocompress.errors import StorageError
from autocompress.evaluation.jobs import Outcome
from autocompress.judging.against_dense import loss_on
from autocompress.studies.study import HEALED, StudyRecord, TrialRecord
from autocompress.studies.study_store import to_trial_record, values_of
from autocompress.studies.trial_owner import own

UNKNOWN_LOSS = 1e6  # times what a target of quality allows: constraints are finite

logger = logging.getLogger(__name__)


class TrialStore:
    """The trials of one stored study.

    Attributes:
        frozen: finished trials as they are stored, by number.
        running: hashes of the plans that are being measured, by whichever search.

    Args:
        study: the stored study.
        header: what it is about.
        priced: whether a limit of latency makes its price a knob.
    """

    def __init__(self, study: optuna.Study, header: StudyRecord, *, priced: bool) -> None:
        self.study, self.header, self.priced = study, header, priced
        self.frozen: dict[int, FrozenTrial] = {}
        self.running: set[str] = set()

    def news(self) -> list[TrialRecord]:
        """The trials that have ended since this was last asked, those of other searches too.

        Healed ones are left out: a search must not measure unhealed plans by them.
        """
        fresh = []
        self.running.clear()
        for trial in self.study.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                if (proposal := trial.user_attrs.get("proposal")) is not None:
                    self.running.add(proposal["plan_hash"])
            elif trial.number not in self.frozen:
                self.frozen[trial.number] = trial
                record = to_trial_record(trial, {})
                fresh += [] if record is None or record.phase == HEALED else [record]
        return fresh

    def begin(self, proposal: Proposal, size: int) -> Trial:
        """Start a trial, which holds its plan from now on."""
        trial = ask_with(self.study, proposal.knobs, priced=self.priced)
        own(trial)
        trial.set_user_attr(
            "proposal",
            {
                "phase": proposal.phase,
                "label": proposal.label,
                "bytes": size,
                "plan_hash": proposal.plan.hash,
                "recipe": proposal.plan.to_recipe(),
            },
        )
        if self.header.limits.memory_bytes is not None:
            # Of every trial: samplers and dashboards take one without constraints for feasible.
            trial.set_constraint("memory", size / self.header.limits.memory_bytes - 1)
        return trial

    def infeasible(self, trial: Trial) -> TrialRecord:
        """End a trial that its bytes rule out."""
        return self._tell(trial, {"seconds": 0.0}, TrialState.PRUNED)

    def end(self, trial: Trial, outcome: Outcome) -> TrialRecord:
        """End a trial with what became of its job."""
        result: dict[str, Any] = {"seconds": outcome.seconds}
        measured = outcome.measurement
        if measured is None:
            result["error"] = outcome.error
            logger.warning("trial %d failed: %s", trial.number, outcome.error)
            return self._tell(trial, result, TrialState.FAIL)
        if outcome.stopped_at is not None:
            result |= {"partial": measured.to_dict(), "stopped_at": outcome.stopped_at}
            return self._tell(trial, result, TrialState.PRUNED)
        result["selection"] = measured.to_dict()
        values = values_of(measured.loss, measured.bytes, measured.latency_ms)
        if self.header.limits.latency_ms is not None:
            trial.set_constraint("latency", values[2] / self.header.limits.latency_ms - 1)
        if self.header.limits.asks_quality:
            used = loss_on(self.header, measured).used(self.header.limits)
            trial.set_constraint("quality", min(used, UNKNOWN_LOSS) - 1)
        return self._tell(trial, result, None, values)

    def objectives(self, trial: TrialRecord) -> list[float] | None:
        """Values of a trial for a sampler to learn from, see ``values_of``; ``None`` if unknown.

        A trial that was given up has the loss that its first windows point to. How long a token
        takes it never came to; it counts as the dense model's.
        """
        measured = trial.selection or trial.partial
        if measured is None:
            return None
        dense = self.header.dense_selection
        loss = measured.loss
        if trial.selection is None and measured.windows and dense.windows:
            known = len(measured.windows.tokens)
            tokens = dense.windows.tokens[:known]
            losses = zip(tokens, dense.windows.loss, strict=False)
            loss += dense.loss - sum(count * each for count, each in losses) / sum(tokens)
        return values_of(loss, trial.bytes, measured.latency_ms or dense.latency_ms)

    def _tell(
        self,
        trial: Trial,
        result: dict[str, Any],
        state: TrialState | None,
        values: list[float] | None = None,
    ) -> TrialRecord:
        trial.set_user_attr("result", result)
        frozen = self.frozen[trial.number] = self.study.tell(trial, values, state=state)
        record = to_trial_record(frozen, {})
        if record is None:
            raise StorageError(f"the storage has lost trial {trial.number} while it ran")
        return record
