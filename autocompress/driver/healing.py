"""``autocompress.heal``: refits and trains the stored weights of a trial or of a front."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from autocompress.driver.healing_report import HealingReport
from autocompress.driver.reporting import measure_again
from autocompress.driver.study_choice import Destination
from autocompress.driver.study_session import open_study_session
from autocompress.driver.worker import Desk, dense_latency_of
from autocompress.errors import ConfigurationError, StudyError
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.heal_plan import heal_plan, healing_text
from autocompress.judging.picking import pick
from autocompress.pictures.healing_png import write_healing_png
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.requests.healing import HealSettings
from autocompress.store import content_key, tensor_key
from autocompress.studies.healed_trials import (
    FOLDER,
    add_healed,
    compressed_of,
    healed_already,
    keep_weights,
    picture_of,
)
from autocompress.studies.observer import Observer
from autocompress.studies.run_folder import find_study
from autocompress.studies.storage import StoredStudy, settle, storage_errors
from autocompress.studies.study import Healing, StudyRecord, TrialRecord
from autocompress.studies.study_store import keep_report, load_optuna_study, to_record

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
            is healed further, and not refitted.
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
            desk = Desk(session, dense_latency_of(record))
            with progress.task("Measuring the dense model"):
                desk.selection, desk.report  # noqa: B018  # else a longer task tells nothing of it
            work = HealingWork(study, record, desk, data, settings)
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
        record.gauge,
        after.number,
        record,
    )


def refuse_idle(settings: HealSettings, source: str, fitted_for_good: bool) -> None:
    """Refuse to refit what cannot be, where nothing else is asked for.

    Args:
        settings: how to heal.
        source: what, for the message.
        fitted_for_good: whether its weights were trained or refitted already, or are all there
            is of it.

    Raises:
        ConfigurationError: there is nothing to do.
    """
    if fitted_for_good and not settings.steps and settings.shrink is None:
        raise ConfigurationError(
            f"{source} cannot be refitted",
            got="--steps 0",
            wanted="at least 1 step",
            hint="Its weights were trained or refitted before; only trials of a search as it "
            "measured them can be.",
        )


class HealingWork:
    """What healing several trials of a study shares.

    Args:
        study: as stored.
        record: the same as read.
        desk: the model and its texts.
        data: text to heal on; the calibration text when left out.
        settings: how to heal.
    """

    def __init__(
        self,
        study: StoredStudy,
        record: StudyRecord,
        desk: Desk,
        data: str | None,
        settings: HealSettings,
    ) -> None:
        self.study, self.record, self.desk = study, record, desk
        self.data, self.settings = data, settings
        self.text, ids = healing_text(desk.session, data, settings)
        self.tokens_hash = tensor_key(ids)

    def heal(
        self,
        source: TrialRecord,
        observers: Sequence[Observer] = (),
        checkpoint: Path | None = None,
    ) -> TrialRecord:
        """Heal a trial, or find what has come of that before."""
        known = self.known(source)
        if known is not None:
            return known
        self.desk.session.progress.note(self.about(source))
        task = self.task(source, checkpoint)
        return self.keep(task, task.done_on(self.desk), observers)

    def about(self, source: TrialRecord) -> str:
        """Say what is done to a trial."""
        return f"{self.task(source).planned.doing} trial {source.number}, {source.label}."

    def known(self, source: TrialRecord) -> TrialRecord | None:
        """What has come of healing a trial like this before."""
        planned = self.task(source).planned
        known = healed_already(to_record(self.study, self.record.folder), source, planned)
        if known is not None:
            self.desk.session.progress.note(
                f"Trial {source.number} was {planned.done} like this already: trial {known.number}."
            )
        return known

    def task(self, source: TrialRecord, checkpoint: Path | None = None) -> HealTrial:
        """What is to be done for a trial."""
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
        identity = {
            "model": self.record.fingerprint,
            "plan": source.key,
            "text": self.tokens_hash,
            "settings": asdict(settings),
        }
        folder = self.record.folder
        path = checkpoint or folder / FOLDER / f"{content_key(identity)[:12]}.part"
        return HealTrial(source, folder, self.data, settings, planned, path, identity)

    def keep(
        self, task: HealTrial, came: HealedTrial, observers: Sequence[Observer] = ()
    ) -> TrialRecord:
        """Add what came of healing a trial to the study."""
        source, folder = task.source, task.folder
        if source.report is None and came.before is not None:
            keep_report(self.study, source, came.before)
        trial = add_healed(
            self.study, came.form, came.healing, came.selection, came.report, came.seconds
        )
        title = f"Trial {source.number} of {self.record.name}, {trial.label}"
        picture = picture_of(folder, trial.number)
        write_healing_png(came.healing.checks, picture, self.record.gauge, title)
        Checkpoint(task.checkpoint, task.identity).remove()
        for observer in observers:
            observer.trial_finished(self.record.name, trial)
        return trial


@dataclass(frozen=True)
class HealTrial:
    """Heals a trial and measures what came of it: a ``Task``, which leaves the study alone.

    Attributes:
        source: the trial.
        folder: its run folder, which gets the healed weights.
        data: text to heal on; the calibration text when left out.
        settings: how to heal.
        planned: the record of it before it is done.
        checkpoint: file that holds how far it is.
        identity: what that belongs to.
    """

    source: TrialRecord
    folder: Path
    data: str | None
    settings: HealSettings
    planned: Healing
    checkpoint: Path
    identity: dict[str, Any]

    def done_on(self, desk: Desk) -> HealedTrial:
        """See ``Task``."""
        started, session, source = time.monotonic(), desk.session, self.source
        _, ids = healing_text(session, self.data, self.settings)
        compressed = compressed_of(self.folder, source)
        before = None
        if source.report is None:
            before = measure_again(desk.evaluator, compressed, desk.report, source.selection)
        compressed, healed = heal_plan(
            session,
            compressed,
            ids,
            self.settings,
            Checkpoint(self.checkpoint, self.identity),
            desk.teacher,
        )
        healing = replace(
            self.planned,
            steps=healed.checks[-1].step,
            tokens=healed.tokens,
            weights=keep_weights(self.folder, compressed.weights),
            checks=tuple(asdict(check) for check in healed.checks),
        )
        plan, same = compressed.plan, compressed.plan == source.plan
        size = session.workbench.inventory.plan_bytes(plan)
        form = source if same else replace(source, plan=plan, bytes=size)
        known = source.selection if same else None
        selection = measure_again(desk.evaluator, compressed, desk.selection, known)
        report = measure_again(desk.evaluator, compressed, desk.report, known or selection)
        seconds = time.monotonic() - started
        return HealedTrial(form, healing, selection, report, before, seconds, desk.take_notes())


class HealedTrial(NamedTuple):
    """What came of healing a trial.

    Attributes:
        form: the trial with the plan that it has become.
        healing: how it went.
        selection: what was measured then.
        report: the same on the report text.
        before: what was measured of the trial itself there, where that had not been done.
        seconds: that all of it took.
        notes: what there was to say.
    """

    form: TrialRecord
    healing: Healing
    selection: Measurement
    report: Measurement
    before: Measurement | None
    seconds: float
    notes: tuple[str, ...]


def _numbered(record: StudyRecord, number: int) -> TrialRecord:
    return next(trial for trial in record.trials if trial.number == number)
