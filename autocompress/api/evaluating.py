"""``autocompress.evaluate``: how well a dense or compressed model predicts text and does tasks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from autocompress.api.exported_folder import refuse_options
from autocompress.api.recorded_texts import recorded_texts
from autocompress.api.speed import TimedModel, check_comparable, measure_speed, open_dense_of
from autocompress.errors import DataError
from autocompress.evaluation.corpus import PARTS, bundled_text, cut_in_three, read_source
from autocompress.evaluation.encoding import (
    begin_tokens,
    check_known,
    spelled,
    token_ids,
)
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.objectives import objective_for
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows, context_length
from autocompress.judging.bootstrap import difference_interval
from autocompress.paths import BUNDLED
from autocompress.progress import Progress
from autocompress.requests.base import names_in, verb
from autocompress.requests.groups import TextRequest
from autocompress.requests.verbs import REPORT_TOKENS, EvaluateRequest
from autocompress.session.session import check_named
from autocompress.surgery.compute_type import FASTEST
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, is_bundled, is_exported, load_model
from autocompress.surgery.stored_types import dtype_name


@verb(EvaluateRequest)
def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Measure a model's perplexity on a text, its answers to lm-eval tasks, and its speed.

    Returns:
        ``model``, ``bytes`` of its stored tensors, ``device``, ``data``, ``perplexity``, ``nll``,
        ``tokens``, the ``begin_token`` of each window, and against a dense model ``kl``, the
        ``increase`` of ``nll`` and its 95 % interval ``increase_interval``, from the windows of the
        text drawn again in pairs (each ``None`` when not measured; the three figures are named by
        the model's ``gauge``); and ``tasks``: one mapping per
        metric with ``task``, ``metric``, ``value``, ``stderr`` and ``samples``. ``speed`` (``None``
        when not measured) has the conditions, the figures of ``model`` and ``dense`` (median and
        spread of ``decode_ms`` for a token, ``prefill_ms`` and ``first_token_ms`` for a prompt of
        ``prompt_tokens``; ``bytes``; ``peak_memory_bytes`` of a fresh process that loads and runs
        the model alone, for models by name), and ``ratio``, multiples of the dense model's.

    Raises:
        ModelError: a model that cannot be loaded or scored, or an exported folder whose dense model
            is gone.
        DataError: a text or task data that cannot be read, or is too short.
        ConfigurationError: an unknown task, part or device.
    """
    model, data, part, against = request.model, request.data, request.part, request.against
    tasks, progress = names_in(request.tasks), request.progress
    if not tasks:
        refuse_options("no tasks to run", task_folder=request.task_folder, limit=request.limit)
    elif data is None and against is None:
        counted = None if request.tokens == REPORT_TOKENS else request.tokens
        refuse_options(
            "--tasks alone, which score no text",
            part=part,
            tokens=counted,
            context=request.context,
        )
    settings: dict[str, Any] = {
        "device": request.device,
        "dtype": request.compute_dtype or FASTEST,
        "trust_remote_code": request.trust_remote_code,
        "dequantize": request.dequantize,
    }
    scored = data is not None or against is not None or not tasks
    if request.speed and scored and data is None and part is None and not _knows_text(model):
        progress.note("Quality is left out: no text is named with --data.")
        scored = False
    texts = _texts_for(model, data, scored=scored)
    loaded = _loaded(model, settings, progress)
    dense = None if against is None else _loaded(against, settings, progress)
    context = texts.longest if request.context is None else request.context
    bos = texts.bos if request.bos is None else request.bos
    begin = begin_tokens(loaded.tokenizer) if bos else ()
    gauge = objective_for(loaded.model).gauge
    unknown = ("data", "figure", "loss", "tokens", "divergence", "increase", "increase_interval")
    result: dict[str, Any] = {
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
        "bytes": stored_bytes(loaded.model, loaded.stored_types),
        "device": describe_device(loaded.model),
        "begin_token": spelled(begin, loaded.tokenizer),
        "gauge": asdict(gauge),
        **gauge.named(dict.fromkeys(unknown)),
        "speed": None,
        "tasks": [],
    }
    if request.speed:
        result["speed"] = measure_speed(
            _timed(model, loaded, settings),
            _dense_beside(loaded, against, dense, settings, progress),
            bos=bos,
            progress=progress,
        )
    if scored:
        text, result["data"] = _text(texts if data is None else data, part)
        windows = _windows(loaded, text, result["data"], request.tokens, context, begin)
        found = _score(loaded, dense, windows, progress, f"the text {result['data']}")
        result |= gauge.named(found)
    if tasks:
        from autocompress.evaluation.tasks import run_tasks

        with progress.task(f"Running tasks {', '.join(tasks)}"):
            rows = run_tasks(
                loaded.model,
                loaded.tokenizer,
                tasks,
                task_folder=request.task_folder,
                limit=request.limit,
                context=context,
                begin=begin,
            )
        result["tasks"] = [asdict(row) for row in rows]
    return result


def _timed(
    model: str | LoadedModel | None, loaded: LoadedModel, settings: dict[str, Any]
) -> TimedModel:
    if isinstance(model, LoadedModel):
        return TimedModel(loaded)
    return TimedModel(loaded, settings | {"dtype": dtype_name(loaded.model.dtype)}, model)


def _dense_beside(
    loaded: LoadedModel,
    against: str | LoadedModel | None,
    dense: LoadedModel | None,
    settings: dict[str, Any],
    progress: Progress,
) -> TimedModel | None:
    """The dense model to compare the speed with; nothing for a dense model by itself."""
    if dense is not None:
        return _timed(against, dense, settings)
    return open_dense_of(loaded, settings, progress) if is_exported(loaded.model) else None


def _loaded(
    model: str | LoadedModel | None, settings: dict[str, Any], progress: Progress
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    with progress.task(f"Loading {model or 'the bundled model'}"):
        return load_model(model, **settings)


def _knows_text(model: str | LoadedModel | None) -> bool:
    """Whether a model has a text of its own: the bundled one, and exported folders."""
    source = model.source if isinstance(model, LoadedModel) else model
    return is_bundled(source) or recorded_texts(source) is not None


def _texts_for(model: str | LoadedModel | None, data: str | None, *, scored: bool) -> TextRequest:
    """The texts that a model was made with, or the usual settings; refused where none is named."""
    source = model.source if isinstance(model, LoadedModel) else model
    recorded = recorded_texts(source)
    if recorded is None and scored and data is None:
        check_named(TextRequest(), source, ("report",), apart=False)
    return recorded or TextRequest(data=BUNDLED)


def _text(source: str | TextRequest, part: str | None) -> tuple[str, str]:
    """A text and its name: of the texts of a model the report text, or a part of them."""
    if isinstance(source, TextRequest):
        return _own_text(source, part or "report")
    if source == BUNDLED:
        return bundled_text(part or "report"), f"bundled {part or 'report'} text"
    data, text = source, read_source(source)
    if part is None:
        return text, data
    return cut_in_three(text)[PARTS.index(part)], f"{data} ({part} part)"


def _own_text(texts: TextRequest, part: str) -> tuple[str, str]:
    alone = getattr(texts, f"{part}_data")
    try:
        if alone is not None:
            return read_source(alone, part), alone
        if texts.data is not None:
            return _text(texts.data, part)
    except DataError as error:
        raise DataError(
            f"the {part} text that the model was made with cannot be read: {error.what}",
            got=error.got,
            hint="Name a text with --data.",
        ) from error
    raise DataError(f"the model was made without a {part} text", hint="Name a text with --data.")


def _windows(
    loaded: LoadedModel,
    text: str,
    data: str,
    tokens: int,
    context: int,
    begin: tuple[int, ...],
) -> Windows:
    name = f"the text {data}"
    ids = token_ids(text, loaded.tokenizer, limit=tokens, name=name)
    check_known(torch.cat([ids, ids.new_tensor(begin)]), loaded.model, loaded.tokenizer, name)
    context = context_length(loaded.model, context)
    return objective_for(loaded.model).prepare(ids, context, begin)


def _score(
    loaded: LoadedModel,
    dense: LoadedModel | None,
    windows: Windows,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    """What the text says of the model, alone and against the dense one."""
    teacher = None
    if dense is not None:
        check_comparable(loaded, dense)
        with progress.task(f"Scoring {dense.source} (windows)", len(windows)) as advance:
            teacher = Teacher.of(dense.model, windows, advance=advance)
    with (
        progress.task(f"Scoring {loaded.source} (windows)", len(windows)) as advance,
        dense_copies(loaded.model),
    ):
        measured = score(loaded.model, windows, teacher, advance=advance)
    if not is_exported(loaded.model):
        objective = objective_for(loaded.model)
        warning = objective.implausible(loaded.model, measured.loss, name)
        if warning is not None:
            progress.note(warning)
    found = {
        "figure": measured.figure,
        "loss": measured.loss,
        "tokens": measured.tokens,
    }
    if dense is None or teacher is None:
        return found
    interval = difference_interval(measured.windows, teacher.score.windows)
    return found | {
        "divergence": measured.divergence,
        "increase": measured.loss - teacher.score.loss,
        "increase_interval": None if interval is None else list(interval),
        "against": dense.source,
    }
