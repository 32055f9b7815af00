"""What an engine and a search say to each other: jobs are asked for, outcomes are told.

A search decides what is measured next and writes down what came of it. An engine decides where and
when: in this process, in worker processes, on Ray. Only the search touches the study's storage, so
a worker that is lost costs the one job it was at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
        rivals: for each measured plan that this one must not be clearly worse than its KL
            divergence on each window, nats per token.
    """

    number: int
    plan: Plan
    stages: tuple[int, ...] = ()
    rivals: tuple[tuple[float, ...], ...] = ()


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


Measure = Callable[[Job], Outcome]
"""Does a job. Expected errors become the outcome's ``error``; only an interrupt is raised."""

OpenWorker = Callable[[], Measure]
"""Makes what does the jobs, in the process that will do them. Picklable; may take long."""


class AskTell(Protocol):
    """The side of a search that an engine sees. Not thread-safe: one thread calls it."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will be started; jobs that run may still be told."""

    def ask(self) -> Job | None:
        """Start the next trial; ``None`` when nothing can start until a running one is told."""

    def tell(self, outcome: Outcome) -> None:
        """Record what became of a job.

        Raises:
            AutocompressError: so many failed that going on makes no sense.
        """


class Engine(Protocol):
    """Runs the jobs of a search until it is finished."""

    def drive(self, search: AskTell) -> None:
        """Ask, run and tell until the search is finished and nothing runs any more.

        Raises:
            AutocompressError: no worker can be started, or the search gives up.
        """
