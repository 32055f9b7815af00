"""Modes: the sizes that one side of a matrix is folded into, and the ranks that they allow."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

RANK_MULTIPLE = 8  # matrix kernels fall off their fast paths at other ranks
SPREAD = 2.0  # a factorisation is balanced when no mode exceeds this multiple of the even share
MOST_TRIED = 48  # values tried per mode when wanted modes are corrected
PADDING_WEIGHT = 4.0  # how much one e-fold of padding weighs against one e-fold of change of a mode


def fits(size: int, modes: tuple[int, ...]) -> bool:
    """Whether modes cover a side of ``size`` without waste.

    Their product reaches it, and no mode could be smaller.
    """
    total = math.prod(modes)
    return total >= size and (total == size or total - size < total // max(modes))


@lru_cache(maxsize=4096)
def balanced_modes(size: int, order: int) -> tuple[int, ...]:
    """Fold a side of ``size`` into ``order`` modes, rising and as even as they can be.

    The product is ``size`` where that has an even enough factorisation (``SPREAD``), and otherwise
    the next larger number that has one; what it exceeds the size by is padding.
    """
    if order == 1:
        return (size,)
    even = size ** (1 / order)
    for total in range(size, 2 * size + 2**order):
        modes = _most_even(total, order)
        if modes[-1] <= max(SPREAD * even, 2) and fits(size, modes):
            return modes
    return (1,) * (order - 1) + (size,)


@lru_cache(maxsize=65536)
def _most_even(total: int, order: int, least: int = 1) -> tuple[int, ...]:
    """Rising factors of ``total``, each at least ``least``, with the smallest largest factor."""
    if order == 1:
        return (total,)
    best: tuple[int, ...] = (1,) * (order - 1) + (total,)
    first = least
    while first**order <= total:
        if total % first == 0:
            rest = _most_even(total // first, order - 1, first)
            if rest[0] >= first and rest[-1] <= best[-1]:
                best = (first, *rest)
        first += 1
    return best


SMALL_MODE = 2  # of a skewed factorisation


def skewed_modes(size: int, order: int) -> tuple[int, ...]:
    """Fold a side of ``size`` into ``order`` modes, one large and the others of ``SMALL_MODE``.

    Rising; what their product exceeds the size by is padding. With the large mode of the rows first
    and that of the columns last, a tensor train lies between balanced modes and two thin factors,
    the train of modes ``(out, 1)`` by ``(1, in)``. Sides too small for that are balanced.
    """
    small = SMALL_MODE ** (order - 1)
    if size < small * SMALL_MODE:
        return balanced_modes(size, order)
    return (SMALL_MODE,) * (order - 1) + (-(-size // small),)


def nearest_modes(size: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Correct modes whose product misses ``size``: as many, close to those wanted, little padding.

    Modes that fit are returned as they are.
    """
    if fits(size, wanted):
        return wanted
    if len(wanted) == 1:
        return (size,)
    choices = [_near(mode, size) for mode in wanted[:-1]]
    best, least = balanced_modes(size, len(wanted)), math.inf
    for leading in product(*choices):
        modes = (*leading, -(-size // math.prod(leading)))
        if not fits(size, modes):
            continue
        change = sum(abs(math.log(mode / want)) for mode, want in zip(modes, wanted, strict=True))
        score = change + PADDING_WEIGHT * math.log(math.prod(modes) / size)
        if score < least:
            best, least = modes, score
    return best


def _near(mode: int, size: int) -> list[int]:
    near = range(max(1, mode - MOST_TRIED // 2), mode + MOST_TRIED // 2 + 1)
    divisors = [d for d in range(max(1, mode // 4), min(size, 4 * mode) + 1) if size % d == 0]
    return sorted({*near, *divisors}, key=lambda value: (abs(value - mode), value))[:MOST_TRIED]


def padded_modes(modes: tuple[int, ...], order: int) -> tuple[int, ...]:
    """As many modes as a train has cores: modes of 1 follow those that there are."""
    return modes + (1,) * (order - len(modes))


def train_rank_limits(modes: tuple[int, ...]) -> tuple[int, ...]:
    """Largest useful rank at each of the ``d - 1`` joints of a tensor train with ``d`` modes."""
    return tuple(min(math.prod(modes[:k]), math.prod(modes[k:])) for k in range(1, len(modes)))


def paired_modes(out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
    """Modes of a train whose cores pair one out mode with one in mode each."""
    return tuple(o * i for o, i in zip(out_modes, in_modes, strict=True))


def matrix_train_limits(out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
    """Largest useful ranks of a train whose cores pair one out mode with one in mode each."""
    return train_rank_limits(paired_modes(out_modes, in_modes))


def feasible_train_ranks(ranks: tuple[int, ...], modes: tuple[int, ...]) -> tuple[int, ...]:
    """Lower the ranks of a train to those that its modes and its other ranks allow.

    A joint's rank is at most the rank at either neighbour times the mode between them, and so at
    most the smaller side of its unfolding. Lower ranks lose nothing: no tensor has higher ones
    beside the others. One sweep a way is enough, since a rank that the second lowers is the next
    one's times a mode.

    Args:
        ranks: one for each of the ``d - 1`` joints.
        modes: ``d`` modes, of a matrix those of ``paired_modes``.
    """
    found = list(ranks)
    before = 1
    for k, rank in enumerate(found):
        before = found[k] = min(rank, before * modes[k])
    after = 1
    for k in reversed(range(len(found))):
        after = found[k] = min(found[k], modes[k + 1] * after)
    return tuple(found)


def tucker_rank_limits(modes: tuple[int, ...]) -> tuple[int, ...]:
    """Largest useful rank of each mode of a Tucker decomposition."""
    total = math.prod(modes)
    return tuple(min(mode, total // mode) for mode in modes)


def feasible_tucker_ranks(ranks: tuple[int, ...], modes: tuple[int, ...]) -> tuple[int, ...]:
    """Lower the ranks of a Tucker decomposition to those that its modes and other ranks allow.

    A rank is at most its mode and at most the product of all other ranks: no tensor has a higher
    one beside them. Only the largest rank can exceed that product.
    """
    found = [min(rank, mode) for rank, mode in zip(ranks, modes, strict=True)]
    for k, rank in enumerate(found):
        found[k] = min(rank, math.prod(found[:k] + found[k + 1 :]))
    return tuple(found)


def aligned_rank(rank: float) -> int:
    """Round a rank down to a multiple of 8; below 8 to a whole number of at least 1.

    The tiny margin keeps ``0.29 * 100``, which is a hair under 29 in binary, at 29.
    """
    whole = math.floor(rank + 1e-9)
    return whole // RANK_MULTIPLE * RANK_MULTIPLE if whole >= RANK_MULTIPLE else max(whole, 1)
