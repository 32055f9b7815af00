"""The cheapest path through a bit-shift trellis, compiled for the processor by numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNREACHABLE = np.float32(1e30)


@njit(cache=True, fastmath=True, nogil=True)
def cheapest_path(
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    levels: NDArray[np.float32],
    bits: int,
    codes: NDArray[np.uint8],
    values: NDArray[np.float32],
) -> None:
    """Find the codes of least weighted squared error (Viterbi 1967), starting in state 0.

    A state is followed by ``2**bits`` others: ``(state << bits | code) % states``. All states that
    differ in the last code alone have the same predecessors, so that a step compares ``states``
    numbers and adds as many, both over contiguous memory.

    Args:
        targets: fp32 ``[n]``.
        weights: fp32 ``[n]``, of each squared error.
        levels: fp32 ``[states]``, the value that each state stands for.
        bits: bits of a code.
        codes: uint8 ``[n]``, written.
        values: fp32 ``[n]``, written: the levels of the states on the path.
    """
    count, states, branches = targets.shape[0], levels.shape[0], 1 << bits
    groups = states >> bits  # of states with the same predecessors
    cost = np.full(states, UNREACHABLE, np.float32)
    cost[0] = 0.0
    least = np.empty(groups, np.float32)
    origin = np.empty(groups, np.int32)
    origins = np.empty((count, groups), np.uint8)
    for step in range(count):
        least[:] = cost[:groups]
        origin[:] = 0
        for branch in range(1, branches):
            of_branch = cost[branch * groups : (branch + 1) * groups]
            for group in range(groups):
                lower = of_branch[group] < least[group]
                origin[group] = branch if lower else origin[group]
                least[group] = of_branch[group] if lower else least[group]
        for group in range(groups):
            origins[step, group] = origin[group]
        target, weight = targets[step], weights[step]
        for state in range(states):
            error = target - levels[state]
            cost[state] = weight * error * error + least[state >> bits]
    state = int(np.argmin(cost))
    for step in range(count - 1, -1, -1):
        codes[step] = state & (branches - 1)
        values[step] = levels[state]
        group = state >> bits
        state = group + origins[step, group] * groups
