"""The search: what is measured next, what came of it, and when it is enough.

Every proposal is a trial of one Optuna study. Hand-written plans and a sweep of exact allocations
come first, then plans that a sampler proposes through the knobs and, now and then, the neighbours
of a plan on the front. An engine asks for jobs and tells their outcomes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import optuna
from optuna.trial import Trial

from autocompress.errors import AutocompressError, StorageError
from autocompress.progress import SILENT, Advance, Progress
from autocompress.records import Measurement
from autocompress.search.against_dense import meets
from autocompress.search.engines.base import Engine, Job, Outcome
from autocompress.search.front import finalists, front_of
from autocompress.search.hypervolume import hypervolume
from autocompress.search.knob_sampler import KnobSampler
from autocompress.search.knobs import Knobs
from autocompress.search.observer import Observer, describe_trial
from autocompress.search.picking import best_or_none
from autocompress.search.proposer import Proposal, Proposer
from autocompress.search.stages import rivals_of, stages_of
from autocompress.search.stopping import searched_series, stopped_growing
from autocompress.search.storage import TROUBLES
from autocompress.search.study import HAND_WRITTEN, PLANNED, StudyRecord, TrialRecord
from autocompress.search.study_store import keep_relation, keep_report, to_record
from autocompress.search.trial_owner import fail_unfinished
from autocompress.search.trial_store import TrialStore

# Plans for comparison are measured up to so many times the limit; larger ones say nothing of it.
REFERENCE_SPAN = 4.0
MOST_FAILURES = 5  # failed trials in a row; then something else is wrong
DRAWS = 16  # of knobs, until they give a plan that has not been tried
SWAP_EVERY = 4  # searched trials, one is a neighbour of a plan on the front


@dataclass(frozen=True)
class Effort:
    """How long to search.

    Attributes:
        trials: that the study shall have in all, failed ones not counted.
        deadline: of ``time.monotonic``; no trial starts after it.
        patience: trials that search in a row without the front growing, before the end; no limit
            when left out.
        sampler: proposes the knobs; one of ``knob_sampler.SAMPLERS``.
        seed: of the sampler.
    """

    trials: int
    deadline: float = math.inf
    patience: int | None = None
    sampler: str = "auto"
    seed: int = 0


class Search:
    """One run of a search on a study, new or resumed. Speaks to an engine by ``ask`` and ``tell``.

    Args:
        study: the Optuna study, as made by ``create_study`` or loaded.
        folder: its run folder.
        proposer: makes plans.
        effort: how long to search.
        windows: of the selection text.
        observers: told what happens.
        progress: shows how far the trials are.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: Path,
        proposer: Proposer,
        effort: Effort,
        windows: int = 0,
        observers: Sequence[Observer] = (),
        progress: Progress = SILENT,
    ) -> None:
        fail_unfinished(study)
        self.study, self.folder, self.proposer, self.effort = study, folder, proposer, effort
        self.observers, self.progress = observers, progress
        header = to_record(study, folder)
        priced = header.limits.latency_ms is not None
        self.store = TrialStore(study, header, priced=priced)
        self.record = replace(header, trials=tuple(self.store.news()))
        offset = len(study.get_trials(deepcopy=False))  # a resumed search draws on from there
        self.sampler = KnobSampler(effort.sampler, effort.seed + offset, priced=priced)
        for trial in self.record.trials:
            self._learn(trial)
        self._planned = proposer.planned()
        self._stages = stages_of(windows)
        self._running: dict[int, tuple[Trial, Proposal]] = {}
        self._growth = list(searched_series(self.record))
        self._failures, self._exhausted = 0, False
        self._advance: Advance = lambda _steps: None

    def run(
        self, engine: Engine, measure_report: Callable[[TrialRecord], Measurement]
    ) -> StudyRecord:
        """Search, then measure the finalists on the report text.

        Args:
            engine: runs the trials.
            measure_report: measures the plan of a finalist.

        Raises:
            AutocompressError: many trials in a row failed, or time was up before the first.
        """
        for observer in self.observers:
            observer.started(to_record(self.study, self.folder))
        with self.progress.task("Searching (trials)", self.effort.trials) as advance:
            self._advance = advance
            advance(self._count)
            try:
                engine.drive(self)
            finally:
                self._let_go()
        self._check_time()
        self._learn_latency()
        if self.proposer.relation is not None:
            keep_relation(self.study, self.proposer.relation)
        self._measure_finalists(measure_report)
        record = to_record(self.study, self.folder)
        for observer in self.observers:
            observer.finished(record)
        return record

    @property
    def finished(self) -> bool:
        """See ``AskTell``."""
        return (
            self._exhausted
            or self._count + len(self._running) >= self.effort.trials
            or time.monotonic() >= self.effort.deadline
            or self._stagnant
        )

    def ask(self) -> Job | None:
        """See ``AskTell``. Proposals over the byte limit end at once, without a job."""
        while not self.finished:
            proposal = self._next_proposal()
            if proposal is None:
                self._exhausted = not self._running
                return None
            size = self.proposer.inventory.plan_bytes(proposal.plan)
            trial = self.store.begin(proposal, size)
            if self._beyond_the_span(proposal, size):
                self._ended(self.store.infeasible(trial))
                continue
            self._running[trial.number] = trial, proposal
            return Job(trial.number, proposal.plan, self._stages, self._rivals(proposal, size))
        return None

    def tell(self, outcome: Outcome) -> None:
        """See ``AskTell``."""
        trial, _ = self._running.pop(outcome.number)
        self._ended(self.store.end(trial, outcome))

    @property
    def _count(self) -> int:
        return sum(trial.state != "failed" for trial in self.record.trials)

    @property
    def _stagnant(self) -> bool:
        patience = self.effort.patience
        return patience is not None and stopped_growing(self._growth, patience)

    def _next_proposal(self) -> Proposal | None:
        for trial in self.store.news():  # of other searches on the same study
            self._add(trial)
        self._learn_latency()
        known = self._known()
        while self._planned:
            proposal = self._planned.pop(0)()
            if proposal.plan.hash not in known:
                return proposal
        phases = [trial.phase for trial in self.record.trials]
        phases += [proposal.phase for _, proposal in self._running.values()]
        turn = sum(phase not in PLANNED for phase in phases)
        if turn % SWAP_EVERY == SWAP_EVERY - 1:
            return self._swapped(turn // SWAP_EVERY, known) or self._from_knobs(turn, known)
        return self._from_knobs(turn, known) or self._swapped(turn // SWAP_EVERY, known)

    def _known(self) -> set[str]:
        """Hashes of the plans that need not be tried again."""
        tried = {trial.plan.hash for trial in self.record.trials if trial.state != "failed"}
        return tried | self.store.running

    def _from_knobs(self, turn: int, known: set[str]) -> Proposal | None:
        """The first of some draws that gives a plan which is not known."""
        limits = self.record.limits
        front = [trial for trial in front_of(self.record) if meets(limits, trial)]
        # Under a limit of latency alone, as many bytes as it takes are the first thing to try.
        widest = limits.latency_ms is None or turn % 2
        target = self.proposer.target(front if widest else [])
        drawn = islice(self.sampler.proposals(), DRAWS)
        # Without a budget the target moves, and the allocation there is as good a guess as any.
        usual = [Knobs()] if turn % 2 else []
        for knobs in chain(usual, drawn):
            proposal = self.proposer.from_knobs(knobs, target)
            if proposal.plan.hash not in known:
                return proposal
        return None

    def _swapped(self, turn: int, known: set[str]) -> Proposal | None:
        """A neighbour of the best plan, or in turn of the members of the front."""
        ours = tuple(trial for trial in self.record.trials if trial.phase != HAND_WRITTEN)
        made = replace(self.record, trials=ours)
        best = best_or_none(made) if made.limits.memory_bytes is not None else None
        front = front_of(made) if best is None else (best,)
        ordered = front[turn % len(front) :] + front[: turn % len(front)] if front else ()
        swapped = (self.proposer.swapped(trial, known) for trial in ordered)
        return next((proposal for proposal in swapped if proposal is not None), None)

    def _rivals(self, proposal: Proposal, size: int) -> tuple[tuple[float, ...], ...]:
        """Hand-written plans compete among themselves: they are there to be compared with."""
        by_hand = proposal.phase == HAND_WRITTEN
        measured = self.record.complete
        return rivals_of(size, (t for t in measured if (t.phase == HAND_WRITTEN) == by_hand))

    def _beyond_the_span(self, proposal: Proposal, size: int) -> bool:
        limit = self.record.limits.memory_bytes
        span = REFERENCE_SPAN if proposal.knobs is None else 1.0
        return limit is not None and size > span * limit

    def _add(self, trial: TrialRecord) -> None:
        self.record = replace(self.record, trials=(*self.record.trials, trial))
        self._learn(trial)
        if trial.state != "failed":
            self._advance(1)
            if trial.phase in PLANNED:
                self._growth.pop()  # patience is with the trials that search
            self._growth.append(hypervolume(self.record))

    def _ended(self, trial: TrialRecord) -> None:
        self._add(trial)
        self.progress.note(describe_trial(trial, self.record.dense_bytes))
        for observer in self.observers:
            observer.trial_finished(self.record.name, trial)
        if trial.state != "failed":
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            what = f"{self._failures} trials in a row failed, the last with: {trial.error}"
            raise AutocompressError(what)

    def _learn(self, trial: TrialRecord) -> None:
        values = self.store.objectives(trial)
        if values is not None:
            self.sampler.learn(self.store.frozen[trial.number], values)

    def _learn_latency(self) -> None:
        if self.record.dense_selection.latency_ms is not None:
            trials, dense_ms = self.record.complete, self.record.dense_selection.latency_ms
            self.proposer.learn_latency(trials, dense_ms)

    def _let_go(self) -> None:
        """Mark what still runs as failed; what a storage that is gone says of it says no more."""
        with suppress(StorageError, *TROUBLES):
            for trial, _ in self._running.values():
                self.store.end(trial, Outcome(trial.number, error="interrupted"))

    def _check_time(self) -> None:
        """Say so when time was up before anything was measured.

        Raises:
            AutocompressError: it was.
        """
        if not self.record.complete and time.monotonic() >= self.effort.deadline:
            raise AutocompressError(
                "time was up before the first trial was measured",
                wanted="a longer --time",
                hint=f"What was fitted is kept: autocompress search --resume {self.record.name} "
                "--time 10m goes on.",
            )

    def _measure_finalists(self, measure: Callable[[TrialRecord], Measurement]) -> None:
        """Measure the front, and the hand-written plan it is compared with, on the report text."""
        missing = [
            trial for trial in finalists(to_record(self.study, self.folder)) if trial.report is None
        ]
        with self.progress.task(
            "Measuring the front on the report text (plans)", len(missing)
        ) as advance:
            for trial in missing:
                keep_report(self.study, measure(trial))
                advance(1)
