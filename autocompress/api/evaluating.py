"""``autocompress.evaluate``: how well a dense or compressed model predicts text and does tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import ConfigurationError, ModelError
from autocompress.evaluation.corpus import PARTS, bundled_text, cut_in_three, read_source
from autocompress.evaluation.encoding import begin_tokens, check_known, spelled, token_ids
from autocompress.evaluation.latency import describe_device
from autocompress.evaluation.scoring import Score, Teacher, score
from autocompress.evaluation.windows import DEFAULT_CONTEXT, Windows, context_length
from autocompress.progress import SILENT, Progress
from autocompress.search.bootstrap import difference_interval
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, load_model

DEFAULT_TOKENS = 24_576  # as many as a search measures its final figures on


def evaluate(
    model: str | LoadedModel | None = None,
    *,
    data: str | None = None,
    part: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    context: int | None = None,
    bos: bool = True,
    against: str | LoadedModel | None = None,
    tasks: Sequence[str] = (),
    task_folder: str | Path | None = None,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model's perplexity on a text, and its answers to lm-eval tasks.

    Args:
        model: a folder, a name on the hub, or a loaded model; the bundled model when left out.
        data: a text file or hub data set; the bundled report text when left out. With ``tasks`` and
            without ``data`` or ``against`` no text is scored.
        part: score only this part of ``data``, ``calibration``, ``selection`` or ``report``, as a
            search cuts it.
        tokens: score at most that many tokens, from the start.
        context: tokens of a window; as many as the model's context, at most 2048, when left out.
        bos: start each window with what the tokenizer puts before a text, such as a begin token.
        against: dense model to measure the KL divergence from.
        tasks: names of lm-eval tasks, groups or tags.
        task_folder: folder of task files.
        limit: examples of each task.
        device: where to run.
        dtype: torch name of a floating-point type; the stored one when left out.
        trust_remote_code: whether code that comes with the model may run.
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
    settings: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    loaded = _loaded(model, settings, progress)
    context = context or DEFAULT_CONTEXT
    begin = begin_tokens(loaded.tokenizer) if bos else ()
    result: dict[str, Any] = {
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
        "bytes": stored_bytes(loaded.model),
        "device": describe_device(loaded.model),
        "begin_token": spelled(begin, loaded.tokenizer),
        **dict.fromkeys(("data", "perplexity", "nll", "tokens", "kl", "rise", "rise_interval")),
        "tasks": [],
    }
    if not tasks or data is not None or against is not None:
        text, result["data"] = _text(data, part)
        name = f"the text {result['data']}"
        ids = token_ids(text, loaded.tokenizer, limit=tokens, name=name)
        check_known(torch.cat([ids, ids.new_tensor(begin)]), loaded.model, loaded.tokenizer, name)
        windows = Windows(ids, context_length(loaded.model, context), begin)
        dense = None if against is None else _loaded(against, settings, progress)
        measured, teacher = _score(loaded, dense, windows, progress)
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


def _text(data: str | None, part: str | None) -> tuple[str, str]:
    if part is not None and part not in PARTS:
        raise ConfigurationError("--part is unknown", got=repr(part), wanted=", ".join(PARTS))
    if data is None:
        return bundled_text(part or "report"), f"bundled {part or 'report'} text"
    text = read_source(data)
    if part is None:
        return text, data
    return cut_in_three(text)[PARTS.index(part)], f"{data} ({part} part)"


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
