"""``autocompress.compress``: a model and a target become a compressed model and a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocompress.api.exporting import write_folder
from autocompress.api.report import Compressed, CompressionReport, LayerReport, Quality
from autocompress.calibration.menu import judge
from autocompress.deploy.folder import check_free
from autocompress.driver.quality_target import QualityTarget, loss_against_dense
from autocompress.driver.target import RecipeSource, Target, read_target
from autocompress.errors import ConfigurationError, DataError
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.scoring import Score, check_scorable, score
from autocompress.free_memory import peak_memory_bytes
from autocompress.judging.targets import LossOnText, judge_targets
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.records import LayerSpec, Measurement
from autocompress.session.efforts import NORMAL
from autocompress.session.in_memory import (
    Content,
    MissingTokenizer,
    kept_in,
    own_content,
    session_in_memory,
)
from autocompress.session.left_dense import unreached_of
from autocompress.session.session import Session, TextSettings, named_texts, one_of, open_session
from autocompress.space.selection import Selection
from autocompress.stage_memory import StageMemory
from autocompress.surgery.dense_copies import dense_copies
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


def compress(
    model: str | PreTrainedModel | None = None,
    recipe: RecipeSource | None = None,
    out: str | Path | None = None,
    *,
    budget: str | None = None,
    quality: str | None = None,
    effort: str = NORMAL,
    fit_all: bool = False,
    space: str | None = None,
    methods: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    keep: str | Sequence[str] | None = None,
    unreached: str = "keep",
    tokenizer: PreTrainedTokenizerBase | None = None,
    inplace: bool = False,
    measure: bool = True,
    data: str | None = None,
    calibration_data: Content | None = None,
    selection_data: Content | None = None,
    report_data: Content | None = None,
    context: int | None = None,
    bos: bool = True,
    texts: TextSettings | None = None,
    seed: int | None = None,
    runs_dir: str | Path | None = "runs",
    device: str | None = None,
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Compressed:
    """Compress a model to a budget, to a quality, or by a recipe, without a search.

    ``model, report = autocompress.compress(model, budget="4x", tokenizer=tokenizer)``

    Under a budget the plan is one exact allocation, corrected once by what each layer costs inside
    the compressed model; a search tries many more.

    Args:
        model: a causal language model in memory, or a folder or hub name of one; the bundled one
            when left out.
        recipe: a file, its content as a mapping, or a plan. Layers that it leaves open stay dense,
            or, under a budget, are allocated so that the whole model meets it.
        out: a folder to write as well; it is then loaded again in a fresh process and compared.
        budget: most bytes of the stored model: ``4x``, ``25%``, ``1.6MB``; the recipe's own when
            left out.
        quality: what the smallest plan is to keep, beside a budget or instead of one: perplexity
            at most ``5%`` above the dense model's, log-perplexity at most ``0.02`` nats above it,
            or ``cosine 0.9``, the least mean cosine between the hidden states before the head and
            the dense model's. Kept on the selection text, and confirmed on the report text.
        effort: ``quick``, ``normal`` or ``thorough``: tokens of the texts, and how much is fitted
            and priced under a budget or a quality.
        fit_all: fit every option of every matrix there, beside those that plans take.
        space: what may be chosen from under a budget or a quality: a search space by name, or a
            YAML file; the recipe's own or ``default`` when left out.
        methods: names of the methods of the space that may be used; all when left out. A matrix may
            still stay as it is, where the space lets it.
        layers: globs over the names of matrices: no others are compressed.
        keep: globs over the matrices that stay as they are.
        unreached: what becomes of matrices that the calibration text never reaches, of which no
            loss increase is known: ``keep`` them dense, or ``8bit``.
        tokenizer: of a model in memory; not needed when the data are token ids.
        inplace: change the given model itself. By default it stays as it is, and what is returned
            is another model that shares with it the tensors that are not compressed. A model that
            is loaded by name is nobody else's, and is always changed itself.
        measure: measure perplexity before and after on the report text; always when ``out`` is
            given.
        data: one source of text, cut into three disjoint parts; ``bundled`` for the texts that come
            with autocompress, which only the bundled model takes unasked.
        calibration_data: what to calibrate on: a source of text, a list of texts, or token ids
            ``[tokens]`` or ``[windows, tokens]``, read as one sequence; its part of ``data`` when
            left out.
        selection_data: what plans are measured on under a quality, likewise.
        report_data: what to measure perplexity on, likewise.
        context: tokens of a window of text; as many as the model's context, at most 2048, when left
            out.
        bos: start each window with what the tokenizer puts before a text, such as a begin token.
        texts: the sources and how many tokens of each, instead of sources by name, context and bos.
        seed: of the calibration's labels and of cores that a recipe has drawn; the recipe's own or
            0 when left out.
        runs_dir: folder of the cache, from which another budget takes seconds; ``None`` keeps
            nothing.
        device: where to load a model by name; ``cpu`` when left out.
        compute_dtype: type that a model by name computes in; when left out, the stored one or
            float32, whichever is faster here.
        trust_remote_code: let code that comes with a hub model run.
        dequantize: let transformers make a quantized checkpoint dense; bytes count from that.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.

    Returns:
        The compressed model in evaluation mode, and the report: plan, bytes, predicted damage,
        perplexities, layers. ``print(report)`` sums it up.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, or none keeps the quality; the
            message says what can be reached. Nothing is written.
        RecipeError: the recipe is malformed or belongs to another model.
        ModelError: the model cannot be loaded, has no weights, or is compressed already.
        DataError: a text that cannot be used, or texts without a tokenizer.
        ConfigurationError: neither recipe nor budget; ``out`` in use.
        StorageError: ``out`` cannot be written, or does not load as what was measured.
    """
    selection = Selection.of(methods, layers, keep)
    target = read_target(
        *(recipe, budget, space, seed, selection, quality, unreached), effort, fit_all
    )
    if quality is None:
        _refuse("the selection text is for a quality=", selection_data=selection_data is not None)
    seed = target.seed if seed is None else seed
    wish = Wish(None if out is None else Path(out), overwrite, measure, inplace)
    if wish.out is not None:
        check_free(wish.out, overwrite)
    progress = memory = StageMemory(progress)
    named, own = own_content(
        {"calibration": calibration_data, "selection": selection_data, "report": report_data}
    )
    each = [named.get(part) for part in ("calibration", "selection", "report")]
    sources = named_texts(data, *each, context=context, bos=bos, effort=effort)
    settings = one_of(texts, sources)
    parts = _parts(target, measured=wish.measure or wish.out is not None)
    with kept_in(runs_dir) as folder:
        if isinstance(model, PreTrainedModel):
            _refuse(
                "the model is loaded already",
                device=device,
                compute_dtype=compute_dtype,
                trust_remote_code=trust_remote_code,
                dequantize=dequantize,
            )
            if wish.out is not None and tokenizer is None:
                raise ConfigurationError(
                    "a folder is to be written without a tokenizer",
                    wanted="tokenizer=, which goes into the folder with the model",
                    hint="Or write the model alone: model.save_pretrained(folder).",
                )
            if tokenizer is None:  # then only token ids are measured on, where there are some
                parts = ["calibration"]
            with session_in_memory(
                model, tokenizer, settings, own, folder, progress=progress, seed=seed, parts=parts
            ) as session:
                return compress_session(session, target, wish, memory)
        if not isinstance(model, str | Path | None):
            raise ConfigurationError(
                "this is no model to compress",
                got=type(model).__name__,
                wanted="a transformers PreTrainedModel, a folder, or a name on the hub",
            )
        _refuse("the tokenizer comes with a model by name", tokenizer=tokenizer)
        session = open_session(
            None if model is None else str(model),
            settings,
            folder,
            device=device or "cpu",
            compute_dtype=compute_dtype,
            trust_remote_code=trust_remote_code,
            dequantize=dequantize,
            progress=progress,
            seed=seed,
            own=own,
            parts=parts,
        )
        return compress_session(session, target, replace(wish, inplace=True), memory)


def _parts(target: Target, *, measured: bool) -> list[str]:
    """The texts that are needed."""
    wants_quality = isinstance(target, QualityTarget)
    selection = ["selection"] if wants_quality else []
    return ["calibration", *selection, *(["report"] if measured or wants_quality else [])]


def _refuse(reason: str, **given: object) -> None:
    """Refuse arguments that would have no effect."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigurationError(reason, got=f"{', '.join(named)}=", hint="Leave it out.")


def compress_session(
    session: Session, target: Target, wish: Wish, memory: StageMemory
) -> Compressed:
    """Find the plan, judge and measure it, write it if asked to, and put it into the model.

    Args:
        session: the model and its texts.
        target: what to compress to.
        wish: what to do with what comes of it.
        memory: notes what each stage holds.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, or none keeps the quality.
        RecipeError: the recipe belongs to another model.
        DataError: a text that cannot be used, or none where a quality is to be kept.
        StorageError: the folder cannot be written, or does not load as what was measured.
    """
    inventory = session.workbench.inventory
    measured = (wish.measure or wish.out is not None) and _has_texts(session, "report")
    wants_quality = isinstance(target, QualityTarget)
    # Said before the work that comes first.
    if wants_quality and not _has_texts(session, "selection", "report"):
        raise DataError(
            "a quality is kept on a selection text and confirmed on a report text",
            got="no tokenizer to read them with",
            wanted="tokenizer=, or token ids as selection_data= and report_data=",
        )
    for part in _parts(target, measured=measured):
        check_scorable(session.loaded.model, session.windows(getattr(session, f"{part}_ids")))
    if measured:
        session.compare_texts("report")
    report_text = _ReportText(session)
    chosen = target.choose(session, report_text.loss)
    plan = chosen.plan
    layers = _judged(session, plan)
    quality = report_text.measure(plan) if measured else None
    losses = chosen.losses
    if quality is not None or wants_quality:
        losses = (*losses, report_text.loss(plan))
    exported = None
    if wish.out is not None and quality is not None:
        exported = write_folder(
            session,
            plan,
            wish.out,
            quality.measured,
            target.label,
            penalties=target.penalties_of(plan, session.progress),
            overwrite=wish.overwrite,
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
        session.begin_token,
        judge_targets(chosen.limits, inventory.plan_bytes(plan), None, losses),
        peak_memory_bytes(),
        unreached_of(session),
        dict(memory.peaks),
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
    damage: float | None = 0.0
    cosine = 1.0
    if method != Keep():
        fit = judge(session.builder.problem(spec.name), session.build(spec.name, method))
        damage, cosine = None if spec.name in session.unreached else fit.damage, fit.cosine
    return LayerReport(
        spec.name,
        spec.role.value,
        spec.shape,
        str(method),
        method.to_dict(),
        Keep().cost(spec),
        method.cost(spec),
        method.parameters(spec),
        damage,
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
                session.workbench.applied(plan, session.build) as model,
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
            scored.perplexity,
            scored.kl,
            scored.tokens,
            session.workbench.inventory.plan_bytes(plan),
            None,
            None,
            self._text.name,
            describe_device(session.loaded.model),
            plan.hash,
            cosine=scored.cosine if math.isfinite(scored.cosine) else None,
        )
        return Quality(self._text.teacher.score.perplexity, measured)
