"""``autocompress.heal``: trains the stored numbers of a trial, of a front, or of a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from torch import Tensor

from autocompress.api.heal_plan import heal_plan, healing_text, with_times_of
from autocompress.api.healing_report import HealingReport
from autocompress.api.session import Session
from autocompress.api.study_choice import Destination
from autocompress.api.study_session import open_study_session
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.errors import AutocompressError, ConfigurationError, StorageError, StudyError
from autocompress.evaluation.latency import Latency
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.settings import HealSettings
from autocompress.healing.teacher import DenseTeacher
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.front import finalists
from autocompress.search.healed_trials import (
    FOLDER,
    add_healed,
    healed_already,
    keep_numbers,
    picture_of,
    read_numbers,
)
from autocompress.search.healing_png import write_healing_png
from autocompress.search.observer import Observer
from autocompress.search.picking import pick
from autocompress.search.storage import settle, storage_errors
from autocompress.search.study import Healing, StudyRecord, TrialRecord
from autocompress.search.study_store import find_study, keep_report, load_optuna_study, to_record

DEFAULT_SETTINGS = HealSettings()


def heal_trial(
    destination: Destination,
    trial: str = "best",
    settings: HealSettings = DEFAULT_SETTINGS,
    *,
    data: str | None = None,
    checkpoint: Path | None = None,
    observers: Sequence[Observer] = (),
    progress: Progress = SILENT,
) -> HealingReport:
    """Heal one trial of a study; the healed plan becomes a further trial of it.

    Args:
        destination: where the study is; the latest when it names none.
        trial: ``best``, ``knee``, ``smallest``, ``fastest`` or the number of a trial. A healed one
            is healed further.
        settings: how to heal.
        data: text to heal on; the calibration text of the study when left out.
        checkpoint: file that holds how far it is, to go on after a kill; in the run folder when
            left out.
        observers: told of the new trial.
        progress: told how far things are.

    Raises:
        StudyError: no such study or trial, or its model has changed since.
        DataError: too little text, or one that was selected or is reported on.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    name, url, folder = find_study(destination.study, destination.runs_dir, destination.storage)
    study = load_optuna_study(name, url)
    try:
        with storage_errors(url):
            record = to_record(study, folder)
            source = pick(record, trial)
            work = _Work(study, record, data, settings, destination.runs_dir, progress)
            after = work.heal(source, checkpoint=checkpoint)
            record = to_record(study, folder)
            for observer in observers:
                observer.finished(record)
    finally:
        settle(study)
    source, after = _numbered(record, source.number), _numbered(record, after.number)
    if source.report is None or after.report is None or after.healing is None:
        raise StudyError(f"the storage has lost what was measured of trial {after.number}")
    return HealingReport(
        f"trial {source.number} of study {name}, {source.label}",
        after.plan,
        record.dense_report,
        source.report,
        after.report,
        after.healing,
        after.number,
        record,
    )


def front_healing(steps: int | None, data: str | None, seed: int) -> HealSettings | None:
    """How a search heals its front; ``None`` where it was not asked to.

    Raises:
        ConfigurationError: a text to heal on without steps, or steps that cannot be.
    """
    if steps is None:
        if data is not None:
            raise ConfigurationError(
                "--heal-data names a text to heal the front on",
                got=data,
                hint="Say with --heal how many steps to heal it for, such as --heal 200.",
            )
        return None
    return HealSettings(steps, seed=seed)


def heal_front(
    study: optuna.Study,
    folder: Path,
    session: Session,
    settings: HealSettings,
    *,
    data: str | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Heal the members of a study's front alike, and the hand-written plan to compare with.

    Those that have been healed in this way already are left as they are, so a run that was cut off
    goes on. One that cannot be healed is told of, and the others are.

    Args:
        study: as stored.
        folder: its run folder.
        session: its model and texts.
        settings: how to heal each.
        data: text to heal on; the calibration text of the study when left out.
        observers: told of each new trial.
    """
    record = to_record(study, folder)
    members = [trial for trial in finalists(without_healed(record)) if _is_compressed(trial.plan)]
    work = _Work(study, record, data, settings, folder.parent, session.progress, session)
    with session.progress.task("Healing the front (plans)", len(members)) as advance:
        for trial in members:
            try:
                work.heal(trial, observers)
            except StorageError:
                raise
            except AutocompressError as error:
                session.progress.note(f"Trial {trial.number} was not healed: {error}")
            advance(1)


def _is_compressed(plan: Plan) -> bool:
    return any(not isinstance(method, Keep) for method in plan.values())


def without_healed(record: StudyRecord) -> StudyRecord:
    """A study as it was before anything was healed."""
    return replace(record, trials=tuple(trial for trial in record.trials if not trial.healing))


class _Work:
    """What healing several trials of a study shares."""

    def __init__(
        self,
        study: optuna.Study,
        record: StudyRecord,
        data: str | None,
        settings: HealSettings,
        runs_dir: Path,
        progress: Progress,
        session: Session | None = None,
    ) -> None:
        self.study, self.record, self.settings = study, record, settings
        self.session = session or open_study_session(record, runs_dir, progress)
        self.text, self.ids = healing_text(self.session, data, settings)
        self.tokens_hash = tensor_key(self.ids)
        self.teacher = DenseTeacher(self.session.workbench.model)
        with self.session.progress.task("Measuring the dense model"):
            self.selection = self.session.scored_text("selection")
            self.report = self.session.scored_text("report")
        dense = record.dense_selection
        known = dense.latency_ms is not None and dense.latency_spread_ms is not None
        latency = Latency(dense.latency_ms, dense.latency_spread_ms) if known else None  # type: ignore[arg-type]
        self.evaluator = Evaluator(self.session.workbench, self.session.build, latency)

    def heal(
        self,
        source: TrialRecord,
        observers: Sequence[Observer] = (),
        checkpoint: Path | None = None,
    ) -> TrialRecord:
        """Heal a trial, or find what has come of that before."""
        started, folder = time.monotonic(), self.record.folder
        planned = Healing(
            self.settings.steps,
            0,
            self.text,
            asdict(self.settings),
            (),
            of=source.number,
            phase=source.healing.phase if source.healing else source.phase,
            tokens_hash=self.tokens_hash,
        )
        known = healed_already(to_record(self.study, folder), source, planned)
        if known is not None:
            self.session.progress.note(
                f"Trial {source.number} was healed like this already: trial {known.number}."
            )
            return known
        self.session.progress.note(f"Healing trial {source.number}, {source.label}.")
        identity = self._identity(source)
        numbers = read_numbers(folder, source)
        if source.report is None:
            keep_report(self.study, source, self._measure(source, numbers, self.report))
        path = checkpoint or folder / FOLDER / f"{content_key(identity)[:12]}.part"
        plan, numbers, healed = heal_plan(
            self.session,
            source.plan,
            numbers,
            self.ids,
            self.settings,
            Checkpoint(path, identity),
            self.teacher,
        )
        healing = replace(
            planned,
            steps=healed.checks[-1].step,
            tokens=healed.tokens,
            numbers=keep_numbers(folder, numbers),
            checks=tuple(asdict(check) for check in healed.checks),
        )
        size = self.session.workbench.inventory.plan_bytes(plan)
        form = source if plan == source.plan else replace(source, plan=plan, bytes=size)
        selection, report = (
            self._measure(form, numbers, text, timed=form is not source)
            for text in (self.selection, self.report)
        )
        trial = add_healed(self.study, form, healing, selection, report, time.monotonic() - started)
        title = f"Trial {source.number} of {self.record.name}, {trial.label}"
        write_healing_png(healing.checks, picture_of(folder, trial.number), title)
        Checkpoint(path, identity).remove()
        for observer in observers:
            observer.trial_finished(self.record.name, trial)
        return trial

    def _identity(self, source: TrialRecord) -> dict[str, Any]:
        return {
            "model": self.record.fingerprint,
            "plan": source.key,
            "text": self.tokens_hash,
            "settings": asdict(self.settings),
        }

    def _measure(
        self,
        source: TrialRecord,
        numbers: Mapping[str, Tensor] | None,
        text: ScoredText,
        *,
        timed: bool = False,
    ) -> Measurement:
        """Score healed numbers. What they cost in time is what their form was seen to cost."""
        seen = self.evaluator.measure(source.plan, text, latency=timed, numbers=numbers)
        return seen if timed or source.selection is None else with_times_of(source.selection, seen)


def _numbered(record: StudyRecord, number: int) -> TrialRecord:
    return next(trial for trial in record.trials if trial.number == number)
