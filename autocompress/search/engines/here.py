"""Runs the jobs of a search in this process."""

from __future__ import annotations

from autocompress.search.engines.answering import answer
from autocompress.search.engines.base import AskTell, Measure


class Here:
    """Runs one job after the other in this process.

    Args:
        measure: does a job.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure

    def drive(self, search: AskTell) -> None:
        """See ``Engine``."""
        while not search.finished and (job := search.ask()) is not None:
            search.tell(answer(self.measure, job))
