"""How a model rotates its keys by their position, found out so that it can be undone and redone.

Rotary embeddings turn each pair of numbers of a head by an angle (Su et al. 2021, arXiv
2104.09864). Models differ in what makes a pair, in how much of a head is turned, and in how the
angles are handed to the layers; all this is told from keys before and after.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
_ROUNDING = 4  # of the model's and of our own computation, in units of the type's precision


class Angles:
    """Cosines and sines that a rotary module computed last, for as long as this object lives.

    A copy is the same object, since there is one such module.

    Args:
        module: returns a pair of tensors ``[batch, tokens, angles]``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.latest: tuple[Tensor, Tensor] | None = None
        reference = weakref.ref(self)

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            angles = reference()
            if angles is not None and _is_pair(output):
                angles.latest = output

        weakref.finalize(self, module.register_forward_hook(note).remove)

    def __deepcopy__(self, memo: dict[int, Any]) -> Angles:
        return self


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that compute angles: they hold the frequencies."""
    return [
        module
        for module in model.modules()
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    ]


def turn_halves(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs ``(i, i + angles)`` of ``states [..., tokens, head]``.

    Args:
        states: the first ``2 * angles`` numbers of a head are turned.
        cos: ``[..., tokens, angles]``.
        sin: like ``cos``.
    """
    size = cos.shape[-1]
    a, b = states[..., :size], states[..., size : 2 * size]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, states[..., 2 * size :]], dim=-1)


def turn_neighbours(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs ``(2 i, 2 i + 1)``; otherwise as ``turn_halves``."""
    size = cos.shape[-1]
    a, b = states[..., 0 : 2 * size : 2], states[..., 1 : 2 * size : 2]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([turned, states[..., 2 * size :]], dim=-1)


def each_once(table: Tensor) -> Tensor:
    """The angles ``[..., angles]`` of a table that has each once (GPT-OSS)."""
    return table


def first_half(table: Tensor) -> Tensor:
    """The angles of a table that repeats them all (Llama, GLM)."""
    return table[..., : table.shape[-1] // 2]


def every_other(table: Tensor) -> Tensor:
    """The angles of a table that repeats each (Cohere)."""
    return table[..., ::2]


_STYLES: tuple[tuple[Callable[[Tensor], Tensor], Turn], ...] = (
    (first_half, turn_halves),
    (each_once, turn_halves),
    (first_half, turn_neighbours),
    (every_other, turn_neighbours),
    (each_once, turn_neighbours),
)


@dataclass(frozen=True)
class Rotation:
    """The way the keys of some layers are rotated.

    Attributes:
        source: of the angles.
        distinct: takes the different angles out of what the source gives.
        turn: rotates keys.
    """

    source: Angles
    distinct: Callable[[Tensor], Tensor]
    turn: Turn

    def newest(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[batch, 1, tokens, angles]`` of the newest tokens."""
        assert self.source.latest is not None
        cos, sin = (self.distinct(table).unsqueeze(1) for table in self.source.latest)
        return cos, sin


def back(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, in fp32, that undo a turn by the given ones ``[..., angles]``.

    They may be scaled by a common factor (YaRN), which is undone too.
    """
    cos, sin = cos.float(), sin.float()
    norm = cos.square() + sin.square()
    return cos / norm, -sin / norm


def find_rotation(before: Tensor, after: Tensor, sources: Iterable[Angles]) -> Rotation | None:
    """The rotation that takes keys ``[batch, heads, tokens, head]`` to others, if one does."""
    for source in sources:
        for distinct, turn in _STYLES:
            rotation = Rotation(source, distinct, turn)
            if source.latest is not None and _explains(rotation, before, after):
                return rotation
    return None


def _explains(rotation: Rotation, before: Tensor, after: Tensor) -> bool:
    cos, sin = rotation.newest()
    if cos.shape[-2] != before.shape[-2] or 2 * cos.shape[-1] > before.shape[-1]:
        return False
    turned = rotation.turn(before.float(), cos.float(), sin.float())
    allowed = _ROUNDING * torch.finfo(after.dtype).eps * after.float().norm()
    return bool((turned - after.float()).norm() <= allowed)


def _is_pair(output: Any) -> bool:
    if not isinstance(output, tuple) or len(output) != 2:
        return False
    return all(isinstance(each, Tensor) and each.ndim == 3 for each in output)
