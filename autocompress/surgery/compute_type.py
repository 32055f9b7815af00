"""The type that a device computes a stored type fastest in: not what bytes are counted in."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

FASTEST = "fastest"  # in place of a type: the one that ``fastest_type`` finds
# A product as in the forward pass of a small model: large enough to show what the units can do.
PROBED_TOKENS, PROBED_WIDTH = 256, 1024
PROBES = 3  # of each type in turn; the fastest counts, since other processes only slow one down


@lru_cache
def fastest_type(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The floating-point type to run forward passes in: ``stored`` or fp32.

    Processors without units for 16-bit floats compute in them several times slower than in fp32,
    which loses nothing of the weights. It is measured by some products of matrices, in a fraction
    of a second; accelerators have such units.

    Args:
        stored: type of the checkpoint.
        device: what computes.
    """
    if device.type != "cpu" or stored.itemsize >= torch.float32.itemsize:
        return stored
    seconds = {stored: float("inf"), torch.float32: float("inf")}
    for _ in range(PROBES):
        for dtype, least in seconds.items():
            seconds[dtype] = min(least, _seconds_of_a_product(dtype))
    return min(seconds, key=lambda dtype: seconds[dtype])


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    inputs = torch.ones(PROBED_TOKENS, PROBED_WIDTH, dtype=dtype)
    weight = torch.ones(PROBED_WIDTH, PROBED_WIDTH, dtype=dtype)
    with torch.inference_mode():
        torch.nn.functional.linear(inputs[:1], weight)  # what is set up at the first use
        started = time.perf_counter()
        torch.nn.functional.linear(inputs, weight)
        return time.perf_counter() - started
