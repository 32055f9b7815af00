"""Notices when training goes wrong."""

from __future__ import annotations

import math

SMOOTHING = 0.9  # of the loss that is watched
DIVERGED = 2.0  # times the lowest smoothed loss of its phase
# A lowest loss counts as at least this much, in nats or as a share of a block's energy. A plan that
# loses next to nothing starts at the rounding of fp32, even below zero, where the first steps
# multiply the loss without any harm.
LEAST_LOSS = 1e-3


class Watch:
    """Notices when a loss goes up and away."""

    def __init__(self) -> None:
        self.smoothed, self._least, self._phase = math.nan, math.inf, False

    def fine(self, loss: float, phase: bool) -> bool:
        """Take note of a loss; whether it is finite, and small or near the lowest of its phase."""
        if not math.isfinite(loss):
            return False
        if math.isnan(self.smoothed) or phase != self._phase:
            self.smoothed, self._least, self._phase = loss, math.inf, phase
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self._least = min(self._least, self.smoothed)
        return self.smoothed <= DIVERGED * max(self._least, LEAST_LOSS)
