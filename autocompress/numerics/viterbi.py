"""The cheapest path through a bit-shift trellis, compiled for the processor by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNREACHABLE = np.float32(1e30)

Search = Callable[
    [
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.uint8],
        NDArray[np.float32],
    ],
    None,
]


@cache
def path_search(bits: int, state_bits: int) -> Search:
    """Compile the search for codes of ``bits`` bits in a register of ``state_bits`` bits.

    With both numbers known the compiler uses vector instructions throughout, which is three times
    as fast. The result finds the codes of least weighted squared error (Viterbi 1967) from state 0
    on; ``state >> bits | code << (state_bits - bits)`` follows ``state``. Its arguments:

        targets: fp32 ``[n]``.
        weights: fp32 ``[n]``, of each squared error.
        levels: fp32 ``[2**state_bits]``, the value that each state stands for.
        codes: uint8 ``[n]``, written.
        values: fp32 ``[n]``, written: the levels of the states on the path.
    """
    branches, states = 1 << bits, 1 << state_bits
    groups = states >> bits  # of states with the same followers

    @njit(cache=True, fastmath=True, nogil=True)
    def search(
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        levels: NDArray[np.float32],
        codes: NDArray[np.uint8],
        values: NDArray[np.float32],
    ) -> None:
        cost = np.full(states, UNREACHABLE)
        cost[0] = 0.0
        least = np.empty(groups, np.float32)
        origin = np.empty(groups, np.int32)
        origins = np.empty((len(targets), groups), np.uint8)
        for step in range(len(targets)):
            for group in range(groups):
                best, chosen = cost[group * branches], np.int32(0)
                for branch in range(1, branches):
                    other = cost[group * branches + branch]
                    chosen = np.int32(branch) if other < best else chosen
                    best = other if other < best else best
                least[group], origin[group] = best, chosen
            for group in range(groups):
                origins[step, group] = origin[group]
            target, weight = targets[step], weights[step]
            for code in range(branches):
                for group in range(groups):
                    error = target - levels[code * groups + group]
                    cost[code * groups + group] = least[group] + weight * error * error
        state = int(np.argmin(cost))
        for step in range(len(targets) - 1, -1, -1):
            codes[step] = state // groups
            values[step] = levels[state]
            group = state % groups
            state = group * branches + origins[step, group]

    return search
