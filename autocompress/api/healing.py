"""``autocompress.heal``: fits anew and trains the stored numbers of a trial or of a front."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from torch import Tensor

from autocompress.api.heal_plan import heal_plan, healing_text
from autocompress.api.healing_report import HealingReport
from autocompress.api.session import Session
from autocompress.api.study_choice import Destination
from autocompress.api.study_session import open_study_session
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.errors import ConfigurationError, StudyError
from autocompress.evaluation.latency import Latency
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.settings import HealSettings
from autocompress.healing.teacher import DenseTeacher
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.search.evaluator import Evaluator, ScoredText
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
from autocompress.search.run_folder import find_study
from autocompress.search.storage import settle, storage_errors
from autocompress.search.study import Healing, StudyRecord, TrialRecord
from autocompress.search.study_store import keep_report, load_optuna_study, to_record

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
            is healed further, and not fitted anew.
        settings: how to heal.
        data: text to heal on; the calibration text of the study when left out.
        checkpoint: file that holds how far it is, to go on after a kill; in the run folder when
            left out.
        observers: told of the new trial.
        progress: told how far things are.

    Raises:
        StudyError: no such study or trial, or its model has changed since.
        DataError: too little text, or one that was selected or is reported on.
        ConfigurationError: without steps there is nothing to do.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    name, url, folder = find_study(destination.study, destination.runs_dir, destination.storage)
    study = load_optuna_study(name, url)
    try:
        with storage_errors(url):
            record = to_record(study, folder)
            source = pick(record, trial)
            refuse_idle(settings, f"trial {source.number}", source.healing is not None)
            session = open_study_session(record, destination.runs_dir, progress)
            work = HealingWork(study, record, session, data, settings)
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


def refuse_idle(settings: HealSettings, source: str, fitted_for_good: bool) -> None:
    """Refuse to fit anew what cannot be, where nothing else is asked for.

    Args:
        settings: how to heal.
        source: what, for the message.
        fitted_for_good: whether its numbers were trained or fitted anew already, or are all there
            is of it.

    Raises:
        ConfigurationError: there is nothing to do.
    """
    if fitted_for_good and not settings.steps and settings.shrink is None:
        raise ConfigurationError(
            f"{source} cannot be fitted anew",
            got="--steps 0",
            wanted="at least 1 step",
            hint="Its numbers were trained or fitted anew before; only trials of a search as it "
            "measured them can be.",
        )


class HealingWork:
    """What healing several trials of a study shares."""

    def __init__(
        self,
        study: optuna.Study,
        record: StudyRecord,
        session: Session,
        data: str | None,
        settings: HealSettings,
        texts: tuple[ScoredText, ScoredText] | None = None,
    ) -> None:
        self.study, self.record, self.settings = study, record, settings
        self.session = session
        self.text, self.ids = healing_text(self.session, data, settings)
        self.tokens_hash = tensor_key(self.ids)
        self.teacher = DenseTeacher(self.session.workbench.model, given=max(1, len(session.begin)))
        if texts is None:
            with session.progress.task("Measuring the dense model"):
                texts = session.scored_text("selection"), session.scored_text("report")
        self.selection, self.report = texts
        dense = record.dense_selection
        known = dense.latency_ms is not None and dense.latency_spread_ms is not None
        latency = Latency(dense.latency_ms, dense.latency_spread_ms) if known else None  # type: ignore[arg-type]
        self.evaluator = Evaluator(session.workbench, session.build, latency, session.begin)

    def heal(
        self,
        source: TrialRecord,
        observers: Sequence[Observer] = (),
        checkpoint: Path | None = None,
    ) -> TrialRecord:
        """Heal a trial, or find what has come of that before."""
        started, folder = time.monotonic(), self.record.folder
        settings = replace(self.settings, refit=self.settings.refit and source.healing is None)
        planned = Healing(
            settings.steps,
            0,
            self.text,
            asdict(settings),
            (),
            of=source.number,
            phase=source.healing.phase if source.healing else source.phase,
            tokens_hash=self.tokens_hash,
        )
        known = healed_already(to_record(self.study, folder), source, planned)
        if known is not None:
            self.session.progress.note(
                f"Trial {source.number} was {planned.done} like this already: trial {known.number}."
            )
            return known
        self.session.progress.note(f"{planned.doing} trial {source.number}, {source.label}.")
        identity = self._identity(source, settings)
        numbers = read_numbers(folder, source)
        if source.report is None:
            keep_report(self.study, source, self._measure(source, numbers, self.report))
        path = checkpoint or folder / FOLDER / f"{content_key(identity)[:12]}.part"
        plan, numbers, healed = heal_plan(
            self.session,
            source.plan,
            numbers,
            self.ids,
            settings,
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

    def _identity(self, source: TrialRecord, settings: HealSettings) -> dict[str, Any]:
        return {
            "model": self.record.fingerprint,
            "plan": source.key,
            "text": self.tokens_hash,
            "settings": asdict(settings),
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
        return seen if timed or source.selection is None else seen.with_times_of(source.selection)


def _numbered(record: StudyRecord, number: int) -> TrialRecord:
    return next(trial for trial in record.trials if trial.number == number)
