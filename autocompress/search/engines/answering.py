"""What every worker process does, whoever started it: open a measure, and answer jobs with it."""

from __future__ import annotations

import logging

from autocompress.errors import AutocompressError
from autocompress.search.engines.base import Job, Measure, OpenWorker, Outcome

logger = logging.getLogger(__name__)

RETRIES = 2  # times that a job whose worker was lost is tried again


def open_measure(open_worker: OpenWorker) -> Measure:
    """Make what does the jobs, in this process.

    Raises:
        AutocompressError: that it cannot be made, and why; it can be pickled.
    """
    try:
        return open_worker()
    except AutocompressError as error:
        raise type(error)(f"a worker cannot start: {error}") from error
    except Exception as error:
        what = f"a worker cannot start: {type(error).__name__}: {error}"
        raise AutocompressError(what) from error


def answer(measure: Measure, job: Job) -> Outcome:
    """Do a job. An error that nobody expected is the end of the job, not of the worker."""
    try:
        return measure(job)
    except Exception as error:
        logger.exception("trial %d", job.number)
        return Outcome(job.number, error=f"{type(error).__name__}: {error}")


def lost(job: Job, how: str) -> Outcome:
    """What becomes of a job whose workers were lost every time."""
    return Outcome(job.number, error=f"its worker was lost {RETRIES + 1} times, {how}")
