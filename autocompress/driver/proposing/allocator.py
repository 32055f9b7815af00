"""The exact allocation: one option per layer, least total score, bytes and latency under limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
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
Numbers = NDArray[np.float64]


class Latencies(Protocol):
    """Milliseconds a token by layer name and method, such as a ``LatencyTable``."""

    def __getitem__(self, layer_and_method: tuple[str, Method], /) -> float:
        """What one layer takes by one method."""


@dataclass(frozen=True)
class LayerChoice:
    """One thing to decide: a method for one layer, or for several that must take the same.

    Attributes:
        layers: the layers that it decides for.
        methods: what may be chosen.
        sizes: bytes of each over all the layers.
        scores: score of each over all the layers.
        times: milliseconds a token of each over all the layers; empty when they are not known.
    """

    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    times: tuple[float, ...] = ()


def choices_of(
    menu: Menu,
    score: Score,
    groups: Iterable[Sequence[str]] = (),
    latencies: Latencies | None = None,
) -> list[LayerChoice]:
    """Turn a menu into choices, tying each group's layers to one method that all of them offer.

    Options that another one equals or beats in bytes, score and, where they are known, latency are
    left out.
    """
    grouped = {name: tuple(group) for group in groups for name in group}
    choices: list[LayerChoice] = []
    done: set[str] = set()
    for layer in menu.layers:
        if layer.spec.name in done:
            continue
        members = [menu[name] for name in grouped.get(layer.spec.name, (layer.spec.name,))]
        done.update(member.spec.name for member in members)
        tables = [{option.method: option for option in member.options} for member in members]
        offered = {option.method for member in members for option in member.on_offer}
        shared = [
            method
            for method in tables[0]
            if method in offered and all(method in table for table in tables)
        ]
        sizes = [sum(table[method].file_bytes for table in tables) for method in shared]
        scores = [
            sum(score(member, table[method]) for member, table in zip(members, tables, strict=True))
            for method in shared
        ]
        names = tuple(member.spec.name for member in members)
        times = [
            0.0 if latencies is None else sum(latencies[name, method] for name in names)
            for method in shared
        ]
        kept = _undominated(list(zip(sizes, times, scores, strict=True)))
        choices.append(
            LayerChoice(
                names,
                tuple(shared[i] for i in kept),
                tuple(sizes[i] for i in kept),
                tuple(scores[i] for i in kept),
                () if latencies is None else tuple(times[i] for i in kept),
            )
        )
    return choices


def _undominated(costs: Sequence[tuple[float, float, float]]) -> list[int]:
    """Positions of what nothing else equals or beats in all costs, by rising first cost."""
    kept: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        _, time, score = costs[i]
        if not any(costs[j][1] <= time and costs[j][2] <= score for j in kept):
            kept.append(i)
    return kept


def smallest_bytes(choices: Sequence[LayerChoice]) -> int:
    """Fewest bytes that any plan over these choices takes."""
    return sum(min(choice.sizes) for choice in choices)


def least_ms(choices: Sequence[LayerChoice]) -> float:
    """Fewest milliseconds a token that any plan over these choices takes in its matrices."""
    return sum(min(choice.times) for choice in choices)


def allocate(
    choices: Sequence[LayerChoice],
    limit_bytes: int | None,
    limit_ms: float | None = None,
    *,
    price_ms: float = 0.0,
) -> Plan:
    """Solve the multiple-choice knapsack exactly (HiGHS): least total score within the limits.

    Args:
        choices: what there is to decide.
        limit_bytes: bytes that the matrices may take in the file, headers included.
        limit_ms: milliseconds a token that the matrices may take, by their table.
        price_ms: what a millisecond costs, in the unit of the scores: latency is spent where it
            saves more than that.

    Raises:
        BudgetUnreachable: no plan meets a limit, or no plan both; the message says the nearest.
    """
    timed = limit_ms is not None or price_ms > 0
    if timed and not all(choice.times for choice in choices):
        raise ValueError("a limit or a price of latency needs choices with times")
    _check_each(choices, limit_bytes, limit_ms)
    sizes = np.concatenate([choice.sizes for choice in choices]).astype(float)
    scores = np.concatenate([choice.scores for choice in choices])
    times = np.concatenate([choice.times for choice in choices]) if timed else np.zeros_like(sizes)
    rows: list[tuple[Numbers, float]] = []
    if limit_bytes is not None:
        # Bytes are whole: half a byte of room keeps a plan of just the limit from being lost.
        rows.append((sizes, limit_bytes + 0.5))
    if limit_ms is not None:
        rows.append((times, limit_ms))
    picked = _solve(choices, scores + price_ms * times, rows, RELATIVE_GAP)
    if picked is None:
        picked = _at_the_edge(choices, sizes, times, limit_bytes, limit_ms)
    return _plan(choices, picked)


def _check_each(
    choices: Sequence[LayerChoice], limit_bytes: int | None, limit_ms: float | None
) -> None:
    if limit_bytes is not None and (least := smallest_bytes(choices)) > limit_bytes:
        raise BudgetUnreachable(
            "the compressed matrices cannot be that small",
            got=format_bytes(limit_bytes),
            wanted=f"at least {format_bytes(least)}",
        )
    if limit_ms is not None and (fastest := least_ms(choices)) > limit_ms:
        raise BudgetUnreachable(
            "the compressed matrices cannot be that fast",
            got=f"{limit_ms:.4g} ms a token",
            wanted=f"at least {fastest:.4g} ms",
        )


def _solve(
    choices: Sequence[LayerChoice],
    values: Numbers,
    rows: Sequence[tuple[Numbers, float]],
    gap: float,
) -> list[int] | None:
    """Positions of least total value with each row's total within its limit; ``None``: none is."""
    counts = [len(choice.methods) for choice in choices]
    owners = np.repeat(np.arange(len(choices)), counts)
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    limits = [
        LinearConstraint(csr_array(costs[None] / limit), -np.inf, 1 - SOLVER_TOLERANCE)
        for costs, limit in rows
    ]
    with _silent_stdout():
        result = milp(
            values / (np.median(values[values > 0]) if (values > 0).any() else 1.0),
            integrality=np.ones(len(values)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), *limits],
            options={"mip_rel_gap": gap, "time_limit": SOLVER_SECONDS},
        )
    if result.x is None:
        return None
    starts = np.cumsum([0, *counts[:-1]])
    return [
        int(np.argmax(result.x[start : start + count]))
        for start, count in zip(starts, counts, strict=True)
    ]


def _at_the_edge(
    choices: Sequence[LayerChoice],
    sizes: Numbers,
    times: Numbers,
    limit_bytes: int | None,
    limit_ms: float | None,
) -> list[int]:
    """The plan that only the solver's tolerance rules out, if there is one.

    Raises:
        BudgetUnreachable: each limit can be met, but not both.
    """
    smallest = [
        min(range(len(choice.sizes)), key=lambda i: (choice.sizes[i], *choice.times[i : i + 1]))
        for choice in choices
    ]
    fastest = [int(np.argmin(choice.times)) for choice in choices if choice.times]
    if limit_ms is None:
        return smallest
    if limit_bytes is None:
        return fastest
    exact = SOLVER_TOLERANCE
    quick = _solve(choices, times, [(sizes, limit_bytes + 0.5)], exact) or smallest
    least = sum(choice.times[i] for choice, i in zip(choices, quick, strict=True))
    if least <= limit_ms:
        return quick
    small = _solve(choices, sizes, [(times, limit_ms)], exact) or fastest
    fewest = sum(choice.sizes[i] for choice, i in zip(choices, small, strict=True))
    if fewest <= limit_bytes:
        return small
    raise BudgetUnreachable(
        "no plan meets both limits: each can be met, but not together",
        got=f"{format_bytes(limit_bytes)} and {limit_ms:.4g} ms a token in the matrices",
        wanted=f"at least {least:.4g} ms at these bytes, "
        f"or at least {format_bytes(fewest)} at this latency",
    )


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


def _plan(choices: Sequence[LayerChoice], picked: Sequence[int]) -> Plan:
    methods: dict[str, Method] = {}
    for choice, index in zip(choices, picked, strict=True):
        methods |= dict.fromkeys(choice.layers, choice.methods[index])
    return Plan.of(methods)


def in_layer_order(plan: Mapping[str, Method], names: Iterable[str]) -> Plan:
    """The same plan with its layers in the order of the model."""
    return Plan.of({name: plan[name] for name in names if name in plan})
