"""The exact allocation: one option per layer, least total score, total bytes under a limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.errors import BudgetUnreachable
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.units import format_bytes

Score = Callable[[LayerMenu, Option], float]
RELATIVE_GAP = 1e-3  # of the score: far below what the additive model is worth
SOLVER_TOLERANCE = 2e-6  # of the limit: the solver may overstep a constraint by half of it
SOLVER_SECONDS = 10.0  # it then returns the best plan it has found


@dataclass(frozen=True)
class Choice:
    """One thing to decide: a method for one layer, or for several that must take the same.

    Attributes:
        layers: the layers that it decides for.
        methods: what may be chosen.
        sizes: bytes of each over all the layers.
        scores: score of each over all the layers.
    """

    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    sizes: tuple[int, ...]
    scores: tuple[float, ...]


def choices_of(menu: Menu, score: Score, groups: Iterable[Sequence[str]] = ()) -> list[Choice]:
    """Turn a menu into choices, tying each group's layers to one method that all of them offer."""
    grouped = {name: tuple(group) for group in groups for name in group}
    choices: list[Choice] = []
    done: set[str] = set()
    for layer in menu.layers:
        if layer.spec.name in done:
            continue
        members = [menu[name] for name in grouped.get(layer.spec.name, (layer.spec.name,))]
        done.update(member.spec.name for member in members)
        tables = [{option.method: option for option in member.options} for member in members]
        shared = [method for method in tables[0] if all(method in table for table in tables)]
        sizes = [sum(table[method].file_bytes for table in tables) for method in shared]
        scores = [
            sum(score(member, table[method]) for member, table in zip(members, tables, strict=True))
            for method in shared
        ]
        kept = _undominated(sizes, scores)
        choices.append(
            Choice(
                tuple(member.spec.name for member in members),
                tuple(shared[i] for i in kept),
                tuple(sizes[i] for i in kept),
                tuple(scores[i] for i in kept),
            )
        )
    return choices


def _undominated(sizes: Sequence[int], scores: Sequence[float]) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], scores[i])):
        if not kept or scores[i] < scores[kept[-1]]:
            kept.append(i)
    return kept


def smallest_bytes(choices: Sequence[Choice]) -> int:
    """Fewest bytes that any plan over these choices takes."""
    return sum(min(choice.sizes) for choice in choices)


def allocate(choices: Sequence[Choice], limit: int) -> Plan:
    """Solve the multiple-choice knapsack exactly (HiGHS): least total score within ``limit`` bytes.

    Args:
        choices: what there is to decide.
        limit: bytes that the matrices may take in the file, headers included.

    Raises:
        BudgetUnreachable: even the smallest options take more.
    """
    least = smallest_bytes(choices)
    if least > limit:
        raise BudgetUnreachable(
            "the compressed matrices cannot be that small",
            got=format_bytes(limit),
            wanted=f"at least {format_bytes(least)}",
        )
    scores = np.concatenate([choice.scores for choice in choices])
    sizes = np.concatenate([choice.sizes for choice in choices]).astype(float)
    counts = [len(choice.methods) for choice in choices]
    owners = np.repeat(np.arange(len(choices)), counts)
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    # Bytes are whole: half a byte of room keeps a plan of just the limit from being lost.
    bound = 1 + 0.5 / limit - SOLVER_TOLERANCE
    with _silent_stdout():
        result = milp(
            scores / (np.median(scores[scores > 0]) if (scores > 0).any() else 1.0),
            integrality=np.ones(len(scores)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(csr_array(sizes[None] / limit), -np.inf, bound),
            ],
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": SOLVER_SECONDS},
        )
    if result.x is None:
        # Within the solver's tolerance of the smallest plan there is nothing left to choose.
        return _plan(choices, [int(np.argmin(choice.sizes)) for choice in choices])
    starts = np.cumsum([0, *counts[:-1]])
    picked = [
        int(np.argmax(result.x[start : start + count]))
        for start, count in zip(starts, counts, strict=True)
    ]
    return _plan(choices, picked)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep off the process's stdout, which may be JSON, a line that HiGHS prints now and then.

    It prints from C, when it repairs a solution, whatever its options say.
    """
    try:
        saved = os.dup(1)
    except OSError:  # a process without a stdout
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def _plan(choices: Sequence[Choice], picked: Sequence[int]) -> Plan:
    methods: dict[str, Method] = {}
    for choice, index in zip(choices, picked, strict=True):
        methods |= dict.fromkeys(choice.layers, choice.methods[index])
    return Plan.of(methods)


def in_layer_order(plan: Mapping[str, Method], names: Iterable[str]) -> Plan:
    """The same plan with its layers in the order of the model."""
    return Plan.of({name: plan[name] for name in names if name in plan})
