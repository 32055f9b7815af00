"""The stages of a search, in order: each runs, and each predicts what it will take."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from autocompress.calibration.fitting import LEAST_PARAMETERS_TO_SHARE, WORK_BYTES
from autocompress.calibration.latency_table import BYTES_AT_ONCE, MOST_STREAMED, LatencyTable
from autocompress.calibration.layer_timing import ENOUGH_SECONDS
from autocompress.calibration.menu import Menu
from autocompress.calibration.screening import describe_fits
from autocompress.driver.driver import Search
from autocompress.driver.engines.base import Engine
from autocompress.driver.engines.choosing import make_engine
from autocompress.driver.estimate.probes import PerElement, Speed
from autocompress.driver.estimate.work import Fits, Forecast, Work
from autocompress.driver.finish import finish_search
from autocompress.driver.opening import Opened
from autocompress.driver.proposing.aiming import Sighting, aim, approach
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.quality_goal import (
    COARSE_STEPS,
    COARSE_TOLERANCE,
    check_cosine,
    loss_against_dense,
)
from autocompress.driver.reporting import OnReport
from autocompress.driver.rounds import price_menu
from autocompress.driver.study_choice import REQUEST
from autocompress.driver.worker import Desk, WorkerSettings, dense_latency_of
from autocompress.evaluation.evaluator import LATENCY_ROUNDS, LATENCY_TOKENS
from autocompress.evaluation.latency import PROMPT_TOKENS, ROUND_TOKENS, ROUNDS, WARM_UP_TOKENS
from autocompress.judging.dominance import HYPERVOLUME_REFERENCE_INCREASE
from autocompress.judging.hypervolume import REFERENCE_SETTING
from autocompress.numerics.metric import FULL_GRAM_LIMIT
from autocompress.paths import shown
from autocompress.progress import SILENT
from autocompress.records import Kind, LayerSpec
from autocompress.requests.groups import SessionRequest
from autocompress.session.left_dense import refused_of, unreached_of
from autocompress.session.session import grouped_names
from autocompress.studies.observer import Observer
from autocompress.studies.run_folder import touch
from autocompress.studies.storage import settle, storage_errors
from autocompress.studies.stored_menu import keep_menu
from autocompress.studies.study import GAUGE_SETTING, StudyRecord
from autocompress.studies.study_store import create_study, to_record

FINISH_SHARE = 0.3  # of the time left, at most, to refit the best plan
FITTING_SHARE = 0.4  # of the time left, at most, to fit what plans take
PRICING_SHARE = 0.5  # of the time left, at most, to price options; the rest is for trials

SCORING_SLOWDOWN = 1.5  # of a compressed plan, whose layers are unpacked first
DECODING_SLOWDOWN = 4.0  # of codes on a CPU, which unpacks them for each token
# Of training on a token, in passes of the scoring: the dense model, and the other there and back.
TRAINING_PASSES = 6
# Of refitting matrices: the dense model through each block, the compressed one up to each of its
# matrices and on, and the fits.
REFIT_PASSES = 12
TRAINED_BYTES = 24  # of each number: its latent, gradient, two moments, and what it was before
# Of pricing on a token: forth through the model, forth and back through each block, and what the
# options of the matrices take.
PRICING_PASSES = 10
TIMING_SECONDS = 4 * ENOUGH_SECONDS  # of an option, one like it, and dense ones; large: more


class Run:
    """A search at work: what its stages have made so far.

    Args:
        opened: the search as it begins.
        observers: told what happens.

    Attributes:
        record: the study, once it is made.
        menu: the options of every matrix.
        proposer: makes plans of them.
        search: measures plans.
    """

    menu: Menu
    proposer: Proposer
    search: Search
    record: StudyRecord
    engine: Engine

    def __init__(self, opened: Opened, observers: Sequence[Observer] = ()) -> None:
        self.opened, self.observers, self.study = opened, observers, opened.study
        self.session, self.progress = opened.session, opened.session.progress
        known = None if self.study is None else to_record(self.study, opened.folder)
        self.desk = Desk(self.session, None if known is None else dense_latency_of(known))
        self.effort, self.finish_by = opened.effort, math.inf
        # A study that was measured before has something to show whenever it ends.
        self.fit_by = math.inf if known is not None and known.complete else self.effort.deadline

    def close(self) -> None:
        """End the workers, and leave the storage in good order."""
        if self.session.crew is not None:
            self.engine.close()
        if self.study is not None:
            settle(self.study)


class Stage(Protocol):
    """One stage of a search."""

    def run(self, run: Run) -> None:
        """Do it."""

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """Predict what it takes; nothing where there is no such stage."""


class DenseStage:
    """The dense model predicts both texts, to be compared with, and is timed in a new study."""

    def run(self, run: Run) -> None:
        """Measure it, make the study or go on with it, and start the workers."""
        opened, desk = run.opened, run.desk
        with run.progress.task("Measuring the dense model"):
            self._plan_the_end(run)
            if run.study is None:
                header = _header(opened, desk, run.effort.trials)
                run.study = create_study(header, opened.url)
                run.progress.note(
                    f"Study {opened.name} in {shown(header.folder)}; stop it at any time, "
                    "the same command goes on with it."
                )
            else:
                touch(opened.folder, opened.name, opened.url)
                run.progress.note(f"Going on with study {opened.name}.")
        run.record = to_record(run.study, opened.folder)
        workers = WorkerSettings(
            opened.request.into(SessionRequest, progress=SILENT),
            desk.evaluator.dense_latency,
            run.session.loaded.fingerprint,
        ).spread(opened.request.workers)
        run.engine = run.session.crew = make_engine(
            opened.request,
            desk,
            [worker.open for worker in workers],
            cpus_per_trial=workers[0].threads or 1,
        )

    @staticmethod
    def _plan_the_end(run: Run) -> None:
        """Keep time for what follows the trials, told from the time of scoring both texts once.

        Where refitting the best plan would take too large a share of the time, it is not waited
        for.
        """
        desk, tokens, finish = run.desk, run.session.tokens, run.opened.finish
        seconds = desk.selection.seconds + desk.report.seconds
        each = seconds / (tokens.selection + tokens.report)
        report = SCORING_SLOWDOWN * each * tokens.report
        plans = 0 if finish is None or finish.whole_front else 2
        anew = plans * (each * REFIT_PASSES * tokens.refit + report)
        left = run.effort.deadline - time.monotonic()
        waited = anew if anew < FINISH_SHARE * left else 0.0
        run.effort = replace(run.effort, report_seconds=report, finish_seconds=waited)
        run.finish_by = run.effort.deadline - anew

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        tokens = work.selection_tokens + work.report_tokens
        rounds = ROUNDS + 1 if work.new else 0
        decoding = rounds * (WARM_UP_TOKENS + ROUND_TOKENS) * speed.decoding_ms / 1000
        seconds = speed.scoring.seconds(tokens) + decoding
        yield Forecast("dense model", f"{tokens:,} tokens", seconds, work.scoring_bytes)


class CalibrationStage:
    """Statistics of every matrix are collected on the calibration text."""

    def run(self, run: Run) -> None:
        """Collect those that are not in the cache."""
        run.session.calibrated(run.fit_by)

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        tokens = work.calibration_tokens
        yield Forecast(
            "calibrating",
            f"{tokens:,} tokens" if tokens else "in the cache",
            speed.calibrating.seconds(tokens) if tokens else 0.0,
            work.scoring_bytes + _gram_bytes(work.specs),
        )


class FittingStage:
    """Options are fitted to samples of the matrices, or to all."""

    def run(self, run: Run) -> None:
        """Make the menu."""
        request = run.opened.request
        run.menu = run.session.menu(
            run.opened.space,
            samples=request.level.samples,
            fit_all=request.fit_all,
            timed=run.record.limits.latency_ms is not None,
            deadline=run.fit_by,
        )

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        yield Forecast(
            "fitting",
            f"{work.fits.total():,} options" if work.fits else "in the cache",
            _fit_seconds(work.fits, speed, work.at_once),
            work.held_bytes + work.teacher_bytes + _fit_bytes(work),
        )


class TimingStage:
    """Options are timed by themselves, where latency counts."""

    def run(self, run: Run) -> None:
        """Time them, and make what proposes plans.

        Raises:
            BudgetUnreachable: no plan is as fast as the limits want; said before any is priced.
        """
        session, space, limits = run.session, run.opened.space, run.record.limits
        latencies = None
        if limits.latency_ms is not None:
            latencies = LatencyTable.of(
                session.workbench,
                run.menu,
                session.cache,
                unused=session.unreached,
                progress=session.progress,
            )
        inventory = session.workbench.inventory
        run.proposer = Proposer(
            run.menu,
            inventory,
            limits,
            grouped_names(space, inventory),
            latencies,
            methods=space.selection.methods,
            held=dict(space.held),
            fit=session.fit_taken,
        )
        run.proposer.check_latency(run.desk.evaluator.dense_latency.median_ms)

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:  # noqa: ARG002
        """See ``Stage``."""
        if work.timed is None:
            return
        what = f"{work.timed:,} options, {1000 * TIMING_SECONDS:.0f} ms or more each"
        largest = max(spec.parameters for spec in work.specs)
        layers = min(BYTES_AT_ONCE, 8 * largest * work.timed)
        streamed = min(MOST_STREAMED, 4 * sum(spec.parameters for spec in work.specs))
        yield Forecast(
            "timing layers",
            what if work.timed else "in the cache",
            TIMING_SECONDS * work.timed,
            work.held_bytes + work.teacher_bytes + layers + streamed,
        )


class PricingStage:
    """Options are priced inside compressed models, beside predictions around the dense one."""

    def run(self, run: Run) -> None:
        """Look for the size that keeps a quality, fit what plans take, and price."""
        session, proposer = run.session, run.proposer
        if proposer.limits.asks_quality:
            _seek_quality(run)
        deadline, level, now = run.effort.deadline, run.opened.request.level, time.monotonic()
        proposer.fit_until = now + FITTING_SHARE * (deadline - now)
        proposer.settled(PREDICTED, *proposer.targets[: level.sizes + 1])
        if session.tokens.pricing:
            texts = session.pricing_texts
            now = time.monotonic()
            price_menu(
                proposer,
                session.builder,
                texts,
                session.progress,
                now + PRICING_SHARE * (deadline - now),
                rounds=level.rounds,
                crew=session.crew,
            )
        keep_menu(run.opened.folder, proposer.stored)

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        yield Forecast(
            "pricing options",
            f"about {work.pricings} passes of {work.pricing_tokens:,} tokens",
            work.pricings * PRICING_PASSES * speed.scoring.seconds(work.pricing_tokens),
            work.scoring_bytes + min(work.built_bytes, work.plan_bytes),
        )


class TrialStage:
    """Plans are proposed and measured on the selection text."""

    def run(self, run: Run) -> None:
        """Run the trials."""
        opened = run.opened
        with storage_errors(opened.url):
            run.search = Search(
                *(run.study, opened.folder, run.proposer, run.effort),
                *(len(run.desk.selection.windows), run.observers, run.progress),
            )
            run.search.run(run.engine)

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        each = _scoring(speed, work.selection_tokens) + _timing(speed)
        seconds = work.trials * each + _fit_seconds(work.built, speed, 1)
        what = f"{work.trials} plans on {work.selection_tokens:,} tokens"
        if work.workers > 1:
            what += f", {work.workers} at a time"
        memory = (work.scoring_bytes + work.built_bytes) * work.workers
        yield Forecast("trials", what, seconds / work.workers, memory)


class ReportStage:
    """The front is measured on the report text."""

    def run(self, run: Run) -> None:
        """Measure it."""
        opened, desk = run.opened, run.desk
        with storage_errors(opened.url):
            run.record = run.search.report(
                run.engine, lambda trial: OnReport(trial, opened.folder).done_on(desk)
            )
        keep_menu(opened.folder, run.proposer.stored)  # with what was fitted on the way
        run.progress.note(describe_fits(run.proposer.menu))

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        yield Forecast(
            "final measurements",
            f"about {work.finalists} plans on {work.report_tokens:,} tokens",
            _scoring(speed, work.report_tokens) * work.finalists / work.workers,
            (work.scoring_bytes + work.built_bytes) * work.workers,
        )


class RefitStage:
    """The best plans are refitted, and trained where that was asked for."""

    def run(self, run: Run) -> None:
        """Heal them; each becomes a further trial."""
        opened = run.opened
        if opened.finish is None:
            return
        with storage_errors(opened.url):
            if finish_search(
                run.study,
                opened.folder,
                run.desk,
                opened.finish,
                deadline=run.finish_by,
                observers=run.observers,
                crew=run.engine,
            ):
                run.record = to_record(run.study, opened.folder)
                for observer in run.observers:
                    observer.finished(run.record)

    def forecast(self, work: Work, speed: Speed) -> Iterator[Forecast]:
        """See ``Stage``."""
        at_once = min(work.workers, work.healed)
        held, trained = work.scoring_bytes, sum(spec.parameters for spec in work.specs)
        for name, tokens, passes, memory in (
            ("refitting", work.refit_tokens, REFIT_PASSES, held),
            ("healing", work.healing_tokens, TRAINING_PASSES, held + TRAINED_BYTES * trained),
        ):
            if work.healed and tokens:
                seconds = work.healed * passes * speed.scoring.seconds(tokens) / at_once
                what = f"about {work.healed} plans on {tokens:,} tokens"
                yield Forecast(name, what, seconds, memory * at_once)


STAGES: tuple[Stage, ...] = (
    *(DenseStage(), CalibrationStage(), FittingStage(), TimingStage(), PricingStage()),
    *(TrialStage(), ReportStage(), RefitStage()),
)


def predict_stages(work: Work, speed: Speed) -> tuple[Forecast, ...]:
    """Predict every stage, in order; a stage without work takes no time.

    Args:
        work: what there is to do.
        speed: what the probes measured.
    """
    return tuple(each for stage in STAGES for each in stage.forecast(work, speed))


def _seek_quality(run: Run) -> None:
    """Find about how small a plan may be that keeps the quality, on some of the calibration text.

    Raises:
        ModelError: a cosine is wanted of a model that names no head.
    """
    session, proposer, evaluator = run.session, run.proposer, run.desk.evaluator
    tokens = session.tokens.pricing or run.opened.request.level.tokens.pricing
    text = session.scored_text("calibration", tokens)
    check_cosine(proposer.limits, evaluator, text)
    inventory = session.workbench.inventory

    def try_size(size: float) -> Sighting:
        plan = proposer.settled(PREDICTED, size)
        loss = loss_against_dense(evaluator.score(plan, text), text)
        return Sighting(inventory.plan_bytes(plan), loss.used(proposer.limits), plan)

    least, most = float(proposer.least_bytes()), proposer.most_bytes
    with session.progress.task("Looking for the size that keeps the quality"):
        seen = approach(try_size, least, most, steps=COARSE_STEPS, tolerance=COARSE_TOLERANCE)
    proposer.seek(aim(seen, least, most))


def _header(opened: Opened, desk: Desk, trials: int) -> StudyRecord:
    session, evaluator = desk.session, desk.evaluator
    inventory = session.workbench.inventory
    return StudyRecord(
        name=opened.name,
        folder=opened.folder,
        model=session.loaded.source,
        fingerprint=session.loaded.fingerprint,
        settings={
            "identity": opened.identity,
            REQUEST: opened.request.to_dict(),
            "trials": trials,
            GAUGE_SETTING: asdict(session.objective.gauge),
            REFERENCE_SETTING: HYPERVOLUME_REFERENCE_INCREASE,
        },
        limits=opened.budget.limits(inventory.dense_bytes, evaluator.dense_latency.median_ms),
        specs=inventory.layers,
        skipped=inventory.skipped + refused_of(opened.space, inventory.layers),
        dense_bytes=inventory.dense_bytes,
        dense_bf16_bytes=inventory.bf16_bytes,
        dense_selection=evaluator.dense(desk.selection),
        dense_report=evaluator.dense(desk.report),
        trials=(),
        unreached=unreached_of(session),
    )


def _scoring(speed: Speed, tokens: int) -> float:
    """Seconds that scoring one compressed plan on a text takes."""
    return SCORING_SLOWDOWN * speed.scoring.seconds(tokens)


def _timing(speed: Speed) -> float:
    """Seconds that the latency of one plan takes, measured in turn with the dense model's."""
    tokens = LATENCY_ROUNDS * (WARM_UP_TOKENS + LATENCY_TOKENS)
    prompts = 2 * LATENCY_ROUNDS * speed.scoring.each * PROMPT_TOKENS
    return prompts + tokens * (1 + DECODING_SLOWDOWN) * speed.decoding_ms / 1000


def _fit_seconds(fits: Fits, speed: Speed, threads: int) -> float:
    """Small matrices are fitted side by side; of large ones a thread has its share."""
    return sum(
        count * _law_of(name, speed).seconds(shape) for (shape, name), count in fits.items()
    ) / max(threads, 1)


def _law_of(name: str, speed: Speed) -> PerElement:
    """The law of a method, or the mean of all where it had no option in the probes."""
    laws = list(speed.fits.values())
    if name in speed.fits or not laws:
        return speed.fits.get(name, PerElement(0.0, 0.0))
    return PerElement(*(statistics.fmean(constants) for constants in zip(*laws, strict=True)))


def _gram_bytes(specs: Sequence[LayerSpec]) -> int:
    """The most Gram matrices at a time: those of one block, or of one matrix outside the blocks."""
    sums: Counter[object] = Counter()
    for spec in specs:
        rows = spec.out_features
        wide = spec.kind is Kind.EMBEDDING or rows > FULL_GRAM_LIMIT
        columns = spec.in_features
        flat = columns > FULL_GRAM_LIMIT
        place = spec.name if spec.depth is None else spec.depth
        sums[place] += 4 * ((rows if wide else rows**2) + (columns if flat else columns**2))
    return max(sums.values(), default=0)


def _fit_bytes(work: Work) -> int:
    """The matrices that are worked on at a time."""
    if not work.fits:
        return 0
    sizes = sorted((spec.parameters for spec in work.specs), reverse=True)
    small = [size for size in sizes if size < LEAST_PARAMETERS_TO_SHARE][: work.threads]
    return WORK_BYTES * max(sizes[0], sum(small))
