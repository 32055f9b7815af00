"""``autocompress.compress``: a model and a goal become a compressed model and a report."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from autocompress.api.exporting import write_folder
from autocompress.api.report import CompressionReport, CompressResult, LayerReport, Quality
from autocompress.calibration.menu import judge
from autocompress.deploy.folder import check_free
from autocompress.deploy.targets import target_of
from autocompress.driver.goal import Goal, read_goal
from autocompress.driver.quality_goal import QualityGoal, loss_against_dense
from autocompress.driver.study_session import open_for_target
from autocompress.errors import ConfigurationError, DataError
from autocompress.evaluation.corpus import PARTS
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.scoring import Score, score
from autocompress.free_memory import peak_memory_bytes
from autocompress.judging.targets import LossOnText, judge_targets
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec, Measurement
from autocompress.requests.base import verb
from autocompress.requests.groups import SessionRequest
from autocompress.requests.verbs import CompressRequest
from autocompress.session.in_memory import (
    MissingTokenizer,
    kept_in,
    own_content,
    session_in_memory,
)
from autocompress.session.left_dense import unreached_of
from autocompress.session.session import Session
from autocompress.stage_memory import StageMemory
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.permanent import compress_, compressed_copy


@verb(CompressRequest)
def compress(request: CompressRequest) -> CompressResult:
    """Compress a model to a budget, to a quality, or by a recipe, without a search.

    ``model, report = autocompress.compress(model, budget="4x", tokenizer=tokenizer)``

    Under a budget the plan is one exact allocation, corrected once by what each layer costs inside
    the compressed model; a search tries many more. Layers that a recipe leaves open stay dense, or,
    under a budget, are allocated so that the whole model meets it.

    Returns:
        The compressed model in evaluation mode, and the report: plan, bytes, predicted loss
        increase, perplexities, layers. ``print(report)`` sums it up.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, or none keeps the quality; the
            message says what can be reached. Nothing is written.
        RecipeError: the recipe is malformed or belongs to another model.
        ModelError: the model cannot be loaded, has no weights, or is compressed already.
        DataError: a text that cannot be used, or texts without a tokenizer.
        ConfigurationError: neither recipe nor budget; ``out`` in use.
        StorageError: ``out`` cannot be written, or does not load as what was measured.
    """
    goal, model = read_goal(request), request.model
    if request.quality is None:
        _refuse(
            "the selection text is for a quality=",
            selection_data=request.selection_data is not None,
        )
    if request.out is not None:
        check_free(Path(request.out), request.overwrite)
    memory = StageMemory(request.progress)
    sources, own = own_content(
        {part: getattr(request, f"{part}_data") for part in ("calibration", "selection", "report")}
    )
    parts = _parts(goal, measured=request.measure or request.out is not None)
    with kept_in(request.runs_dir) as folder:
        named = request.into(
            SessionRequest,
            **{f"{part}_data": sources.get(part) for part in PARTS},
            model=None if model is None else str(model),
            seed=goal.seed if request.seed is None else request.seed,
            runs_dir=folder,
            progress=memory,
        )
        if isinstance(model, PreTrainedModel):
            _refuse_for_models_in_memory(request)
            if request.tokenizer is None:  # then only token ids are measured on, if there are some
                parts = ["calibration"]
            with session_in_memory(
                *(model, request.tokenizer, replace(named, model=None), own),
                parts=parts,
                target=target_of(request.target),
            ) as session:
                return compress_session(session, goal, request, memory)
        if not isinstance(model, str | Path | None):
            raise ConfigurationError(
                "this is no model to compress",
                got=type(model).__name__,
                wanted="a transformers PreTrainedModel, a folder, or a name on the hub",
            )
        _refuse("the tokenizer comes with a model by name", tokenizer=request.tokenizer)
        session = open_for_target(named, own=own, parts=parts)
        return compress_session(session, goal, replace(request, inplace=True), memory)


def _refuse_for_models_in_memory(request: CompressRequest) -> None:
    _refuse(
        "the model is loaded already",
        device=request.device != "cpu" and request.device,
        compute_dtype=request.compute_dtype,
        trust_remote_code=request.trust_remote_code,
        dequantize=request.dequantize,
    )
    if request.out is not None and request.tokenizer is None:
        raise ConfigurationError(
            "a folder is to be written without a tokenizer",
            wanted="tokenizer=, which goes into the folder with the model",
            hint="Or write the model alone: model.save_pretrained(folder).",
        )


def _parts(goal: Goal, *, measured: bool) -> list[str]:
    """The texts that are needed."""
    wants_quality = isinstance(goal, QualityGoal)
    selection = ["selection"] if wants_quality else []
    return ["calibration", *selection, *(["report"] if measured or wants_quality else [])]


def _refuse(reason: str, **given: object) -> None:
    """Refuse arguments that would have no effect."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigurationError(reason, got=f"{', '.join(named)}=", hint="Leave it out.")


def compress_session(
    session: Session, goal: Goal, request: CompressRequest, memory: StageMemory
) -> CompressResult:
    """Find the plan, judge and measure it, write it if asked to, and put it into the model.

    Args:
        session: the model and its texts.
        goal: what to compress to.
        request: what to do with what comes of it.
        memory: notes what each stage holds.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, or none keeps the quality.
        RecipeError: the recipe belongs to another model.
        DataError: a text that cannot be used, or none where a quality is to be kept.
        StorageError: the folder cannot be written, or does not load as what was measured.
    """
    inventory = session.workbench.inventory
    measured = (request.measure or request.out is not None) and _has_texts(session, "report")
    wants_quality = isinstance(goal, QualityGoal)
    # Said before the work that comes first.
    if wants_quality and not _has_texts(session, "selection", "report"):
        raise DataError(
            "a quality is kept on a selection text and confirmed on a report text",
            got="no tokenizer to read them with",
            wanted="tokenizer=, or token ids as selection_data= and report_data=",
        )
    for part in _parts(goal, measured=measured):
        windows = session.windows(getattr(session, f"{part}_ids"))
        session.objective.check_scorable(session.loaded.model, windows)
    if measured:
        session.compare_texts("report")
    report_text = _ReportText(session)
    chosen = goal.choose(session, report_text.loss)
    plan = chosen.plan
    layers = _judged(session, plan)
    quality = report_text.measure(plan) if measured else None
    losses = chosen.losses
    if quality is not None or wants_quality:
        losses = (*losses, report_text.loss(plan))
    exported = None
    if request.out is not None and quality is not None:
        exported = write_folder(
            session,
            plan,
            Path(request.out),
            quality.measured,
            goal.label,
            penalties=goal.penalties_of(plan, session.progress),
            overwrite=request.overwrite,
        )
    report = CompressionReport(
        session.loaded.source,
        goal.label,
        plan,
        inventory.dense_bytes,
        inventory.plan_bytes(plan),
        layers,
        inventory.skipped + chosen.refused,
        session.objective.gauge,
        quality,
        exported,
        session.begin_token,
        judge_targets(
            chosen.limits,
            inventory.plan_bytes(plan),
            None,
            losses,
            session.objective.gauge,
        ),
        peak_memory_bytes(),
        unreached_of(session),
        dict(memory.peaks),
    )
    finish = compress_ if request.inplace else compressed_copy
    return CompressResult(finish(session.workbench, plan, session.builder.build), report)


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
    loss_increase: float | None = 0.0
    cosine = 1.0
    if method != Keep():
        fit = judge(session.builder.problem(spec.name), session.builder.build(spec.name, method))
        loss_increase, cosine = (
            None if spec.name in session.unreached else fit.loss_increase,
            fit.cosine,
        )
    return LayerReport(
        spec.name,
        spec.role.value,
        spec.shape,
        str(method),
        method.to_dict(),
        Keep().cost(spec),
        method.cost(spec),
        method.parameters(spec),
        loss_increase,
        cosine,
    )


def _has_texts(session: Session, *parts: str) -> bool:
    readable = not isinstance(session.loaded.tokenizer, MissingTokenizer)
    return readable or all(part in session.own.tokens for part in parts)


class _ReportText:
    """The report text: the dense model is measured on it once, and each plan once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._measured: dict[str, Score] = {}

    @cached_property
    def _text(self) -> ScoredText:
        with self._session.progress.task("Measuring the dense model"):
            return self._session.scored_text("report")

    def _score(self, plan: Plan) -> Score:
        text, session = self._text, self._session
        if plan.hash not in self._measured:
            with (
                session.progress.task("Measuring the compressed model"),
                session.workbench.applied(plan, session.builder.build) as model,
                dense_copies(model),
            ):
                self._measured[plan.hash] = score(model, text.windows, text.teacher)
        return self._measured[plan.hash]

    def loss(self, plan: Plan) -> LossOnText:
        """What a plan loses."""
        return loss_against_dense(self._score(plan), self._text)

    def measure(self, plan: Plan) -> Quality:
        """The model before and after."""
        scored, session = self._score(plan), self._session
        measured = Measurement(
            scored.figure,
            scored.loss,
            scored.divergence,
            scored.tokens,
            session.workbench.inventory.plan_bytes(plan),
            None,
            None,
            self._text.name,
            describe_device(session.loaded.model),
            plan.hash,
            cosine=scored.cosine if math.isfinite(scored.cosine) else None,
        )
        return Quality(self._text.teacher.score.figure, measured)
