"""Time of a decoded token with a key-value cache, and of reading a prompt, in small rounds.

A machine's speed drifts, so two models are compared by rounds in turn (``interleaved``), each model
giving a few tokens at a time; the median over all of its tokens is the figure, half the
interquartile range its spread.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from autocompress.errors import ModelError
from autocompress.evaluation.encoding import vocabulary_of
from autocompress.evaluation.windows import context_length
from autocompress.runtime.cache_layout import given_cache
from autocompress.units import format_cpu

PROMPT_TOKENS = 32
PREFILL_TOKENS = 256
READS = 2  # timed, of the prompt, in one round
ROUND_TOKENS = 16
ROUNDS = 5
PRIME = 7919  # steps through the vocabulary so that the ids of a prompt do not repeat early
WARM_UP_TOKENS = (
    2  # of each round: first use of a cache, of weights that the other model pushed out
)


@dataclass(frozen=True)
class Latency:
    """Median and half the interquartile range of the milliseconds per decoded token."""

    median_ms: float
    spread_ms: float


class DecodeTimer:
    """Times greedy decoding with whatever weights the model holds at that moment.

    It decodes as ``model.generate`` does. The latent cache of low-rank keys and values, which saves
    memory and takes longer, is timed only where ``make_cache`` makes one.

    Args:
        model: causal language model in eval mode.
        prompt_ids: ``[n]`` int64, read before the timed tokens; ``prompt_of`` makes one.
        tokens: timed tokens of one round.
        batch: sequences decoded side by side; a time is then that of one token of each.
        make_cache: makes an empty cache for the model, or ``None`` for its usual one.
    """

    def __init__(
        self,
        model: Any,
        prompt_ids: Tensor,
        tokens: int = ROUND_TOKENS,
        *,
        batch: int = 1,
        make_cache: Callable[[Any], Any] = lambda _model: None,
    ) -> None:
        self.model, self.tokens, self.make_cache = model, tokens, make_cache
        self.device = next(model.parameters()).device
        # Turned by a token each, so that the sequences differ.
        rows = [prompt_ids.roll(number) for number in range(batch)]
        self.prompt_ids = torch.stack(rows).to(self.device)

    def times(self) -> list[float]:
        """Decode one round after the prompt and return the milliseconds of each timed token.

        Raises:
            ModelError: the model gives no cache to decode with.
        """
        with torch.inference_mode():
            cache = self.make_cache(self.model)
            given = given_cache(self.model, cache)
            state = self.model(input_ids=self.prompt_ids, **given, use_cache=True)
            if getattr(state, "past_key_values", None) is None:
                raise ModelError(
                    f"{type(self.model).__name__} gives no key-value cache",
                    wanted="a model that decodes",
                )
            milliseconds = []
            (name,) = given
            for _ in range(WARM_UP_TOKENS + self.tokens):
                _wait(self.device)
                start = time.perf_counter()
                token = state.logits[:, -1:].argmax(-1)
                known = {name: state.past_key_values}
                state = self.model(input_ids=token, **known, use_cache=True)
                _wait(self.device)
                milliseconds.append(1000 * (time.perf_counter() - start))
        return milliseconds[WARM_UP_TOKENS:]

    def measure(self, rounds: int = ROUNDS) -> Latency:
        """Summarise several rounds, after one that is not counted."""
        return interleaved({"model": self.times}, rounds)["model"]


class PrefillTimer:
    """Times reading a prompt, up to the first token after it, with whatever weights there are.

    Args:
        model: causal language model in eval mode.
        prompt_ids: ``[n]`` int64; ``PREFILL_TOKENS``, or the context if that is shorter, when left
            out.
        reads: timed reads of one round, after one that is not counted.
        begin: tokens that a prompt which is left out starts with.
    """

    def __init__(
        self,
        model: Any,
        prompt_ids: Tensor | None = None,
        reads: int = READS,
        begin: tuple[int, ...] = (),
    ) -> None:
        self.model, self.reads = model, reads
        self.device = next(model.parameters()).device
        if prompt_ids is None:
            prompt_ids = prompt_of(model, context_length(model, PREFILL_TOKENS), begin)
        self.prompt_ids = prompt_ids.to(self.device)[None]
        # The logits of all tokens but the last are of no use, and generate does not compute them.
        named = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in named else {}

    def times(self) -> list[float]:
        """Read the prompt some times and return the milliseconds of each."""
        milliseconds = []
        with torch.inference_mode():
            for _ in range(1 + self.reads):
                _wait(self.device)
                start = time.perf_counter()
                self._read()
                _wait(self.device)
                milliseconds.append(1000 * (time.perf_counter() - start))
        return milliseconds[1:]

    def _read(self) -> None:
        self.model(input_ids=self.prompt_ids, use_cache=True, **self._last_only)


class FirstTokenTimer(PrefillTimer):
    """Times ``model.generate`` of one token: reading the prompt, and what generate sets up."""

    def _read(self) -> None:
        settings = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
        self.model.generate(
            self.prompt_ids,
            attention_mask=torch.ones_like(self.prompt_ids),
            generation_config=GenerationConfig.from_dict(settings),
        )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def prompt_of(model: Any, length: int = PROMPT_TOKENS, begin: tuple[int, ...] = ()) -> Tensor:
    """Make a prompt ``[length]`` of token ids spread over the vocabulary, the same every time.

    It starts with the tokens ``begin``, as the model's texts do.
    """
    spread = (torch.arange(1, length + 1) * PRIME).remainder(vocabulary_of(model))
    return torch.cat([spread.new_tensor(begin), spread])[:length]


def interleaved(
    rounds_of: Mapping[str, Callable[[], list[float]]], rounds: int = ROUNDS
) -> dict[str, Latency]:
    """Measure several models in turn, so that a change in the machine's speed does not decide.

    Args:
        rounds_of: for each name a callable that runs one round and returns its milliseconds, such
            as ``DecodeTimer.times``, or a function that applies a plan around it.
        rounds: counted rounds of each; one more of each is run first and dropped.
    """
    collected: dict[str, list[float]] = {name: [] for name in rounds_of}
    for number in range(rounds + 1):
        for name, run in rounds_of.items():
            times = run()
            if number:
                collected[name] += times
    return {name: summarise(times) for name, times in collected.items()}


def summarise(times: Sequence[float]) -> Latency:
    """Median and half the interquartile range of some milliseconds.

    Raises:
        ValueError: no times.
    """
    if not times:
        raise ValueError("no times to summarise")
    if len(times) == 1:
        return Latency(times[0], 0.0)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, (high - low) / 2)


def describe_device(model: Any) -> str:
    """Say where a model runs: ``cpu (2 threads)`` or ``cuda (NVIDIA A100)``."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return format_cpu(torch.get_num_threads())
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
