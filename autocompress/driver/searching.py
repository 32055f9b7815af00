"""``autocompress.search``: from a model and a budget to a study with its front."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autocompress.calibration.latency_table import LatencyTable
from autocompress.calibration.screening import describe_fits
from autocompress.driver.driver import Effort, Search
from autocompress.driver.endurance import DEFAULT_ENDURANCE, Endurance
from autocompress.driver.engines.choosing import EngineSettings, check_engine, make_engine
from autocompress.driver.estimate.forecast import REFIT_PASSES, SCORING_SLOWDOWN
from autocompress.driver.finish import REFIT_BEST, Finish, finish_search
from autocompress.driver.proposing.aiming import Sighting, aim, approach
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.proposing.reach import check_reachable
from autocompress.driver.quality_target import (
    COARSE_STEPS,
    COARSE_TOLERANCE,
    check_cosine,
    loss_against_dense,
)
from autocompress.driver.reporting import OnReport
from autocompress.driver.rounds import price_menu
from autocompress.driver.study_choice import (
    Destination,
    SearchSettings,
    check_settings,
    choose_study,
    identity_of,
)
from autocompress.driver.worker import Desk, WorkerSettings, dense_latency_of
from autocompress.evaluation.evaluator import Evaluator
from autocompress.healing.heal_plan import healing_text
from autocompress.judging.dominance import HYPERVOLUME_REFERENCE_RISE
from autocompress.judging.hypervolume import REFERENCE_SETTING
from autocompress.paths import shown
from autocompress.progress import SILENT, Progress
from autocompress.session.efforts import NORMAL, effort_of
from autocompress.session.left_dense import unreached_of, within_reach
from autocompress.session.session import Session, TextSettings, tied_names
from autocompress.space.space import Space
from autocompress.stage_memory import StageMemory, describe_peaks
from autocompress.studies.observer import Observer
from autocompress.studies.run_folder import find_study, touch
from autocompress.studies.storage import settle, storage_errors
from autocompress.studies.stored_menu import keep_menu
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import create_study, read_study, to_record
from autocompress.surgery.stored_types import dtype_name
from autocompress.units import Budget, Limits

THIS_PROCESS = EngineSettings()
FINISH_SHARE = 0.3  # of the time left, at most, to fit the best plan anew
FITTING_SHARE = 0.4  # of the time left, at most, to fit what plans take
PRICING_SHARE = 0.5  # of the time left, at most, to price options; the rest is for trials


def run_search(
    settings: SearchSettings,
    destination: Destination,
    endurance: Endurance = DEFAULT_ENDURANCE,
    engine: EngineSettings = THIS_PROCESS,
    *,
    finish: Finish | None = REFIT_BEST,
    observers: Sequence[Observer] = (),
    progress: Progress = SILENT,
) -> StudyRecord:
    """Search, or go on with the study of that name and those settings.

    Args:
        settings: what determines the trials.
        destination: where the study is kept.
        endurance: how long to search.
        engine: what runs the trials.
        finish: how to heal what was found; not at all with ``None``.
        observers: told what happens.
        progress: told how far things are.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, said before anything is computed.
        ConfigurationError: a setting, text, model, space or study that cannot be used.
    """
    progress = memory = StageMemory(progress)
    settings, destination = settings.located(), destination.located()
    budget = check_settings(settings, destination)
    level = effort_of(settings.effort)
    effort = endurance.effort(level, settings.sampler, settings.seed)
    check_engine(engine)
    space = settings.read_space()
    session = settings.open(destination.runs_dir, progress)
    # Workers and resumed runs compute in what was found faster here, wherever they run.
    settings = replace(settings, compute_dtype=dtype_name(session.loaded.model.dtype))
    inventory = session.workbench.inventory
    space.check(inventory.layers)
    finish = finish and finish.within(settings.texts)
    if finish is not None and finish.whole_front:
        # A bad text is refused before the search.
        healing_text(session, finish.data, finish.settings)
    identity = identity_of(settings, session, space)
    session.compare_texts("selection")
    space = within_reach(session, space, settings.unreached)
    name, study = choose_study(settings, destination, identity)
    folder = destination.runs_dir / name
    if study is None:
        limit = budget.limits(inventory.dense_bytes, 1.0).memory_bytes
        check_reachable(space, inventory, limit)
    with progress.task("Measuring the dense model"):
        known = None if study is None else dense_latency_of(to_record(study, folder))
        desk = Desk(session, known)
        deadline = effort.deadline
        effort, finish_by = _with_what_follows(effort, desk, settings.texts, finish)
        if study is None:
            header = _header(folder, desk, identity, settings, budget, effort.trials)
            study = create_study(header, destination.url(name))
            progress.note(
                f"Study {name} in {shown(header.folder)}; stop it at any time, "
                "the same command goes on with it."
            )
        else:
            touch(folder, name, destination.url(name))
            progress.note(f"Going on with study {name}.")
            if to_record(study, folder).complete:
                deadline = math.inf  # there is something to show whenever it ends
    evaluator = desk.evaluator
    workers = WorkerSettings(
        settings, destination.runs_dir, evaluator.dense_latency, session.loaded.fingerprint
    ).spread(engine.workers)
    chosen = session.crew = make_engine(
        engine,
        desk,
        [worker.open for worker in workers],
        cpus_per_trial=workers[0].threads or 1,
    )
    try:
        limits = to_record(study, folder).limits
        proposer = make_proposer(
            session,
            space,
            evaluator,
            limits,
            effort.deadline,
            fit_by=deadline,
            effort=settings.effort,
            fit_all=settings.fit_all,
        )
        keep_menu(folder, proposer.stored)
        with storage_errors(destination.url(name)):
            search = Search(
                study, folder, proposer, effort, len(desk.selection.windows), observers, progress
            )
            record = search.run(chosen, lambda trial: OnReport(trial, folder).done_on(desk))
            keep_menu(folder, proposer.stored)  # with what was fitted on the way
            progress.note(describe_fits(proposer.menu))
            if finish is None or not finish_search(
                study,
                folder,
                desk,
                finish,
                deadline=finish_by,
                observers=observers,
                crew=chosen,
            ):
                return record
            record = to_record(study, folder)
            for observer in observers:
                observer.finished(record)
            return record
    finally:
        chosen.close()
        settle(study)
        if memory.peaks:
            progress.note(f"Memory held at most: {describe_peaks(memory.peaks)}.")


def _with_what_follows(
    effort: Effort, desk: Desk, texts: TextSettings, finish: Finish | None
) -> tuple[Effort, float]:
    """The effort with what follows the trials takes, and when the best must be fitted anew, if.

    It is told from the time of scoring both texts once. Where fitting the best plan anew would take
    too large a share of the time, it is not waited for.
    """
    seconds = desk.selection.seconds + desk.report.seconds
    each = seconds / (texts.selection_tokens + texts.report_tokens)
    report = SCORING_SLOWDOWN * each * texts.report_tokens
    plans = 0 if finish is None or finish.whole_front else 2
    anew = plans * (each * REFIT_PASSES * texts.refit_tokens + report)
    left = effort.deadline - time.monotonic()
    waited = anew if anew < FINISH_SHARE * left else 0.0
    effort = replace(effort, report_seconds=report, finish_seconds=waited)
    return effort, effort.deadline - anew


def make_proposer(
    session: Session,
    space: Space,
    evaluator: Evaluator,
    limits: Limits,
    deadline: float = math.inf,
    *,
    fit_by: float = math.inf,
    effort: str = NORMAL,
    fit_all: bool = False,
) -> Proposer:
    """What makes plans, with options fitted by need, priced and, if latency counts, timed.

    Args:
        session: the model.
        space: what may be chosen from.
        evaluator: knows the dense latency, and looks for the size that keeps a quality.
        limits: of the plans.
        deadline: of ``time.monotonic``; fitting may end after it, pricing takes a share of what
            is left until then.
        fit_by: when the menu must have been fitted; see ``Session.menu``.
        effort: how much to do.
        fit_all: whether every option is fitted, beside those that plans take.

    Raises:
        BudgetUnreachable: no plan is as fast as the limits want; said before any is priced.
    """
    level, timed = effort_of(effort), limits.latency_ms is not None
    menu = session.menu(space, samples=level.samples, fit_all=fit_all, timed=timed, deadline=fit_by)
    latencies = None
    if limits.latency_ms is not None:
        latencies = LatencyTable.of(
            session.workbench,
            menu,
            session.cache,
            unused=session.unreached,
            progress=session.progress,
        )
    proposer = Proposer(
        menu,
        session.workbench.inventory,
        limits,
        tied_names(space, session.workbench.inventory),
        latencies,
        methods=space.selection.methods,
        held=dict(space.held),
        fit=session.fit_taken,
    )
    proposer.check_latency(evaluator.dense_latency.median_ms)
    if limits.asks_quality:
        _seek_quality(session, proposer, evaluator)
    now = time.monotonic()
    proposer.fit_until = now + FITTING_SHARE * (deadline - now)
    proposer.settled(PREDICTED, *proposer.targets[: level.sizes + 1])
    if session.settings.pricing_tokens:
        texts = session.pricing_texts
        now = time.monotonic()
        until = now + PRICING_SHARE * (deadline - now)
        price_menu(
            proposer,
            session.builder,
            texts,
            session.progress,
            until,
            rounds=level.rounds,
            crew=session.crew,
        )
    return proposer


def _seek_quality(session: Session, proposer: Proposer, evaluator: Evaluator) -> None:
    """Find about how small a plan may be that keeps the quality, on some of the calibration text.

    Raises:
        ModelError: a cosine is wanted of a model that names no head.
    """
    tokens = session.settings.pricing_tokens or TextSettings().pricing_tokens
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


def resume_search(
    destination: Destination,
    endurance: Endurance = DEFAULT_ENDURANCE,
    engine: EngineSettings = THIS_PROCESS,
    *,
    finish: Finish | None = REFIT_BEST,
    observers: Sequence[Observer] = (),
    progress: Progress = SILENT,
) -> StudyRecord:
    """Go on with a study (``destination.study``, else the latest) in the settings it began with."""
    name, url, _folder = find_study(destination.study, destination.runs_dir, destination.storage)
    record = read_study(name, destination.runs_dir, url)
    trials = record.settings.get("trials") if endurance.trials is None else endurance.trials
    return run_search(
        SearchSettings.of_study(record),
        replace(destination, study=name, storage=url),
        replace(endurance, trials=trials),
        engine,
        finish=finish,
        observers=observers,
        progress=progress,
    )


def _header(
    folder: Path,
    desk: Desk,
    identity: dict[str, Any],
    settings: SearchSettings,
    budget: Budget,
    trials: int,
) -> StudyRecord:
    session, evaluator = desk.session, desk.evaluator
    inventory = session.workbench.inventory
    return StudyRecord(
        name=folder.name,
        folder=folder,
        model=session.loaded.source,
        fingerprint=session.loaded.fingerprint,
        settings={
            "identity": identity,
            "arguments": asdict(settings),
            "trials": trials,
            REFERENCE_SETTING: HYPERVOLUME_REFERENCE_RISE,
            **identity,
        },
        limits=budget.limits(inventory.dense_bytes, evaluator.dense_latency.median_ms),
        specs=inventory.layers,
        skipped=inventory.skipped,
        dense_bytes=inventory.dense_bytes,
        dense_bf16_bytes=inventory.bf16_bytes,
        dense_selection=evaluator.dense(desk.selection),
        dense_report=evaluator.dense(desk.report),
        trials=(),
        unreached=unreached_of(session),
    )
