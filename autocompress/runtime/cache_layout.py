"""What a model caches of each token, and how much of it low-rank projections let it leave out."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from autocompress.layers.low_rank import LowRankMatrix
from autocompress.runtime.rotary import Angles, Rotation, find_rotation, rotary_modules

_PROBE_TOKENS = 8  # a rotation leaves the first as it is, and turns the last the most


@dataclass(frozen=True)
class CachedStates:
    """The keys or the values that one layer of a model caches.

    Attributes:
        width: numbers a token, over all heads.
        dtype: their type.
        matrix: the low-rank matrix that they are the output of, if they are.
        rotation: what was done to that output, or ``None`` if nothing.
    """

    width: int
    dtype: torch.dtype
    matrix: LowRankMatrix | None = None
    rotation: Rotation | None = None

    @property
    def rank(self) -> int:
        """Numbers a token that determine the states, given their rotation."""
        return self.width if self.matrix is None else min(self.width, self.matrix.left.shape[0])

    @property
    def saving(self) -> int:
        """Bytes a token by which so many numbers are less than the states."""
        return (self.width - self.rank) * self.dtype.itemsize


@dataclass(frozen=True)
class CacheLayout:
    """What every layer of a model caches.

    Attributes:
        layers: keys and values, by the number of the layer.
    """

    layers: dict[int, tuple[CachedStates, CachedStates]]

    @cached_property
    def rotations(self) -> dict[Rotation, int]:
        """Rotations worth undoing, with the bytes a token that their angles take in the cache."""
        saved: dict[Rotation, int] = defaultdict(int)
        cost: dict[Rotation, int] = {}
        for states in self._states():
            if states.rotation is not None:
                saved[states.rotation] += states.saving
                cos, sin = states.rotation.newest()
                cost[states.rotation] = sum(x.shape[-1] * x.element_size() for x in (cos, sin))
        return {rotation: cost[rotation] for rotation in cost if saved[rotation] > cost[rotation]}

    def is_latent(self, states: CachedStates) -> bool:
        """Whether to keep coordinates in place of some states."""
        worth = states.rotation is None or states.rotation in self.rotations
        return states.saving > 0 and worth

    @property
    def saves(self) -> bool:
        """Whether any coordinates are kept."""
        return any(self.is_latent(states) for states in self._states())

    @property
    def bytes_per_token(self) -> int:
        """Bytes by which the cache grows with each token."""
        kept = sum(
            (each.rank if self.is_latent(each) else each.width) * each.dtype.itemsize
            for each in self._states()
        )
        return kept + sum(self.rotations.values())

    def _states(self) -> Iterator[CachedStates]:
        for pair in self.layers.values():
            yield from pair


def cache_layout(model: nn.Module) -> CacheLayout:
    """Find out what each layer of a model caches by running a few tokens.

    Without layers for a model that is no decoder, or has a cache of another kind.
    """
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        return CacheLayout({})
    generative: Any = model  # what a PreTrainedModel that can generate is, unknown to its type
    if model.config.is_encoder_decoder or not generative._supports_default_dynamic_cache():
        return CacheLayout({})
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=model.device)[None]
    angles = [Angles(module) for module in rotary_modules(model)]
    with _outputs(model) as outputs, torch.inference_mode():
        probe = _Probe(model.config, outputs, angles)
        model(input_ids=ids, **given_cache(model, probe), use_cache=True)
    return CacheLayout(probe.found)


def given_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to a model: since transformers 5.24 it is called ``cache``.

    Before, and in code that comes with models, it is ``past_key_values``.
    """
    named = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in named else "past_key_values": cache}


@contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[LowRankMatrix, Tensor]]:
    """Give what each low-rank matrix of a model put out last."""
    outputs: dict[LowRankMatrix, Tensor] = {}

    def note(module: nn.Module, _args: Any, output: Tensor) -> None:
        assert isinstance(module, LowRankMatrix)
        outputs[module] = output

    low_rank = [module for module in model.modules() if isinstance(module, LowRankMatrix)]
    handles = [module.register_forward_hook(note) for module in low_rank]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class _Probe(DynamicCache):  # type: ignore[misc,no-any-unimported,unused-ignore]
    """Notes where all keys and values come from."""

    def __init__(
        self, config: Any, outputs: dict[LowRankMatrix, Tensor], angles: list[Angles]
    ) -> None:
        super().__init__(config=config)
        self.outputs, self.angles = outputs, angles
        self.found: dict[int, tuple[CachedStates, CachedStates]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.found[layer_idx] = self._described(key_states), self._described(value_states)
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    def _described(self, states: Tensor) -> CachedStates:
        batch, heads, tokens, head = states.shape
        width, dtype = heads * head, states.dtype
        for matrix, output in self.outputs.items():
            if output.shape != (batch, tokens, width):
                continue
            projected = output.view(batch, tokens, heads, head).transpose(1, 2)
            if torch.equal(projected, states):
                return CachedStates(width, dtype, matrix)
            rotation = find_rotation(projected, states, self.angles)
            if rotation is not None:
                return CachedStates(width, dtype, matrix, rotation)
        return CachedStates(width, dtype)
