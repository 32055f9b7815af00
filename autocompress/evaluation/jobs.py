"""What is asked of the evaluator, and what becomes of it: both can be sent between processes."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.methods.plan import Plan
from autocompress.records import Measurement


@dataclass(frozen=True)
class Job:
    """A plan to measure on the selection text. Picklable, and small.

    Attributes:
        number: of the trial that it is for.
        plan: what to measure.
        stages: how many of the first windows to score before each decision to go on, rising. All
            windows are scored after the last. Empty: no decisions.
        rivals: for each measured plan that this one must not be clearly worse than its divergence
            on each window.
    """

    number: int
    plan: Plan
    stages: tuple[int, ...] = ()
    rivals: tuple[tuple[float, ...], ...] = ()

    def failed(self, why: str) -> Outcome:
        """What became of it when nothing did."""
        return Outcome(self.number, error=why)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: one of a measurement, a stop, an error.

    Attributes:
        number: of the trial.
        measurement: of the plan on the selection text, or on its first windows when stopped.
        stopped_at: windows after which it was given up; ``None`` when all were scored.
        error: why it failed, in words for the user.
        seconds: what it took.
    """

    number: int
    measurement: Measurement | None = None
    stopped_at: int | None = None
    error: str = ""
    seconds: float = 0.0
