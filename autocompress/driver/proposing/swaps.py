"""Neighbours of a plan: one layer a level up, another down, within the bytes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autocompress.driver.proposing.allocator import LayerChoice
from autocompress.methods.plan import Plan

REACH = 2  # levels up or down


class _Move(NamedTuple):
    """One choice taken elsewhere, and what that adds."""

    choice: LayerChoice
    level: int
    size: int
    score: float


def neighbours(plan: Plan, choices: Sequence[LayerChoice], room: int) -> Iterator[Plan]:
    """Yield the plans two moves away, the best by score first, whose matrices fit into ``room``.

    Nothing is sorted before it is asked for: with thousands of matrices there are millions of
    pairs, and a few are wanted.

    Args:
        plan: where to start; choices that it takes by a method they do not offer stay.
        choices: what there is to decide, by rising bytes.
        room: bytes that they may take more than the plan.
    """
    moves = [move for choice in choices for move in _moves(plan, choice)]
    up = [move for move in moves if move.size > 0]
    down = [move for move in moves if move.size < 0]
    for pair in _best_first(up, down, room):
        changed = {
            layer: move.choice.methods[move.level] for move in pair for layer in move.choice.layers
        }
        yield Plan.of({**plan, **changed})


def _best_first(
    up: Sequence[_Move], down: Sequence[_Move], room: int
) -> Iterator[tuple[_Move, _Move]]:
    """Pairs of moves of two choices that fit into ``room``, by rising score.

    Each move up waits in a heap with the score of its best partner that has not been taken, and
    ranks its partners only when its turn comes.
    """
    sizes = np.array([move.size for move in down])
    scores = np.array([move.score for move in down])

    def partners(one: _Move) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``down`` of what makes room for a move, and the scores of the pairs."""
        places = np.flatnonzero(sizes + one.size <= room)
        return places, one.score + scores[places]

    heap: list[tuple[float, int, int]] = []  # score of a pair, its move up, rank of its partner
    for place, one in enumerate(up):
        _, sums = partners(one)
        if sums.size:
            heap.append((float(sums.min()), place, 0))
    heapq.heapify(heap)
    ranked: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    while heap:
        _, place, rank = heap[0]
        one = up[place]
        if place not in ranked:
            places, sums = partners(one)
            order = np.argsort(sums, kind="stable")
            ranked[place] = places[order], sums[order]
        places, sums = ranked[place]
        if rank + 1 < len(places):
            heapq.heapreplace(heap, (float(sums[rank + 1]), place, rank + 1))
        else:
            heapq.heappop(heap)
        other = down[places[rank]]
        if one.choice is not other.choice:
            yield one, other


def _level(plan: Plan, choice: LayerChoice) -> int | None:
    method = plan[choice.layers[0]]
    return choice.methods.index(method) if method in choice.methods else None


def _moves(plan: Plan, choice: LayerChoice) -> Iterator[_Move]:
    level = _level(plan, choice)
    if level is None:
        return
    for other in range(max(level - REACH, 0), min(level + REACH + 1, len(choice.methods))):
        if other != level:
            size = choice.sizes[other] - choice.sizes[level]
            yield _Move(choice, other, size, choice.scores[other] - choice.scores[level])
