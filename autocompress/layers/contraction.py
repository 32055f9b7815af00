"""Products of inputs with a network of cores, in the order that costs least for their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import opt_einsum
import torch
from torch import Tensor

WORK_ELEMENTS = 2**22  # wanted of the largest intermediate; inputs or outputs are taken in turns


@dataclass(frozen=True)
class ContractionPlan:
    """How to compute a product.

    Attributes:
        path: which operands to contract, step by step, as opt_einsum writes it.
        batch: inputs at a time.
        outputs: slice of the first output mode at a time.
        work: multiplications in all.
        largest: elements of the largest intermediate.
    """

    path: tuple[tuple[int, ...], ...]
    batch: int
    outputs: int
    work: float
    largest: int


def contract(equation: str, x: Tensor, *cores: Tensor) -> Tensor:
    """Contract inputs with cores, without an intermediate much above ``WORK_ELEMENTS``.

    The order is the one of fewest multiplications for this number of inputs, found by opt_einsum
    once for every power of two. For few inputs that takes them through the cores, for many it
    multiplies cores out first: then a slice of the outputs is done at a time, and the whole matrix
    is never there.

    Args:
        equation: in einsum's letters. The first letter of ``x`` and of the result stands for the
            inputs, the second one of the result belongs to one core only: ``zab,cra,drb->zcd``.
        x: ``[n, ...]``.
        cores: in the dtype of ``x``.

    Returns:
        ``[n, ...]``, in the dtype of ``x``.
    """
    if not len(x):
        return torch.einsum(equation, x, *cores)
    shapes = tuple(tuple(core.shape) for core in cores)
    bucket = 1 << (len(x) - 1).bit_length()
    plan = find_plan(equation, tuple(x.shape[1:]), shapes, bucket, WORK_ELEMENTS)
    slices = list(_slices(equation, cores, plan.outputs))
    parts = [
        torch.cat([follow(plan.path, equation, [part, *chosen]) for chosen in slices], 1)
        for part in torch.split(x, plan.batch)
    ]
    return torch.cat(parts)


def follow(path: Sequence[Sequence[int]], equation: str, operands: list[Tensor]) -> Tensor:
    """Contract operands pair by pair along a path.

    The larger of a pair is read in its own order and the smaller one is turned to suit it; the
    other way round, large cores were copied element by element.

    Args:
        path: positions of each pair, whose product is put at the end, as opt_einsum's paths.
        equation: as for ``contract``.
        operands: in the order of the equation.
    """
    left, _, result = equation.partition("->")
    terms = list(zip(left.split(","), operands, strict=True))
    for step in path:
        pair = [terms.pop(place) for place in sorted(step, reverse=True)]
        others = result + "".join(letters for letters, _ in terms)
        small, large = sorted(pair, key=lambda term: term[1].numel())
        terms.append(_contract_pair(small, large, others))
    letters, product = terms[0]
    return product.permute([letters.index(letter) for letter in result])


def _contract_pair(
    small: tuple[str, Tensor], large: tuple[str, Tensor], others: str
) -> tuple[str, Tensor]:
    (small_letters, a), (large_letters, b) = small, large
    shared = [letter for letter in large_letters if letter in small_letters]
    kept = [letter for letter in large_letters + small_letters if letter not in shared]
    if any(letter in others for letter in shared):  # such as the rank of a CP decomposition
        letters = "".join(dict.fromkeys([x for x in shared if x in others] + kept))
        return letters, torch.einsum(f"{large_letters},{small_letters}->{letters}", b, a)
    dims = [[letters.index(x) for x in shared] for letters in (large_letters, small_letters)]
    return "".join(kept), torch.tensordot(b, a, dims=(dims[0], dims[1]))


@lru_cache(maxsize=4096)
def find_plan(
    equation: str,
    inputs: tuple[int, ...],
    cores: tuple[tuple[int, ...], ...],
    batch: int,
    work_elements: int,
) -> ContractionPlan:
    """The cheapest plan within ``work_elements``, or the one that needs least memory.

    Halving the inputs suits orders that take them through the cores, slicing the outputs those that
    multiply cores out.

    Args:
        equation: as for ``contract``.
        inputs: shape of one input.
        cores: their shapes.
        batch: number of inputs.
        work_elements: elements wanted of the largest intermediate.
    """
    place, dim = _sliced(equation)
    whole, plans = cores[place][dim], []
    for halving_inputs in (True, False):
        part, outputs = batch, whole
        while True:
            plan = _plan(equation, inputs, cores, (batch, part), outputs)
            plans.append(plan)
            if plan.largest <= work_elements or (part if halving_inputs else outputs) == 1:
                break
            part, outputs = (part // 2, whole) if halving_inputs else (batch, -(-outputs // 2))
    fitting = [plan for plan in plans if plan.largest <= work_elements]
    if fitting:
        return min(fitting, key=lambda plan: plan.work)
    return min(plans, key=lambda plan: plan.largest)


def _plan(
    equation: str,
    inputs: tuple[int, ...],
    cores: tuple[tuple[int, ...], ...],
    batches: tuple[int, int],
    outputs: int,
) -> ContractionPlan:
    batch, part = batches
    place, dim = _sliced(equation)
    cut = list(cores[place])
    turns = -(-cut[dim] // outputs) * (batch // part)
    cut[dim] = outputs
    shapes = [(part, *inputs), *cores[:place], tuple(cut), *cores[place + 1 :]]
    path, found = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="dp")
    work = float(found.opt_cost) * turns
    return ContractionPlan(tuple(path), part, outputs, work, int(found.largest_intermediate))


def _slices(equation: str, cores: tuple[Tensor, ...], outputs: int) -> Iterator[list[Tensor]]:
    place, dim = _sliced(equation)
    for piece in torch.split(cores[place], outputs, dim):
        yield [*cores[:place], piece, *cores[place + 1 :]]


def _sliced(equation: str) -> tuple[int, int]:
    """The core that has the first output mode, and the dimension that it is there."""
    operands, _, result = equation.partition("->")
    cores = operands.split(",")[1:]
    place = next(i for i, letters in enumerate(cores) if result[1] in letters)
    return place, cores[place].index(result[1])
