"""Runs the jobs of a search in this process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autocompress.crew import Done, Task
from autocompress.driver.engines.answering import answer
from autocompress.driver.engines.base import AskTell, Measure


class Here:
    """Runs one job after the other in this process.

    Args:
        measure: does a job.
    """

    workers = 1
    idle = False  # tasks are left to those who have them, and who share them among threads

    def __init__(self, measure: Measure) -> None:
        self.measure = measure

    def drive(self, search: AskTell) -> None:
        """See ``Engine``."""
        while not search.finished and (job := search.ask()) is not None:
            search.tell(answer(self.measure, job))

    def do(
        self,
        tasks: Sequence[Task],
        done: Done = lambda _number, _value: None,
        deadline: float = math.inf,
    ) -> list[Any]:
        """Refuse: it is never idle."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing was started."""
