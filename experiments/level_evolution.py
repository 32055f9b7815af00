"""An evolution over levels: offspring by level switches, selected in stages on rising tokens.

After Sieberling, Kuznedelev, Kurtic and Alistarh 2024 (EvoPress, arXiv 2410.14649) and their code
for bit widths; ``evolution.py`` says where it deviates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from menu_levels import LevelMenu, Levels

MOST_RAISED = 3  # matrices in one switch
MOST_CHANGES = 10
LEAST_ADDED = 0.8  # bytes added, of those removed
MOST_DRAWS = 200  # for each offspring; a parent may hardly have any

Fitness = Callable[[Sequence[Levels], int], list[float]]
"""Scores of candidates on so many tokens, the same for all of them; lower is better."""


def switched(menu: LevelMenu, levels: Levels, limit: int, rng: random.Random) -> Levels | None:
    """Switch levels: some up by one, then others down until the bytes are within the limit.

    Returns:
        The new levels, or ``None`` where too much changed on the way.
    """
    new, before = list(levels), menu.bytes(levels)
    raised = min(rng.randint(1, MOST_RAISED), rng.randint(1, MOST_RAISED))
    for _ in range(raised):
        free = [i for i, count in enumerate(menu.counts) if new[i] < count - 1]
        if free:
            new[rng.choice(free)] += 1
    changes, most = raised, menu.bytes(tuple(new))
    while menu.bytes(tuple(new)) > limit:
        new[rng.choice([i for i, level in enumerate(new) if level])] -= 1
        changes += 1
    removed = most - menu.bytes(tuple(new))
    if changes > MOST_CHANGES or most - before < LEAST_ADDED * removed:
        return None
    return tuple(new)


class Evolution:
    """A (1 + offspring) evolution that selects in stages.

    Args:
        menu: the levels.
        limit: most bytes of the stored model.
        fitness: scores candidates on so many fresh tokens, lower is better.
        offspring: number of offspring in a generation.
        stages: tokens, and how many survive.
        rng: draws the switches.
    """

    def __init__(
        self,
        menu: LevelMenu,
        limit: int,
        fitness: Fitness,
        offspring: int,
        stages: Sequence[tuple[int, int]],
        rng: random.Random,
    ) -> None:
        self.menu, self.limit, self.fitness = menu, limit, fitness
        self.offspring, self.stages, self.rng = offspring, stages, rng

    def offspring_of(self, parent: Levels) -> list[Levels]:
        """Different offspring, none equal to the parent."""
        found: dict[Levels, None] = {}
        for _ in range(MOST_DRAWS * self.offspring):
            child = switched(self.menu, parent, self.limit, self.rng)
            if child is not None and child != parent:
                found[child] = None
            if len(found) == self.offspring:
                break
        return list(found)

    def next_parent(self, parent: Levels) -> Levels:
        """Go through one generation."""
        candidates = self.offspring_of(parent)
        for number, (tokens, survivors) in enumerate(self.stages, 1):
            if number == len(self.stages):
                candidates.append(parent)
            scores = self.fitness(candidates, tokens)
            order = sorted(range(len(candidates)), key=lambda index: scores[index])
            candidates = [candidates[index] for index in order[:survivors]]
        return candidates[0]
