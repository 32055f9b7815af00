"""``autocompress.evaluate``: how well a dense or compressed model predicts text and does tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autocompress.api.exported_folder import refuse_options
from autocompress.api.recorded_texts import recorded_texts
from autocompress.api.session import TextSettings, check_named
from autocompress.errors import ConfigurationError, DataError, ModelError
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
from autocompress.evaluation.scoring import Score, Teacher, score
from autocompress.evaluation.windows import Windows, context_length
from autocompress.progress import SILENT, Progress
from autocompress.search.bootstrap import difference_interval
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, is_exported, load_model

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
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model's perplexity on a text, and its answers to lm-eval tasks.

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
        against: dense model to measure the KL divergence from.
        tasks: names of lm-eval tasks, groups or tags.
        task_folder: folder of task files.
        limit: examples of each task.
        device: where to run.
        dtype: torch name of a floating-point type; the stored one when left out.
        trust_remote_code: whether code that comes with the model may run.
        dequantize: let transformers make a quantized checkpoint dense; bytes count from that.
        progress: told how far things are.

    Returns:
        ``model``, ``bytes`` of its stored tensors, ``device``, ``data``, ``perplexity``, ``nll``,
        ``tokens``, the ``begin_token`` of each window, and against a dense model ``kl``, the
        ``rise`` of log-perplexity and its 95 % interval ``rise_interval``, from the windows of the
        text drawn again in pairs (each ``None`` when not measured); and ``tasks``: one mapping per
        metric with ``task``, ``metric``, ``value``, ``stderr`` and ``samples``.

    Raises:
        ModelError: a model that cannot be loaded or scored.
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
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "dequantize": dequantize,
    }
    texts = _texts_for(model, data, scored=not tasks or data is not None or against is not None)
    loaded = _loaded(model, settings, progress)
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
        "tasks": [],
    }
    if not tasks or data is not None or against is not None:
        text, result["data"] = _text(texts if data is None else data, part)
        name = f"the text {result['data']}"
        ids = token_ids(text, loaded.tokenizer, limit=tokens, name=name)
        check_known(torch.cat([ids, ids.new_tensor(begin)]), loaded.model, loaded.tokenizer, name)
        windows = Windows(ids, context_length(loaded.model, context), begin)
        dense = None if against is None else _loaded(against, settings, progress)
        measured, teacher = _score(loaded, dense, windows, progress)
        if not is_exported(loaded.model):
            warning = absurd_perplexity(measured.nll, vocabulary_of(loaded.model), name)
            if warning is not None:
                progress.note(warning)
        result |= {
            "perplexity": measured.perplexity,
            "nll": measured.nll,
            "tokens": measured.tokens,
        }
        if dense is not None and teacher is not None:
            interval = difference_interval(measured.windows, teacher.score.windows)
            result |= {
                "kl": measured.kl,
                "rise": measured.nll - teacher.score.nll,
                "rise_interval": None if interval is None else list(interval),
                "against": dense.source,
            }
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


def _loaded(
    model: str | LoadedModel | None, settings: dict[str, Any], progress: Progress
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    with progress.task(f"Loading {model or 'the bundled model'}"):
        return load_model(model, **settings)


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


def _score(
    loaded: LoadedModel, dense: LoadedModel | None, windows: Windows, progress: Progress
) -> tuple[Score, Teacher | None]:
    teacher = None
    if dense is not None:
        sizes = [each.model.config.get_text_config().vocab_size for each in (loaded, dense)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"{loaded.source} and {dense.source} cannot be compared",
                got=f"vocabularies of {sizes[0]} and {sizes[1]} tokens",
                wanted="the dense model that the other was made from",
            )
        with progress.task(f"Scoring {dense.source} (windows)", len(windows)) as advance:
            teacher = Teacher.of(dense.model, windows, advance=advance)
    with progress.task(f"Scoring {loaded.source} (windows)", len(windows)) as advance:
        return score(loaded.model, windows, teacher, advance=advance), teacher
