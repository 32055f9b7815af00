"""A key-value cache that holds what low-rank projections really produce: a few numbers a token.

The keys or values ``y = B z + b`` of a projection that is stored as a product of rank ``r`` lie in
a subspace of ``r`` dimensions. Kept as coordinates in an orthonormal basis of it, they take ``r``
numbers a token instead of those of all heads, and are rebuilt when attention asks for them. The
attention code stays as it is: all happens in the cache's ``update``.

Only what reaches the cache as the projection left it can be kept so, which is found out by running
a few tokens. Values nearly always do. Keys do not where they are rotated by their position (RoPE)
or normalised, since transformers hands the cache the finished keys and not the angles: these stay
whole. A projection of queries, keys and values in one (GPT-2) has no subspace for the values alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from autocompress.layers.low_rank import LowRankMatrix

_PROBE_TOKENS = 4  # rotation leaves the first as it is


class Subspace:
    """The affine subspace that the outputs of a low-rank matrix with a bias lie in.

    Args:
        matrix: of rank r; what is needed of it is copied, in the type of the cached states.
        dtype: type of the cached states.
    """

    def __init__(self, matrix: LowRankMatrix, dtype: torch.dtype) -> None:
        # An orthonormal basis and not the factor itself, which may be ill conditioned: rounding the
        # coordinates then changes the vector no more than rounding the vector would.
        factor = matrix.left.read(torch.float32)
        self._wide: Tensor = torch.linalg.qr(factor.T.double()).Q.T.float()
        self._basis: Tensor = self._wide.to(dtype)
        self._shift = None if matrix.bias is None else matrix.bias.detach().to(dtype)

    def coordinates(self, states: Tensor) -> Tensor:
        """Take ``states [batch, heads, tokens, head]`` to ``[batch, 1, tokens, r]``."""
        vectors = states.transpose(1, 2).flatten(2)
        if self._shift is not None:
            vectors = vectors - self._shift
        return (vectors.float() @ self._wide.T).to(states.dtype).unsqueeze(1)

    def states(self, coordinates: Tensor, heads: int) -> Tensor:
        """Take ``coordinates [batch, 1, tokens, r]`` to ``[batch, heads, tokens, head]``."""
        vectors = coordinates[:, 0] @ self._basis
        if self._shift is not None:
            vectors = vectors + self._shift
        return vectors.reshape(*vectors.shape[:2], heads, -1).transpose(1, 2)


@dataclass(frozen=True)
class CachedStates:
    """The keys or the values that one layer of a model caches.

    Attributes:
        width: numbers a token, over all heads.
        dtype: their type.
        matrix: the low-rank matrix whose output they are, if they are one's.
    """

    width: int
    dtype: torch.dtype
    matrix: LowRankMatrix | None

    @property
    def is_latent(self) -> bool:
        """Whether coordinates take less room than the states."""
        return self.matrix is not None and self.matrix.left.shape[0] < self.width

    @property
    def bytes_per_token(self) -> int:
        """Bytes a token in the smaller of the two forms."""
        rank = self.matrix.left.shape[0] if self.matrix is not None else self.width
        return min(rank, self.width) * self.dtype.itemsize


class LatentCache(DynamicCache):  # type: ignore[misc,no-any-unimported,unused-ignore]
    """A ``DynamicCache`` that holds coordinates where a model's keys or values are low-rank.

    ``model.generate(ids, past_key_values=LatentCache.for_model(model))`` gives what the usual cache
    gives, to rounding. Beside the coordinates it holds a basis ``[r, width]`` of each subspace,
    whatever the number of tokens.

    Args:
        config: of the model.
        subspaces: by layer, that of its keys and that of its values, ``None`` to keep them whole.
    """

    def __init__(
        self, config: Any, subspaces: dict[int, tuple[Subspace | None, Subspace | None]]
    ) -> None:
        super().__init__(config=config)
        self._subspaces = subspaces

    @classmethod
    def for_model(cls, model: nn.Module) -> LatentCache:
        """Make an empty cache for a model; one that saves nothing is a plain ``DynamicCache``.

        Runs the model on a few tokens if any of its matrices is low-rank.
        """
        return cls.if_smaller(model) or cls(getattr(model, "config", None), {})

    @classmethod
    def if_smaller(cls, model: nn.Module) -> LatentCache | None:
        """Make an empty cache for a model, or ``None`` where the usual one is as small."""
        if not any(isinstance(module, LowRankMatrix) for module in model.modules()):
            return None
        layers = cached_states(model)
        if not any(states.is_latent for pair in layers.values() for states in pair):
            return None
        keys_and_values = {
            index: (_subspace(keys), _subspace(values)) for index, (keys, values) in layers.items()
        }
        return cls(model.config, keys_and_values)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values ``[batch, heads, tokens, head]``; return all."""
        new = key_states, value_states
        subspaces = self._subspaces.get(layer_idx, (None, None))
        keys, values = (
            states if subspace is None else subspace.coordinates(states)
            for states, subspace in zip(new, subspaces, strict=True)
        )
        stored = super().update(keys, values, layer_idx, *args, **kwargs)
        keys, values = (
            kept if subspace is None else _rebuilt(kept, subspace, states)
            for kept, subspace, states in zip(stored, subspaces, new, strict=True)
        )
        return keys, values


def _rebuilt(kept: Tensor, subspace: Subspace, new: Tensor) -> Tensor:
    """All states, from the coordinates of all and the states of the newest, which are at hand."""
    past = kept[..., : kept.shape[-2] - new.shape[-2], :]
    if not past.shape[-2]:
        return new
    return torch.cat([subspace.states(past, new.shape[1]), new], dim=-2)


def _subspace(states: CachedStates) -> Subspace | None:
    return Subspace(states.matrix, states.dtype) if states.is_latent and states.matrix else None


def cache_bytes_per_token(model: nn.Module) -> int | None:
    """Bytes that the smallest exact cache of a model grows by with each token.

    Runs the model on a few tokens. Layers with a sliding window count as long as it is not full.
    ``None`` for a model that does not decode with a cache of keys and values.
    """
    layers = cached_states(model)
    return sum(states.bytes_per_token for pair in layers.values() for states in pair) or None


def cached_states(model: nn.Module) -> dict[int, tuple[CachedStates, CachedStates]]:
    """Find out what each layer of a model caches, keys and values, by running a few tokens.

    Empty for a model that is no decoder, or has a cache of another kind.
    """
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        return {}
    generative: Any = model  # what a PreTrainedModel that can generate is, unknown to its type
    if model.config.is_encoder_decoder or not generative._supports_default_dynamic_cache():
        return {}
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=model.device)[None]
    with _outputs(model) as outputs, torch.inference_mode():
        probe = _Probe(model.config, outputs)
        model(input_ids=ids, past_key_values=probe, use_cache=True)
    return probe.found


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
    """Notes the width of all keys and values, and which of them a low-rank matrix put out."""

    def __init__(self, config: Any, outputs: dict[LowRankMatrix, Tensor]) -> None:
        super().__init__(config=config)
        self.outputs = outputs
        self.found: dict[int, tuple[CachedStates, CachedStates]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.found[layer_idx] = self._described(key_states), self._described(value_states)
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    def _described(self, states: Tensor) -> CachedStates:
        vectors = states.transpose(1, 2).flatten(2)
        same = (m for m, y in self.outputs.items() if torch.equal(y, vectors))
        return CachedStates(vectors.shape[-1], states.dtype, next(same, None))
