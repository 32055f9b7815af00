"""``autocompress.compress``: a session and a target become a compressed model and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autocompress.api.exporting import write_folder
from autocompress.api.in_memory import MissingTokenizer
from autocompress.api.report import Compressed, CompressionReport, LayerReport, Quality
from autocompress.api.session import Session
from autocompress.api.target import Target
from autocompress.calibration.menu import judge
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.scoring import check_scorable, score
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec, Measurement
from autocompress.surgery.permanent import compress_, compressed_copy


@dataclass(frozen=True)
class Wish:
    """What is to be done besides compressing.

    Attributes:
        out: a folder to write.
        overwrite: whether a model in it may be replaced.
        measure: whether perplexities are measured; always when a folder is written.
        inplace: whether the given model itself is changed.
    """

    out: Path | None = None
    overwrite: bool = False
    measure: bool = True
    inplace: bool = False


def compress_session(session: Session, target: Target, wish: Wish) -> Compressed:
    """Find the plan, judge and measure it, write it if asked to, and put it into the model.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget.
        RecipeError: the recipe belongs to another model.
        DataError: a text that cannot be used.
        StorageError: the folder cannot be written, or does not load as what was measured.
    """
    inventory = session.workbench.inventory
    measured = (wish.measure or wish.out is not None) and _has_report_text(session)
    # Said before the work that comes first.
    for ids in (session.calibration_ids, *([session.report_ids] if measured else [])):
        check_scorable(session.loaded.model, Windows(ids, session.context))
    plan = target.plan_for(session)
    layers = _judged(session, plan)
    quality = _quality(session, plan) if measured else None
    exported = None
    if wish.out is not None and quality is not None:
        exported = write_folder(
            session, plan, wish.out, quality.measured, target.label, overwrite=wish.overwrite
        )
    report = CompressionReport(
        session.loaded.source,
        target.label,
        plan,
        inventory.dense_bytes,
        inventory.plan_bytes(plan),
        layers,
        inventory.skipped,
        quality,
        exported,
    )
    finish = compress_ if wish.inplace else compressed_copy
    return Compressed(finish(session.workbench, plan, session.build), report)


def _judged(session: Session, plan: Plan) -> tuple[LayerReport, ...]:
    layers = session.workbench.inventory.layers
    session.metrics  # noqa: B018  # calibrate before the bar of this task
    with session.progress.task("Judging the layers (matrices)", len(layers)) as advance:
        reports = []
        for spec in layers:
            reports.append(_layer_report(session, plan, spec))
            advance(1)
    return tuple(reports)


def _layer_report(session: Session, plan: Plan, spec: LayerSpec) -> LayerReport:
    method = plan.get(spec.name, Keep())
    damage, cosine = 0.0, 1.0
    if method != Keep():
        fit = judge(session.builder.problem(spec.name), session.build(spec.name, method))
        damage, cosine = fit.damage, fit.cosine
    return LayerReport(
        spec.name,
        spec.role.value,
        spec.shape,
        str(method),
        method.to_dict(),
        Keep().cost(spec),
        method.cost(spec),
        damage,
        cosine,
    )


def _has_report_text(session: Session) -> bool:
    readable = not isinstance(session.loaded.tokenizer, MissingTokenizer)
    return readable or "report" in session.own.tokens


def _quality(session: Session, plan: Plan) -> Quality:
    """Measure the model before and after."""
    with session.progress.task("Measuring the dense model"):
        text = session.scored_text("report")
    with (
        session.progress.task("Measuring the compressed model"),
        session.workbench.applied(plan, session.build) as model,
    ):
        scored = score(model, text.windows, text.teacher)
    measured = Measurement(
        scored.perplexity,
        scored.kl,
        scored.tokens,
        session.workbench.inventory.plan_bytes(plan),
        None,
        None,
        text.name,
        describe_device(session.loaded.model),
        plan.hash,
    )
    return Quality(text.teacher.score.perplexity, measured)
