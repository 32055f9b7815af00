"""Neighbours of a plan: one layer a level up, another down, within the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autocompress.methods.plan import Plan
from autocompress.search.allocator import Choice

REACH = 2  # levels up or down


class _Move(NamedTuple):
    """One choice taken elsewhere, and what that adds."""

    choice: Choice
    level: int
    size: int
    score: float


def neighbours(plan: Plan, choices: Sequence[Choice], room: int) -> Iterator[Plan]:
    """Yield the plans two moves away, the best by score first, whose matrices fit into ``room``.

    Args:
        plan: where to start; choices that it takes by a method they do not offer stay.
        choices: what there is to decide, by rising bytes.
        room: bytes that they may take more than the plan.
    """
    moves = [move for choice in choices for move in _moves(plan, choice)]
    up = [move for move in moves if move.size > 0]
    down = [move for move in moves if move.size < 0]
    pairs = [
        (one.score + other.score, one, other)
        for one in up
        for other in down
        if one.choice is not other.choice and one.size + other.size <= room
    ]
    for _, *both in sorted(pairs, key=lambda pair: pair[0]):
        changed = {
            layer: move.choice.methods[move.level] for move in both for layer in move.choice.layers
        }
        yield Plan.of({**plan, **changed})


def _level(plan: Plan, choice: Choice) -> int | None:
    method = plan[choice.layers[0]]
    return choice.methods.index(method) if method in choice.methods else None


def _moves(plan: Plan, choice: Choice) -> Iterator[_Move]:
    level = _level(plan, choice)
    if level is None:
        return
    for other in range(max(level - REACH, 0), min(level + REACH + 1, len(choice.methods))):
        if other != level:
            size = choice.sizes[other] - choice.sizes[level]
            yield _Move(choice, other, size, choice.scores[other] - choice.scores[level])
