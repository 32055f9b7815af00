"""Times of ways to compute one layer, each relative to the dense one that ran next to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WARM_UP = 2  # calls not counted: the first makes layouts of kernels and orders of contraction
LEAST_REPEATS, MOST_REPEATS = 9, 40
ENOUGH_SECONDS = 0.005  # of one option, once it has its least repeats
TOO_MANY_SECONDS = 0.25  # of one option, however few its repeats

Run = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """One way to compute a layer.

    Attributes:
        run: computes it, and waits until that is done.
        alike: computes another layer of the same form just before, and is not counted: in a model,
            too, the layers before have brought the code into the caches, but not these weights.
            Left out where the layer takes so long that this does not matter.
    """

    run: Run
    alike: Run | None = None


def relative_times(
    dense: Timed,
    options: Mapping[str, Timed],
    rest_of_token: Run = lambda: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, dict[str, float]]:
    """Time options in turn with the dense layer: its median, and the options' as multiples of it.

    Every round runs the dense layer and each option once, after what leaves the processor's caches
    as the rest of a token does. So each is met by a drift of the machine's speed, and each finds
    its weights where they are in a model. An option is compared with the dense layer over its own
    rounds.

    Args:
        dense: the dense layer.
        options: each way to compare with it.
        rest_of_token: run before each round, such as reading as many bytes as the model has.
        clock: gives seconds.

    Returns:
        The dense layer's median in milliseconds, and the ratios of medians.
    """

    def seconds(timed: Timed) -> float:
        if timed.alike is not None:
            timed.alike()
        start = clock()
        timed.run()
        return clock() - start

    spent = {key: sum(seconds(each) for _ in range(WARM_UP)) for key, each in options.items()}
    for _ in range(WARM_UP):
        seconds(dense)
    dense_times: list[float] = []
    times: dict[str, list[float]] = {key: [] for key in options}
    waiting = list(options)
    while waiting or len(dense_times) < LEAST_REPEATS:
        rest_of_token()
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
