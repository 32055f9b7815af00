"""How fast models decode and read a prompt, measured in turn, and what memory one takes by itself.

``python -m autocompress.evaluation.speed SOURCE SETTINGS`` is the process whose memory is measured:
the resident memory of a process that holds several models says nothing of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import ModelError, StorageError
from autocompress.evaluation.latency import (
    PREFILL_TOKENS,
    PROMPT_TOKENS,
    ROUND_TOKENS,
    ROUNDS,
    WARM_UP_TOKENS,
    DecodeTimer,
    FirstTokenTimer,
    Latency,
    PrefillTimer,
    interleaved,
    prompt_of,
)
from autocompress.evaluation.objectives import objective_for
from autocompress.evaluation.windows import Windows, context_length
from autocompress.free_memory import peak_memory_bytes
from autocompress.fresh_process import answer_of, give_answer
from autocompress.progress import SILENT, Progress
from autocompress.surgery.loading import LoadedModel, load_model

KINDS = ("decode", "prefill", "first_token")


@dataclass(frozen=True)
class Prompts:
    """Tokens that all models of a comparison read.

    Attributes:
        decode_ids: ``[n]``, read before the timed tokens.
        tokens: timed tokens of one round.
        prefill_ids: ``[n]``, whose reading is timed.
    """

    decode_ids: Tensor
    tokens: int
    prefill_ids: Tensor

    @classmethod
    def of(cls, model: Any, begin: tuple[int, ...] = ()) -> Prompts:
        """As long as usual, or shorter where the model's context is.

        Raises:
            ModelError: a model that does not predict each token from the earlier ones.
        """
        context = context_length(model, PREFILL_TOKENS)
        tokens = min(ROUND_TOKENS, max(1, (context - WARM_UP_TOKENS) // 2))
        length = max(1, min(PROMPT_TOKENS, context - WARM_UP_TOKENS - tokens))
        prefill_ids = prompt_of(model, context, begin)
        objective_for(model).check_scorable(model, Windows(prefill_ids, context))
        return cls(prompt_of(model, length, begin), tokens, prefill_ids)


def time_in_turn(
    models: Mapping[str, Any], prompts: Prompts, progress: Progress = SILENT, rounds: int = ROUNDS
) -> dict[str, dict[str, Latency]]:
    """Time several models in turn.

    Args:
        models: causal language models in eval mode, by what they are called.
        prompts: what they read.
        progress: told how far it is.
        rounds: counted rounds of each.

    Returns:
        For each model milliseconds by ``KINDS``: ``decode`` of one token, ``prefill`` of the
        prompt, and ``first_token``, from the call of ``model.generate`` on the same prompt.

    Raises:
        ModelError: a model that gives no cache to decode with.
    """
    steps = len(KINDS) * len(models) * (rounds + 1)
    with progress.task("Timing (rounds)", steps) as advance:

        def counted(timer: DecodeTimer | PrefillTimer) -> list[float]:
            milliseconds = timer.times()
            advance(1)
            return milliseconds

        # All in turn, so that the kinds can be compared as well.
        found = interleaved(
            {
                f"{kind} {name}": partial(counted, _timer(kind, model, prompts))
                for kind in KINDS
                for name, model in models.items()
            },
            rounds,
        )
    return {name: {kind: found[f"{kind} {name}"] for kind in KINDS} for name in models}


def _timer(kind: str, model: Any, prompts: Prompts) -> DecodeTimer | PrefillTimer:
    if kind == "decode":
        return DecodeTimer(model, prompts.decode_ids, prompts.tokens)
    return (PrefillTimer if kind == "prefill" else FirstTokenTimer)(model, prompts.prefill_ids)


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a process that loads a model, reads the prompt and decodes.

    Attributes:
        peak_memory_bytes: most resident memory; ``None`` where the system does not say.
        libraries_memory_bytes: what of that was held before the model was loaded.
        accelerator_memory_bytes: most memory of tensors on the accelerator; ``None`` on a CPU.
    """

    peak_memory_bytes: int | None
    libraries_memory_bytes: int | None
    accelerator_memory_bytes: int | None


def memory_alone(source: str | None, settings: Mapping[str, Any], threads: int) -> MemoryUse:
    """Measure the memory that a model takes in a fresh process.

    Args:
        source: folder or hub name; ``None`` for the bundled model.
        settings: of ``load_model``.
        threads: that torch may use.

    Raises:
        ModelError: it does not load or run there.
    """
    arguments = (json.dumps(source), json.dumps(dict(settings)))
    try:
        answer = answer_of("autocompress.evaluation.speed", *arguments, threads=threads)
    except StorageError as error:
        raise ModelError(f"the memory of {source} cannot be measured: {error.what}") from error
    return MemoryUse(**answer)


def main(source: str, settings: str) -> None:
    """Load, read, decode, and say how much memory that took."""
    libraries = peak_memory_bytes()
    loaded: LoadedModel = load_model(json.loads(source), **json.loads(settings))
    model = loaded.model
    prompts = Prompts.of(model)
    for kind in KINDS:
        _timer(kind, model, prompts).times()
    on_accelerator = (
        torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    )
    give_answer(asdict(MemoryUse(peak_memory_bytes(), libraries, on_accelerator)))


if __name__ == "__main__":
    main(*sys.argv[1:])
