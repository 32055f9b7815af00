"""What an engine and a search say to each other: jobs are asked for, outcomes are told.

A search decides what is measured next and writes down what came of it. An engine decides where and
when: in this process, in worker processes, on Ray. Only the search touches the study's storage, so
a worker that is lost costs the one job it was at. What else a search has to do, such as fits and
prices, an engine with workers does as errands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from autocompress.crew import Crew, Task
from autocompress.errors import AutocompressError
from autocompress.evaluation.jobs import Job, Outcome


@dataclass(frozen=True)
class Errand:
    """One task of several that are done together. Picklable.

    Attributes:
        number: of the task.
        task: what to do.
    """

    number: int
    task: Task

    def done_on(self, desk: Any) -> Result:
        """Do it; what the task raises and a user can mend is its result."""
        try:
            return Result(self.number, self.task.done_on(desk))
        except AutocompressError as error:
            return Result(self.number, error=error)

    def failed(self, why: str) -> Result:
        """What became of it when nothing did."""
        return Result(self.number, error=AutocompressError(why))


@dataclass(frozen=True)
class Result:
    """What became of an errand: a value, or an error.

    Attributes:
        number: of the task.
        value: what the task returned.
        error: why it failed.
    """

    number: int
    value: Any = None
    error: AutocompressError | None = None


Work = Job | Errand
Answer = Outcome | Result

Measure = Callable[[Any], Answer]
"""Does a piece of work: an ``Outcome`` comes of a job, a ``Result`` of an errand. Expected errors
become the answer's ``error``; only an interrupt is raised."""

OpenWorker = Callable[[], Measure]
"""Makes what does the work, in the process that will do it. Picklable; may take long."""


class AskTell(Protocol):
    """The side of a search, or of a batch of errands, that an engine sees.

    Not thread-safe: one thread calls it.
    """

    @property
    def finished(self) -> bool:
        """Whether nothing more will be started; what runs may still be told."""

    def ask(self) -> Work | None:
        """Start what is next; ``None`` when nothing can start until what runs is told."""

    def tell(self, answer: Any) -> None:
        """Record what became of a piece of work: an ``Answer`` to what was asked for.

        Raises:
            AutocompressError: so much failed that going on makes no sense.
        """


class Engine(Crew, Protocol):
    """Runs the jobs of a search until it is finished; one with workers runs errands as well."""

    def drive(self, search: AskTell) -> None:
        """Ask, run and tell until the search is finished and nothing runs any more.

        Raises:
            AutocompressError: no worker can be started, or the search gives up.
        """

    def close(self) -> None:
        """End the workers; they are started again by what is driven next."""
