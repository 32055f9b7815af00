"""``autocompress.export`` and ``compress``: a trial or recipe as a folder that loads elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.api.searching import Destination, SearchSettings
from autocompress.api.session import Session, TextSettings, open_session
from autocompress.config.document import read_document
from autocompress.config.recipe_file import check_recipe, read_recipe
from autocompress.errors import StudyError
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.export.checkpoint import ExportReport, export_checkpoint
from autocompress.export.folder import check_free
from autocompress.export.verify import Verification, verify_checkpoint
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
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
    settings = SearchSettings.of_study(study)
    session = open_session(
        settings.model,
        settings.texts,
        destination.runs_dir,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
        seed=settings.seed,
    )
    if session.loaded.fingerprint != study.fingerprint:
        raise StudyError(
            f"the model {study.model} has changed since study {study.name}",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=study.fingerprint,
            hint="Search again, or bring back the weights of that time.",
        )
    source = f"trial {chosen.number} of study {study.name}"
    return _export(
        session, chosen.plan, out, measurement, source, overwrite=overwrite, progress=progress
    )


def compress_by_recipe(
    model: str | None,
    recipe: str | Path,
    out: Path,
    *,
    texts: TextSettings | None = None,
    runs_dir: Path = Path("runs"),
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Compress a model as a recipe says, without a search, and write it as a model folder.

    Modes that do not fit a matrix are corrected to the nearest that do, with a notice.

    Raises:
        RecipeError: the recipe is malformed or belongs to another model.
        ModelError: the model cannot be loaded or compressed.
        DataError: a text that cannot be used.
        ConfigurationError: ``out`` is in use.
        StorageError: it cannot be written, or does not load as what was measured.
    """
    check_free(out, overwrite)
    document = read_document(Path(recipe).expanduser())
    wanted = read_recipe(document).plan
    session = open_session(
        model,
        texts or TextSettings(),
        runs_dir,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=progress,
        seed=seed,
    )
    checked = check_recipe(wanted, session.workbench.inventory.layers, document=document)
    for notice in checked.notices:
        progress.note(notice)
    measurement = _measure(session, checked.plan, progress)
    source = f"recipe {recipe}"
    return _export(
        session, checked.plan, out, measurement, source, overwrite=overwrite, progress=progress
    )


def _measure(session: Session, plan: Plan, progress: Progress) -> Measurement:
    text = session.scored_text("report")
    session.metrics  # noqa: B018  # calibrate before the bar of this task
    with (
        progress.task("Measuring the compressed model"),
        session.workbench.applied(plan, session.build) as model,
    ):
        scored = score(model, text.windows, text.teacher)
    size = session.workbench.inventory.plan_bytes(plan)
    device = describe_device(session.loaded.model)
    return Measurement(
        scored.perplexity, scored.kl, scored.tokens, size, None, None, text.name, device, plan.hash
    )


def _export(
    session: Session,
    plan: Plan,
    out: Path,
    measurement: Measurement,
    source: str,
    *,
    overwrite: bool,
    progress: Progress,
) -> Exported:
    with progress.task(f"Writing {out}"):
        report = export_checkpoint(
            session.loaded,
            plan,
            session.build,
            out,
            measurement=measurement.to_dict(),
            overwrite=overwrite,
        )
    ids = session.report_ids if measurement.text == "report" else session.selection_ids
    with progress.task("Loading it in a fresh process"):
        verification = verify_checkpoint(
            report.folder,
            Windows(ids, session.context),
            perplexity=measurement.perplexity,
            weight_bytes=report.weight_bytes,
            device=str(session.loaded.model.device),
        )
    dense = session.workbench.inventory.dense_bytes
    return Exported(report, plan, verification, measurement.text, source, dense)
