"""``autocompress.evaluate``: how well a dense or compressed model predicts text and does tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autocompress.api.exported_folder import refuse_options
from autocompress.api.recorded_texts import recorded_texts
from autocompress.api.speed import Timed, check_comparable, measure_speed, open_dense_of
from autocompress.errors import ConfigurationError, DataError
from autocompress.evaluation.corpus import BUNDLED, PARTS, bundled_text, cut_in_three, read_source
from autocompress.evaluation.encoding import (
    begin_tokens,
    check_known,
    spelled,
    token_ids,
    vocabulary_of,
)
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.plausibility import absurd_perplexity
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows, context_length
from autocompress.judging.bootstrap import difference_interval
from autocompress.progress import SILENT, Progress
from autocompress.session.session import TextSettings, check_named
from autocompress.surgery.compute_type import FASTEST
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, is_bundled, is_exported, load_model
from autocompress.surgery.stored_types import dtype_name

DEFAULT_TOKENS = 24_576  # as many as a search measures its final figures on


def evaluate(
    model: str | LoadedModel | None = None,
    *,
    data: str | None = None,
    part: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    context: int | None = None,
    bos: bool | None = None,
    against: str | LoadedModel | None = None,
    tasks: Sequence[str] = (),
    task_folder: str | Path | None = None,
    limit: int | None = None,
    speed: bool = False,
    device: str = "cpu",
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model's perplexity on a text, its answers to lm-eval tasks, and its speed.

    Args:
        model: a folder, a name on the hub, or a loaded model; the bundled model when left out.
        data: a text file or hub data set; when left out, for an exported folder the report text
            that it was made with, for the bundled model the bundled one. With ``tasks`` and without
            ``data`` or ``against`` no text is scored.
        part: score only this part of ``data``, ``calibration``, ``selection`` or ``report``, as a
            search cuts it.
        tokens: score at most that many tokens, from the start.
        context: tokens of a window; as many as the model's context, at most 2048, or for an
            exported folder as many as when it was made, when left out.
        bos: start each window with what the tokenizer puts before a text, such as a begin token;
            when left out, so it is, but for an exported folder that was made otherwise.
        against: dense model to measure the KL divergence from, and to compare the speed with.
        tasks: names of lm-eval tasks, groups or tags.
        task_folder: folder of task files.
        limit: examples of each task.
        speed: measure time and memory, in turn with ``against`` or, of an exported folder, the
            dense model that it was made from. Then a text is scored only where one is known.
        device: where to run.
        compute_dtype: torch name of the floating-point type that the model computes in; when left
            out, the stored one or float32, whichever is faster here.
        trust_remote_code: whether code that comes with the model may run.
        dequantize: let transformers make a quantized checkpoint dense; bytes count from that.
        progress: told how far things are.

    Returns:
        ``model``, ``bytes`` of its stored tensors, ``device``, ``data``, ``perplexity``, ``nll``,
        ``tokens``, the ``begin_token`` of each window, and against a dense model ``kl``, the
        ``rise`` of log-perplexity and its 95 % interval ``rise_interval``, from the windows of the
        text drawn again in pairs (each ``None`` when not measured); and ``tasks``: one mapping per
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
    for name, value, least in (("tokens", tokens, 2), ("context", context, 2), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ConfigurationError(f"--{name} is too low", got=value, wanted=f"at least {least}")
    if not tasks:
        refuse_options("no tasks to run", task_folder=task_folder, limit=limit)
    elif data is None and against is None:
        counted = None if tokens == DEFAULT_TOKENS else tokens
        refuse_options(
            "--tasks alone, which score no text", part=part, tokens=counted, context=context
        )
    settings: dict[str, Any] = {
        "device": device,
        "dtype": compute_dtype or FASTEST,
        "trust_remote_code": trust_remote_code,
        "dequantize": dequantize,
    }
    scored = data is not None or against is not None or not tasks
    if speed and scored and data is None and part is None and not _knows_text(model):
        progress.note("Perplexity is left out: no text is named with --data.")
        scored = False
    texts = _texts_for(model, data, scored=scored)
    loaded = _loaded(model, settings, progress)
    dense = None if against is None else _loaded(against, settings, progress)
    context = texts.context if context is None else context
    bos = texts.bos if bos is None else bos
    begin = begin_tokens(loaded.tokenizer) if bos else ()
    result: dict[str, Any] = {
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
        "bytes": stored_bytes(loaded.model, loaded.stored_types),
        "device": describe_device(loaded.model),
        "begin_token": spelled(begin, loaded.tokenizer),
        **dict.fromkeys(("data", "perplexity", "nll", "tokens", "kl", "rise", "rise_interval")),
        "speed": None,
        "tasks": [],
    }
    if speed:
        result["speed"] = measure_speed(
            _timed(model, loaded, settings),
            _dense_beside(loaded, against, dense, settings, progress),
            bos=bos,
            progress=progress,
        )
    if scored:
        text, result["data"] = _text(texts if data is None else data, part)
        windows = _windows(loaded, text, result["data"], tokens, context, begin)
        result |= _score(loaded, dense, windows, progress, f"the text {result['data']}")
    if tasks:
        from autocompress.evaluation.tasks import run_tasks

        with progress.task(f"Running tasks {', '.join(tasks)}"):
            rows = run_tasks(
                loaded.model,
                loaded.tokenizer,
                tasks,
                task_folder=task_folder,
                limit=limit,
                context=context,
                begin=begin,
            )
        result["tasks"] = [asdict(row) for row in rows]
    return result


def _timed(model: str | LoadedModel | None, loaded: LoadedModel, settings: dict[str, Any]) -> Timed:
    if isinstance(model, LoadedModel):
        return Timed(loaded)
    return Timed(loaded, settings | {"dtype": dtype_name(loaded.model.dtype)}, model)


def _dense_beside(
    loaded: LoadedModel,
    against: str | LoadedModel | None,
    dense: LoadedModel | None,
    settings: dict[str, Any],
    progress: Progress,
) -> Timed | None:
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


def _texts_for(model: str | LoadedModel | None, data: str | None, *, scored: bool) -> TextSettings:
    """The texts that a model was made with, or the usual settings; refused where none is named."""
    source = model.source if isinstance(model, LoadedModel) else model
    recorded = recorded_texts(source)
    if recorded is None and scored and data is None:
        check_named(TextSettings(), source, ("report",), apart=False)
    return recorded or TextSettings(BUNDLED)


def _text(source: str | TextSettings, part: str | None) -> tuple[str, str]:
    """A text and its name: of the texts of a model the report text, or a part of them."""
    if part is not None and part not in PARTS:
        raise ConfigurationError("--part is unknown", got=repr(part), wanted=", ".join(PARTS))
    if isinstance(source, TextSettings):
        return _own_text(source, part or "report")
    if source == BUNDLED:
        return bundled_text(part or "report"), f"bundled {part or 'report'} text"
    data, text = source, read_source(source)
    if part is None:
        return text, data
    return cut_in_three(text)[PARTS.index(part)], f"{data} ({part} part)"


def _own_text(texts: TextSettings, part: str) -> tuple[str, str]:
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
    return Windows(ids, context_length(loaded.model, context), begin)


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
        warning = absurd_perplexity(measured.nll, vocabulary_of(loaded.model), name)
        if warning is not None:
            progress.note(warning)
    found = {
        "perplexity": measured.perplexity,
        "nll": measured.nll,
        "tokens": measured.tokens,
    }
    if dense is None or teacher is None:
        return found
    interval = difference_interval(measured.windows, teacher.score.windows)
    return found | {
        "kl": measured.kl,
        "rise": measured.nll - teacher.score.nll,
        "rise_interval": None if interval is None else list(interval),
        "against": dense.source,
    }
