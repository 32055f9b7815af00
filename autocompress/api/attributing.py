"""What each group of matrices of a trial, or of any plan, saves and harms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.driver.study_choice import Destination
from autocompress.driver.study_session import open_study_session
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import Score, score
from autocompress.judging.attribution import (
    USUAL_GROUPINGS,
    Attribution,
    Lost,
    attribute,
    groups_of,
    put_back,
)
from autocompress.judging.picking import pick
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import Measurement
from autocompress.session.session import Session
from autocompress.studies.healed_trials import compressed_of
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.studies.study_store import read_study
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.dense_copies import dense_copies

SELECTION, REPORT = "selection", "report"


@dataclass(frozen=True)
class Attributed:
    """What the groups of a plan save and harm.

    Attributes:
        source: the trial or folder that it is of.
        model: the dense model.
        plan: what is stored how.
        bytes: of the compressed model.
        dense_bytes: of the dense one.
        attribution: of each group, on the selection text.
        report: what the whole plan loses on the report text.
    """

    source: str
    model: str
    plan: Plan
    bytes: int
    dense_bytes: int
    attribution: Attribution
    report: Lost

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return {
            "from": self.source,
            "model": self.model,
            "plan": self.plan.hash,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "text": SELECTION,
            **self.attribution.to_dict(),
            "report": self.attribution.gauge.named(asdict(self.report)),
        }


def attribute_trial(
    destination: Destination,
    *,
    trial: str = "best",
    by: Sequence[str] = USUAL_GROUPINGS,
    progress: Progress = SILENT,
) -> tuple[Attributed, StudyRecord, TrialRecord]:
    """Say what each group of matrices of a trial saves and harms.

    Args:
        destination: where the study is; the latest when it names none.
        trial: ``best``, ``knee``, ``smallest``, ``fastest`` or the number of a trial.
        by: how matrices are grouped; see ``groups_of``.
        progress: told how far things are.

    Returns:
        What was found, and the study and the trial it is of.

    Raises:
        StudyError: no such study or trial, or its model has changed since.
        BudgetUnreachable: no trial is within the limits of the study.
        ConfigurationError: an unknown grouping, or a plan that keeps every matrix.
    """
    study = read_study(destination.study, destination.runs_dir, destination.storage)
    chosen = pick(study, trial)
    groups_of(chosen.plan, study.specs, by)  # refuses what cannot be done before the model is read
    compressed = compressed_of(study.folder, chosen)
    session = open_study_session(study, destination.runs_dir, progress)
    reported = None if chosen.report is None else _on_report(chosen.report, study.dense_report)
    source = f"trial {chosen.number} of study {study.name}"
    found = attribute_plan(session, compressed, source, by=by, report=reported)
    return found, study, chosen


def attribute_plan(
    session: Session,
    compressed: Compressed,
    source: str,
    *,
    by: Sequence[str] = USUAL_GROUPINGS,
    report: Lost | None = None,
) -> Attributed:
    """Say what each group of matrices of a plan saves and harms, on the selection text.

    Args:
        session: the dense model.
        compressed: the plan. A group that is put back is dense, the others use their weights.
        source: where it is from.
        by: how matrices are grouped; see ``groups_of``.
        report: what the plan loses on the report text, where that is known.

    Raises:
        ConfigurationError: an unknown grouping, or a plan that keeps every matrix.
    """
    plan, workbench = compressed.plan, session.workbench
    inventory = workbench.inventory
    groups = groups_of(plan, inventory.layers, by)

    def score_on(text: ScoredText, chosen: Plan) -> Score:
        rest = put_back(chosen, compressed, workbench)
        with workbench.applied(rest, session.builder.build) as model, dense_copies(model):
            return score(model, text.windows, text.teacher)

    text = session.scored_text(SELECTION)
    count = len(groups) + 1
    with session.progress.task("Putting groups back (plans)", count) as advance:
        attribution = attribute(
            plan,
            inventory,
            lambda chosen: score_on(text, chosen),
            text.teacher.score,
            groups,
            session.objective.gauge,
            advance,
        )
    if report is None:
        final = session.scored_text(REPORT)
        report = Lost.of(score_on(final, plan), final.teacher.score)
    size = inventory.plan_bytes(plan)
    model = session.loaded.source
    return Attributed(source, model, plan, size, inventory.dense_bytes, attribution, report)


def _on_report(measured: Measurement, dense: Measurement) -> Lost:
    return Lost(measured.loss - dense.loss, measured.divergence)
