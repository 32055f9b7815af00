"""``evaluate --speed``: time and memory of a model, with the dense one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from autocompress.api.exported_folder import dtype_of, was_quantized
from autocompress.deploy.documents import RECIPE
from autocompress.errors import AutocompressError, ModelError
from autocompress.evaluation.encoding import begin_tokens, vocabulary_of
from autocompress.evaluation.latency import ROUNDS, describe_device
from autocompress.evaluation.speed import KINDS, Prompts, memory_alone, time_in_turn
from autocompress.progress import SILENT, Progress
from autocompress.space.document import read_document
from autocompress.space.recipe_file import read_recipe
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, is_exported, load_model
from autocompress.surgery.stored_types import dtype_name


@dataclass(frozen=True)
class TimedModel:
    """A model, and how a fresh process loads it again.

    Attributes:
        loaded: the model.
        settings: of ``load_model``; ``None`` for a model that only this process has.
        source: what was named; ``None`` for the bundled model.
    """

    loaded: LoadedModel
    settings: Mapping[str, Any] | None = field(default=None, compare=False)
    source: str | None = None


def open_dense_of(
    exported: LoadedModel, settings: Mapping[str, Any], progress: Progress = SILENT
) -> TimedModel:
    """Load the dense model that an exported folder was made from, as the folder records it.

    Args:
        exported: loaded from the folder.
        settings: of ``load_model``; the type is that of the loaded one.
        progress: told how far things are.

    Raises:
        ModelError: the folder does not say, or the model is gone or another one by now.
    """
    hint = "Name the dense model with --against."
    folder = Path(exported.source).expanduser()
    unknown = f"the dense model that {exported.source} was made from"
    try:
        recipe = read_recipe(read_document(folder / RECIPE))
    except AutocompressError as error:
        raise ModelError(f"{unknown} is not known: {error.what}", hint=hint) from error
    if recipe.model is None:
        raise ModelError(f"{unknown} is not known: its {RECIPE} names none", hint=hint)
    computed = dtype_name(exported.model.dtype)
    wanted = dict(settings) | {"dequantize": was_quantized(folder), "dtype": computed}
    try:
        with progress.task(f"Loading {recipe.model}"):
            dense = load_model(recipe.model, **wanted)
    except ModelError as error:
        raise ModelError(f"{unknown} cannot be loaded: {error.what}", hint=hint) from error
    # In another type the same weights have another fingerprint.
    as_made = computed == dtype_of(folder)
    if as_made and recipe.fingerprint not in (None, dense.fingerprint):
        raise ModelError(
            f"{recipe.model} is not the model that {exported.source} was made from any more",
            got=f"fingerprint {dense.fingerprint}",
            wanted=str(recipe.fingerprint),
            hint=hint,
        )
    return TimedModel(dense, wanted, recipe.model)


def measure_speed(
    model: TimedModel,
    dense: TimedModel | None = None,
    *,
    bos: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Time a model, in turn with the dense one, and measure the memory of each by itself.

    Args:
        model: the model.
        dense: the dense model to compare with.
        bos: whether prompts start as the tokenizer starts a text.
        progress: told how far things are.

    Returns:
        The conditions; for ``model`` and ``dense`` (``None`` without one) the figures; and
        ``ratio``, multiples of the dense model's figures.

    Raises:
        ModelError: a model that does not decode, or not the same tokens as the other.
    """
    loaded = model.loaded
    timed = {"model": model} | ({} if dense is None else {"dense": dense})
    if dense is not None:
        check_comparable(loaded, dense.loaded)
    # The shorter context's prompts fit both.
    begin = begin_tokens(loaded.tokenizer) if bos else ()
    prompts = min(
        (Prompts.of(each.loaded.model, begin) for each in timed.values()),
        key=lambda prompts: len(prompts.prefill_ids),
    )
    models = {name: each.loaded.model for name, each in timed.items()}
    times = time_in_turn(models, prompts, progress)
    figures: dict[str, Any] = {"dense": None}
    with progress.task("Measuring memory in fresh processes (models)", len(timed)) as advance:
        for name, each in timed.items():
            figures[name] = _figures(each) | {
                f"{kind}_ms": asdict(times[name][kind]) for kind in KINDS
            }
            advance(1)
    return {
        "device": describe_device(loaded.model),
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "decode_tokens": ROUNDS * prompts.tokens,
        "decode_prompt_tokens": len(prompts.decode_ids),
        "prompt_tokens": len(prompts.prefill_ids),
        **figures,
        "ratio": None if dense is None else _ratios(figures["model"], figures["dense"]),
    }


def check_comparable(loaded: LoadedModel, dense: LoadedModel) -> None:
    """Make sure that two models have the same tokens.

    Raises:
        ModelError: they have not.
    """
    sizes = [vocabulary_of(each.model) for each in (loaded, dense)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{loaded.source} and {dense.source} cannot be compared",
            got=f"vocabularies of {sizes[0]} and {sizes[1]} tokens",
            wanted="the dense model that the other was made from",
        )


def _figures(timed: TimedModel) -> dict[str, Any]:
    """What a model is, and the memory that it takes by itself."""
    loaded = timed.loaded
    memory: dict[str, Any] = {}
    if timed.settings is not None:
        alone = memory_alone(timed.source, timed.settings, torch.get_num_threads())
        memory = asdict(alone)
    return {
        "model": loaded.source,
        "exported": is_exported(loaded.model),
        "dtype": dtype_name(loaded.model.dtype),
        "bytes": stored_bytes(loaded.model, loaded.stored_types),
        **memory,
    }


def _ratios(model: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    ratios = {kind: _milliseconds(model, kind) / _milliseconds(dense, kind) for kind in KINDS}
    for key in ("peak_memory_bytes", "accelerator_memory_bytes", "bytes"):
        if model.get(key) and dense.get(key):
            ratios[key.removesuffix("_bytes")] = model[key] / dense[key]
    return ratios


def _milliseconds(figures: Mapping[str, Any], kind: str) -> float:
    return float(figures[f"{kind}_ms"]["median_ms"])
