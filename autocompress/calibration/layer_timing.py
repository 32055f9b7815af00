"""Times of ways to compute one layer, each relative to the dense one that ran next to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

WARM_UP = 2  # calls not counted: the first makes layouts of kernels and orders of contraction
LEAST_REPEATS, MOST_REPEATS = 9, 40
ENOUGH_SECONDS = 0.005  # of one option, once it has its least repeats
TOO_MANY_SECONDS = 0.25  # of one option, however few its repeats

Run = Callable[[], object]


def relative_times(
    dense: Run, options: Mapping[str, Run], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, dict[str, float]]:
    """Time options in turn with the dense layer: its median, and the options' as multiples of it.

    Every round runs the dense layer and each option once. So a drift of the machine's speed meets
    all of them, and each finds the processor's caches as another layer has left them, which is how
    it finds them in a model. An option is compared with the dense layer over its own rounds.

    Args:
        dense: computes the dense layer, and waits until that is done.
        options: the same for each way to compare with it.
        clock: gives seconds.

    Returns:
        The dense layer's median in milliseconds, and the ratios of medians.
    """

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    spent = {key: sum(seconds(run) for _ in range(WARM_UP)) for key, run in options.items()}
    for _ in range(WARM_UP):
        dense()
    dense_times: list[float] = []
    times: dict[str, list[float]] = {key: [] for key in options}
    waiting = list(options)
    while waiting or len(dense_times) < LEAST_REPEATS:
        dense_times.append(seconds(dense))
        for key in waiting:
            times[key].append(seconds(options[key]))
            spent[key] += times[key][-1]
        waiting = [key for key in waiting if not _enough(len(times[key]), spent[key])]
    ratios = {
        key: statistics.median(each) / statistics.median(dense_times[: len(each)])
        for key, each in times.items()
    }
    return 1000 * statistics.median(dense_times), ratios


def _enough(repeats: int, seconds: float) -> bool:
    if repeats < LEAST_REPEATS:
        return seconds > TOO_MANY_SECONDS
    return repeats >= MOST_REPEATS or seconds > ENOUGH_SECONDS
