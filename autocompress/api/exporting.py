"""``autocompress.export``: a trial, or any plan, as a folder that loads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autocompress.api.recorded_texts import TEXTS, texts_to_record
from autocompress.deploy.documents import MEASUREMENTS
from autocompress.deploy.exported import Export, Exported
from autocompress.deploy.folder import check_free, whole_folder
from autocompress.deploy.targets import target_of
from autocompress.driver.study_choice import Destination
from autocompress.driver.study_session import open_study_session
from autocompress.errors import StudyError
from autocompress.judging.picking import pick
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.session.session import Session
from autocompress.space.penalty_entries import penalty_entries
from autocompress.studies.healed_trials import compressed_of
from autocompress.studies.study_store import read_study
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.loading import has_own_code


def export_trial(
    destination: Destination,
    out: Path,
    *,
    trial: str = "best",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write a trial of a study as a model folder, and load it again in a fresh process.

    Args:
        destination: where the study is; the latest when it names none.
        out: the folder to write.
        trial: ``best``, ``knee``, ``smallest``, ``fastest`` or the number of a trial.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.

    Raises:
        StudyError: no such study or trial, or its model has changed since.
        BudgetUnreachable: no trial is within the limits of the study.
        ConfigurationError: ``out`` is in use.
        StorageError: it cannot be written, or does not load as what was measured.
    """
    check_free(out, overwrite)
    study = read_study(destination.study, destination.runs_dir, destination.storage)
    chosen = pick(study, trial)
    measurement = chosen.measurement
    if measurement is None:
        raise StudyError(f"trial {chosen.number} of study {study.name} was not measured")
    session = open_study_session(study, destination.runs_dir, progress)
    source = f"trial {chosen.number} of study {study.name}"
    compressed = compressed_of(study.folder, chosen)
    return write_folder(session, compressed, out, measurement, source, overwrite=overwrite)


def write_folder(
    session: Session,
    plan: Plan | Compressed,
    out: Path,
    measurement: Measurement,
    source: str,
    *,
    penalties: Sequence[Penalty] = (),
    overwrite: bool = False,
) -> Exported:
    """Write a plan of a session's model as a folder, and load it again in a fresh process.

    Only a folder that this process finds right comes to its place, and only then does a model that
    was there go. What the process saw is among the folder's measurements.

    Args:
        session: the dense model.
        plan: what to store how, with the weights of what was healed.
        out: the folder.
        measurement: of the plan, on the text that the fresh process scores as well.
        source: where the plan is from.
        penalties: what is asked of the ranks when the folder is healed, for its recipe.
        overwrite: whether a model in ``out`` may be replaced.

    Raises:
        ConfigurationError: ``out`` is in use.
        MethodError: the plan holds what the session's target does not open.
        StorageError: it cannot be written, or does not load as what was measured.
    """
    asked = {"penalty": penalty_entries(penalties)} if penalties else {}
    target, loaded = target_of(session.target.name), session.loaded
    gauge = session.objective.gauge
    final = out.expanduser().absolute()
    ids = session.report_ids if measurement.text == "report" else session.selection_ids
    with whole_folder(out, overwrite=overwrite) as folder:
        with session.progress.task(f"Writing {out}"):
            export = Export(
                loaded,
                session.workbench,
                Compressed.of(plan),
                session.builder.build,
                gauge.named(measurement.to_dict()),
                header={"seed": session.seed} | asked,
            )
            report = target.write(export, folder)
        with session.progress.task("Loading it in a fresh process"):
            windows = session.windows(ids)
            verification = target.verify(report, loaded, windows, measurement.figure, shown=final)
        _note_verification(folder, gauge.named(asdict(verification)), texts_to_record(session))
    report = replace(report, folder=final)
    dense = session.workbench.inventory.dense_bytes
    call = target.call_to_load(final, has_own_code(loaded))
    return Exported(report, export.plan, verification, measurement.text, source, dense, call, gauge)


def _note_verification(
    folder: Path, verification: dict[str, Any], texts: dict[str, Any] | None
) -> None:
    """Add to a folder's measurements what a fresh process saw, and the texts it was made with."""
    path = folder / MEASUREMENTS
    facts = json.loads(path.read_text("utf-8"))
    facts |= {TEXTS: texts, "verified": verification}
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a compressed model that has been loaded again and found right."""
    try:
        facts = json.loads((folder / MEASUREMENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and "verified" in facts
