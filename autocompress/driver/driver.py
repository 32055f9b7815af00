"""The search: what is measured next, what came of it, and when it is enough.

Every proposal is a trial of one Optuna study. Uniform baselines and a sweep of exact allocations
come first, then plans that a sampler proposes through the knobs and, now and then, the neighbours
of a plan on the front. An engine asks for jobs and tells their outcomes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import optuna
from optuna.trial import Trial

from autocompress.driver.engines.base import Engine
from autocompress.driver.proposing.knob_sampler import KnobSampler
from autocompress.driver.proposing.proposer import Proposal, Proposer
from autocompress.driver.proposing.shares import ALL, LEAST_TRIALS, Planned
from autocompress.driver.reporting import OnReport
from autocompress.driver.stopping import searched_for, searched_series, stopped_growing
from autocompress.driver.trial_store import TrialStore
from autocompress.driver.turns import Turns
from autocompress.errors import AutocompressError, ConfigurationError, StorageError, TimeIsUp
from autocompress.evaluation.jobs import Job, Outcome
from autocompress.evaluation.stages import rivals_of, stages_of
from autocompress.judging.against_dense import latency_within, meets
from autocompress.judging.front import best_and_rival, finalists
from autocompress.judging.hypervolume import hypervolume
from autocompress.judging.picking import best_or_none
from autocompress.progress import SILENT, Advance, Progress
from autocompress.records import Measurement
from autocompress.requests.verbs import SearchRequest
from autocompress.studies.observer import Observer, describe_trial
from autocompress.studies.storage import TROUBLES
from autocompress.studies.study import BASELINE, INTERRUPTED, StudyRecord, TrialRecord
from autocompress.studies.study_store import keep_relation, keep_report, to_record
from autocompress.studies.trial_owner import end_abandoned
from autocompress.units import parse_duration

# Plans for comparison are measured up to so many times the limit; larger ones say nothing of it.
REFERENCE_SPAN = 4.0
TRIALS_TO_TIME_BY = 5  # the slowest of so many is what the next one may take
MOST_FAILURES = 5  # failed trials in a row; then something else is wrong


@dataclass(frozen=True)
class Effort:
    """How long to search.

    Attributes:
        trials: that the study shall have in all, failed ones not counted.
        deadline: of ``time.monotonic``; no trial starts after it.
        patience: trials that search in a row without the front growing, before the end; no limit
            when left out.
        sampler: proposes the knobs; one of ``requests.verbs.SAMPLERS``.
        seed: of the sampler.
        planned: how many plans at most need no sampler.
        report_seconds: that a finalist takes on the report text, about.
        finish_seconds: that what follows the search takes, about.
    """

    trials: int
    deadline: float = math.inf
    patience: int | None = None
    sampler: str = "auto"
    seed: int = 0
    planned: Planned = ALL
    report_seconds: float = 0.0
    finish_seconds: float = 0.0

    @classmethod
    def of(cls, request: SearchRequest) -> Self:
        """What is asked, with the clock started.

        Raises:
            ConfigurationError: no time.
        """
        level, time_limit = request.level, request.time
        seconds = parse_duration(time_limit) if isinstance(time_limit, str) else time_limit
        if seconds is not None and seconds <= 0:
            what = "--time is too short"
            raise ConfigurationError(what, got=seconds, wanted="more than 0 seconds")
        return cls(
            level.trials if request.trials is None else request.trials,
            math.inf if seconds is None else time.monotonic() + seconds,
            request.patience,
            request.sampler,
            request.seed,
            Planned(level.baselines, level.sizes, level.trials),
        )


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
        end_abandoned(study)
        self.study, self.folder, self.proposer, self.effort = study, folder, proposer, effort
        self.observers, self.progress = observers, progress
        header = to_record(study, folder)
        priced = header.limits.latency_ms is not None
        self.store = TrialStore(study, header, priced=priced)
        self.record = replace(header, trials=tuple(self.store.news()))
        self.sampler = KnobSampler(effort.sampler, effort.seed, limit_ms=header.limits.latency_ms)
        for trial in self.record.trials:
            self._learn(trial)
        self.turns = Turns(proposer, self.sampler, effort.trials, effort.planned)
        self._stages = stages_of(windows)
        self._running: dict[int, tuple[Trial, Proposal]] = {}
        self._growth = list(searched_series(self.record))
        self._failures, self._exhausted = 0, False
        self._seconds: list[float] = []  # that trials took
        self._advance: Advance = lambda _steps: None

    def run(self, engine: Engine) -> None:
        """Run the trials.

        Args:
            engine: runs them.

        Raises:
            AutocompressError: many trials in a row failed, or time was up before the first.
        """
        for observer in self.observers:
            observer.started(to_record(self.study, self.folder))
        usual = self.effort.planned.trials or LEAST_TRIALS
        if self._count < self.effort.trials < min(usual, LEAST_TRIALS):
            self.progress.note(
                f"So few trials are spent on allocations and uniform baselines; from --trials "
                f"{LEAST_TRIALS} on some are left to search."
            )
        with self.progress.task("Searching (trials)", self.effort.trials) as advance:
            self._advance = advance
            advance(self._count)
            try:
                engine.drive(self)
            finally:
                self._let_go()
        self.progress.note(f"The search has ended: {self._reason}.")
        self._check_time()
        self._learn_latency()
        if self.proposer.relation is not None:
            keep_relation(self.study, self.proposer.relation)

    def report(self, engine: Engine, measure: Callable[[TrialRecord], Measurement]) -> StudyRecord:
        """Measure the finalists on the report text, and give the study as it is then.

        Args:
            engine: measures them where it has several workers.
            measure: measures the plan of one in this process.
        """
        self._measure_finalists(engine, measure)
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
            or self._time_is_up
            or self._stagnant
        )

    @property
    def _time_is_up(self) -> bool:
        """Whether another trial would leave too little time for the finalists and what follows.

        Before anything is measured there is time until the deadline itself.
        """
        if math.isinf(self.effort.deadline):
            return False
        needed = 0.0
        if self.record.complete:
            last = max(self._seconds[-TRIALS_TO_TIME_BY:], default=0.0)
            members = len(finalists(self.record)) + 1
            needed = last + members * self.effort.report_seconds + self.effort.finish_seconds
        return time.monotonic() + needed >= self.effort.deadline

    def ask(self) -> Job | None:
        """See ``AskTell``. Proposals over the byte limit end at once, without a job."""
        while not self.finished:
            for other in self.store.news():  # of other searches on the same study
                self._add(other)
            self._learn_latency()
            self.proposer.learn_quality(self.record)
            running = [proposal.phase for _, proposal in self._running.values()]
            proposal = self.turns.next(self.record, running, self.store.running)
            if proposal is None:
                self._exhausted = not self._running
                return None
            size = self.proposer.inventory.plan_bytes(proposal.plan)
            trial = self.store.begin(proposal, size)
            if self._beyond_the_span(proposal, size):
                self._ended(self.store.infeasible(trial))
                continue
            self.proposer.fit_plans([proposal.plan])
            self._running[trial.number] = trial, proposal
            return Job(trial.number, proposal.plan, self._stages, self._rivals(proposal, size))
        return None

    def tell(self, outcome: Outcome) -> None:
        """See ``AskTell``."""
        trial, _ = self._running.pop(outcome.number)
        self._seconds.append(outcome.seconds)
        self._ended(self.store.end(trial, outcome))

    @property
    def _count(self) -> int:
        return sum(trial.state != "failed" for trial in self.record.trials)

    @property
    def _reason(self) -> str:
        """Why nothing more is started."""
        if self._count >= self.effort.trials:
            return f"all {self._count} trials are done (--trials)"
        if self._time_is_up:
            return "its time is up (--time)"
        if self._stagnant:
            return f"{self.effort.patience} searched trials have not moved the front (--patience)"
        return "there is no plan left that it has not tried"

    @property
    def _stagnant(self) -> bool:
        patience, best = self.effort.patience, best_or_none(self.record)
        if patience is None or best is None or not stopped_growing(self._growth, patience):
            return False
        searched = [trial.number for trial in self.record.trials if searched_for(trial)]
        return best.number not in searched[-patience:]

    def _rivals(self, proposal: Proposal, size: int) -> tuple[tuple[float, ...], ...]:
        """Uniform baselines compete among themselves: they are there to be compared with."""
        baselines = proposal.phase == BASELINE
        limits = self.record.limits
        measured = [t for t in self.record.complete if (t.phase == BASELINE) == baselines]
        if limits.asks_quality:
            # A small plan that misses the quality must not keep from it one that may not.
            measured = [t for t in measured if meets(self.record, t)]
        elif limits.latency_ms is not None and not baselines:
            # A small plan that is too slow must not keep a fast one from being timed.
            measured = [t for t in measured if latency_within(limits, t)]
        return rivals_of(
            t.selection for t in measured if t.bytes <= size and t.selection is not None
        )

    def _beyond_the_span(self, proposal: Proposal, size: int) -> bool:
        limit = self.record.limits.memory_bytes
        span = REFERENCE_SPAN if proposal.knobs is None else 1.0
        return limit is not None and size > span * limit

    def _add(self, trial: TrialRecord) -> None:
        self.record = replace(self.record, trials=(*self.record.trials, trial))
        self._learn(trial)
        if trial.state != "failed":
            self._advance(1)
            if not searched_for(trial):
                self._growth.pop()  # patience is with the trials that search
            self._growth.append(hypervolume(self.record))

    def _ended(self, trial: TrialRecord) -> None:
        self._add(trial)
        self.progress.note(describe_trial(self.record, trial))
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
        self.sampler.learn(self.store.frozen[trial.number], self.store.objectives(trial))

    def _learn_latency(self) -> None:
        if self.record.dense_selection.latency_ms is not None:
            trials, dense_ms = self.record.complete, self.record.dense_selection.latency_ms
            self.proposer.learn_latency(trials, dense_ms)

    def _let_go(self) -> None:
        """Mark what still runs as failed; what a storage that is gone says of it says no more."""
        with suppress(StorageError, *TROUBLES):
            for trial, _ in self._running.values():
                self.store.end(trial, Outcome(trial.number, error=INTERRUPTED))

    def _check_time(self) -> None:
        """Say so when time was up before anything was measured.

        Raises:
            AutocompressError: it was.
        """
        if not self.record.complete and self._time_is_up:
            raise AutocompressError(
                "time was up before the first trial was measured",
                wanted="a longer --time",
                hint=f"What was fitted is kept: autocompress search --resume {self.record.name} "
                "--time 10m goes on.",
            )

    def _measure_finalists(
        self, engine: Engine, measure: Callable[[TrialRecord], Measurement]
    ) -> None:
        """Measure the front, and the uniform baseline it is compared with, on the report text.

        A plan that turns out to miss a target of quality there is no longer the best: the next one
        is measured as well. Where time is up, the best and its rival are measured still.
        """
        while missing := self._unreported():
            with self.progress.task(
                "Measuring the front on the report text (plans)", len(missing)
            ) as advance:
                self._report(missing, engine, measure, advance)
        if left := sum(trial.report is None for trial in finalists(self._stored)):
            self.progress.note(
                f"No time was left to measure {left} plans of the front on the report text: the "
                "same command with more --time does."
            )

    def _report(
        self,
        trials: Sequence[TrialRecord],
        engine: Engine,
        measure: Callable[[TrialRecord], Measurement],
        advance: Advance,
    ) -> None:
        """Measure trials on the report text until time is up; at least one, if it is already."""

        def keep(number: int, measured: Measurement) -> None:
            keep_report(self.study, trials[number], measured)
            advance(1)

        deadline = self.effort.deadline
        if engine.idle and len(trials) > 1:
            late = time.monotonic() >= deadline
            tasks = [OnReport(trial, self.folder) for trial in trials]
            with suppress(TimeIsUp):
                engine.do(tasks, keep, math.inf if late else deadline)
            return
        for number, trial in enumerate(trials):
            keep(number, measure(trial))
            if time.monotonic() >= deadline:
                break

    @property
    def _stored(self) -> StudyRecord:
        return to_record(self.study, self.folder)

    def _unreported(self) -> list[TrialRecord]:
        """The finalists to measure on the report text, the best and its rival first."""
        stored, late = self._stored, time.monotonic() >= self.effort.deadline
        first, others = best_and_rival(stored), () if late else finalists(stored)
        wanted = {trial.key: trial for trial in (*first, *others)}
        return [trial for trial in wanted.values() if trial.report is None]
