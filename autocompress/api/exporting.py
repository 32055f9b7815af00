"""``autocompress.export``: a trial, or any plan, as a folder that loads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.api.session import Session
from autocompress.api.study_choice import Destination
from autocompress.api.study_session import open_study_session
from autocompress.atomic_write import written_whole
from autocompress.config.penalty_entries import penalty_entries
from autocompress.errors import StorageError, StudyError
from autocompress.export.checkpoint import MEASUREMENTS, ExportReport, export_checkpoint
from autocompress.export.folder import check_free
from autocompress.export.verify import Verification, verify_checkpoint
from autocompress.healing.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.search.healed_trials import read_numbers
from autocompress.search.picking import pick
from autocompress.search.study_store import read_study


@dataclass(frozen=True)
class Exported:
    """What was written, and what a fresh process saw of it.

    Attributes:
        report: the folder and its bytes.
        plan: what it stores how.
        verification: perplexity in a fresh process, on the text that the plan was measured on.
        text: which text that is.
        source: trial or recipe it came from.
        dense_bytes: bytes of the dense model.
    """

    report: ExportReport
    plan: Plan
    verification: Verification
    text: str
    source: str
    dense_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return self.report.to_dict() | {
            "from": self.source,
            "plan": self.plan.hash,
            "recipe": self.plan.to_recipe(),
            "text": self.text,
            "perplexity": self.verification.perplexity,
            "tokens": self.verification.tokens,
            "dense_bytes": self.dense_bytes,
            "ratio": self.dense_bytes / self.report.weight_bytes,
        }


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
    numbers = read_numbers(study.folder, chosen)
    return write_folder(
        session, chosen.plan, out, measurement, source, numbers=numbers, overwrite=overwrite
    )


def write_folder(
    session: Session,
    plan: Plan,
    out: Path,
    measurement: Measurement,
    source: str,
    *,
    numbers: Mapping[str, Tensor] | None = None,
    penalties: Sequence[Penalty] = (),
    overwrite: bool = False,
) -> Exported:
    """Write a plan of a session's model as a folder, and load it again in a fresh process.

    What that process saw is added to the folder's measurements: a folder that says so is finished.

    Args:
        session: the dense model.
        plan: what to store how.
        out: the folder.
        measurement: of the plan, on the text that the fresh process scores as well.
        source: where the plan is from.
        numbers: stored tensors of a healed plan; as the methods fit them when left out.
        penalties: what is asked of the ranks when the folder is healed, for its recipe.
        overwrite: whether a model in ``out`` may be replaced.

    Raises:
        ConfigurationError: ``out`` is in use.
        StorageError: it cannot be written, or does not load as what was measured.
    """
    asked = {"penalty": penalty_entries(penalties)} if penalties else {}
    with session.progress.task(f"Writing {out}"):
        report = export_checkpoint(
            session.loaded,
            plan,
            session.build,
            out,
            measurement=measurement.to_dict(),
            numbers=numbers,
            header={"seed": session.seed} | asked,
            overwrite=overwrite,
        )
    ids = session.report_ids if measurement.text == "report" else session.selection_ids
    with session.progress.task("Loading it in a fresh process"):
        verification = verify_checkpoint(
            report.folder,
            session.windows(ids),
            perplexity=measurement.perplexity,
            weight_bytes=report.weight_bytes,
            device=str(session.loaded.model.device),
        )
    note_verification(report.folder, verification)
    dense = session.workbench.inventory.dense_bytes
    return Exported(report, plan, verification, measurement.text, source, dense)


def note_verification(folder: Path, verification: Verification) -> None:
    """Add what a fresh process saw of a folder to its measurements.

    Raises:
        StorageError: they cannot be written.
    """
    path = folder / MEASUREMENTS
    try:
        facts = json.loads(path.read_text("utf-8")) | {"verified": asdict(verification)}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="The model itself is written, and loads as what was measured.",
        ) from error


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a compressed model that has been loaded again and found right."""
    try:
        facts = json.loads((folder / MEASUREMENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and "verified" in facts
