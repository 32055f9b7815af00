"""A key-value cache that holds what low-rank projections really produce: a few numbers a token.

The keys or values ``y = B z + b`` of a projection that is stored as a product of rank ``r`` lie in
a subspace of ``r`` dimensions. Kept as coordinates in an orthonormal basis of it, they take ``r``
numbers a token instead of those of all heads, and are rebuilt when attention asks for them. The
attention code stays as it is: all happens in the cache's ``update``. Keys that are rotated by their
position (RoPE) are rotated back before and forth after, by angles that the cache holds once for all
layers.

Only what reaches the cache as the projection left it, or rotated, can be kept so, which is found
out by running a few tokens. Keys that are normalised (Qwen3) stay whole. So do those of a
projection of queries, keys and values in one (GPT-2), which has no subspace for the keys alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from autocompress.layers.low_rank import LowRankMatrix
from autocompress.runtime.cache_layout import CachedStates, CacheLayout, cache_layout
from autocompress.runtime.rotary import Rotation, back

Turning = tuple[Tensor, Tensor] | None  # cosines and sines [batch, 1, tokens, angles] of some keys


class Subspace:
    """The affine subspace that the outputs of a low-rank matrix with a bias lie in.

    Args:
        matrix: of rank r; what is needed of it is copied.
        dtype: type of the cached states.
        rotation: what is done to its outputs before they are cached.
    """

    def __init__(
        self, matrix: LowRankMatrix, dtype: torch.dtype, rotation: Rotation | None = None
    ) -> None:
        # An orthonormal basis and not the factor itself, which may be ill conditioned: rounding the
        # coordinates then changes the vector no more than rounding the vector would.
        factor = matrix.left.read(torch.float32)
        self._wide: Tensor = torch.linalg.qr(factor.T.double()).Q.T.float()
        self._basis: Tensor = self._wide.to(dtype)
        self._shift = None if matrix.bias is None else matrix.bias.detach().to(dtype)
        self.rotation = rotation

    def coordinates(self, states: Tensor, turning: Turning = None) -> Tensor:
        """Take ``states [batch, heads, tokens, head]`` to ``[batch, 1, tokens, r]``.

        ``turning`` turns them back.
        """
        wide = states.float()
        if self.rotation is not None and turning is not None:
            wide = self.rotation.turn(wide, *turning)
        vectors = wide.transpose(1, 2).flatten(2)
        if self._shift is not None:
            vectors = vectors - self._shift
        return (vectors @ self._wide.T).to(states.dtype).unsqueeze(1)

    def states(self, coordinates: Tensor, heads: int, turning: Turning = None) -> Tensor:
        """Take ``coordinates [batch, 1, tokens, r]`` to ``[batch, heads, tokens, head]``."""
        vectors = coordinates[:, 0] @ self._basis
        if self._shift is not None:
            vectors = vectors + self._shift
        states = vectors.reshape(*vectors.shape[:2], heads, -1).transpose(1, 2)
        if self.rotation is not None and turning is not None:
            states = self.rotation.turn(states, *turning)
        return states


class LatentCache(DynamicCache):  # type: ignore[misc,no-any-unimported,unused-ignore]
    """A ``DynamicCache`` that holds coordinates where a model's keys or values are low-rank.

    ``model.generate(ids, past_key_values=LatentCache.for_model(model))`` gives what the usual cache
    gives, to rounding. Beside the coordinates it holds a basis ``[r, width]`` of each subspace,
    whatever the number of tokens. As long as it lives, it listens to the angles of the model's
    rotary embedding.

    Args:
        config: of the model.
        layout: what the model caches.
    """

    def __init__(self, config: Any, layout: CacheLayout) -> None:
        super().__init__(config=config)
        self._subspaces = {
            index: tuple(_subspace(states, layout) for states in pair)
            for index, pair in layout.layers.items()
        }
        # The angles are layers of their own, so that what is done to all layers (reordering beams,
        # cropping) is done to them. The first layer that uses them adds those of new tokens.
        self._angles: dict[Rotation, int] = {}
        self._back: dict[Rotation, Turning] = {}  # what turns the newest keys back
        self._first: dict[int, Rotation] = {}
        for index, (keys, _) in self._subspaces.items():
            rotation = keys.rotation if keys is not None else None
            if rotation is not None and rotation not in self._angles:
                self._angles[rotation], self._first[index] = len(self.layers), rotation
                self.layers.append(DynamicLayer())  # type: ignore[no-untyped-call]

    @classmethod
    def for_model(cls, model: nn.Module) -> LatentCache:
        """Make an empty cache for a model; one that saves nothing is a plain ``DynamicCache``.

        Runs the model on a few tokens if any of its matrices is low-rank.
        """
        return cls.if_smaller(model) or cls(getattr(model, "config", None), CacheLayout({}))

    @classmethod
    def if_smaller(cls, model: nn.Module) -> LatentCache | None:
        """Make an empty cache for a model, or ``None`` where the usual one is as small."""
        if not any(isinstance(module, LowRankMatrix) for module in model.modules()):
            return None
        layout = cache_layout(model)
        return cls(model.config, layout) if layout.saves else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values ``[batch, heads, tokens, head]``; return all."""
        of_keys, of_values = self._subspaces.get(layer_idx, (None, None))
        if layer_idx in self._first:
            self._add_angles(self._first[layer_idx], len(key_states))
        keys, values = super().update(
            self._reduced(key_states, of_keys),
            self._reduced(value_states, of_values),
            layer_idx,
            *args,
            **kwargs,
        )
        return (
            self._rebuilt(keys, of_keys, key_states),
            self._rebuilt(values, of_values, value_states),
        )

    def _add_angles(self, rotation: Rotation, batch: int) -> None:
        cos, sin = (each.expand(batch, -1, -1, -1) for each in rotation.newest())
        self._back[rotation] = back(cos, sin)
        held: Any = self.layers[self._angles[rotation]]
        held.update(cos, sin)

    def _reduced(self, states: Tensor, subspace: Subspace | None) -> Tensor:
        if subspace is None:
            return states
        rotation = subspace.rotation
        return subspace.coordinates(states, self._back[rotation] if rotation else None)

    def _rebuilt(self, kept: Tensor, subspace: Subspace | None, new: Tensor) -> Tensor:
        """All states, from the coordinates of all and the states of the newest, at hand already."""
        tokens, newest = kept.shape[-2], new.shape[-2]
        if subspace is None:
            return kept
        if tokens == newest:
            return new
        past, turning = slice(-tokens, -newest), None
        if subspace.rotation is not None:
            held: Any = self.layers[self._angles[subspace.rotation]]
            turning = held.keys[..., past, :], held.values[..., past, :]
        states = subspace.states(kept[..., past, :], new.shape[1], turning)
        return torch.cat([states, new], dim=-2)


def cache_bytes_per_token(model: nn.Module) -> int | None:
    """Bytes that the smallest exact cache of a model grows by with each token.

    Runs the model on a few tokens. Layers with a sliding window count as long as it is not full.
    ``None`` for a model that does not decode with a cache of keys and values.
    """
    return cache_layout(model).bytes_per_token or None


def _subspace(states: CachedStates, layout: CacheLayout) -> Subspace | None:
    if states.matrix is None or not layout.is_latent(states):
        return None
    return Subspace(states.matrix, states.dtype, states.rotation)
