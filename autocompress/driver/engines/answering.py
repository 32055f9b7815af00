"""What every worker process does, whoever started it: open a measure, and answer work with it."""

from __future__ import annotations

import logging

from autocompress.driver.engines.base import Answer, Measure, OpenWorker, Work
from autocompress.errors import AutocompressError

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


def answer(measure: Measure, work: Work) -> Answer:
    """Do a piece of work. An error that nobody expected is the end of it, not of the worker."""
    try:
        return measure(work)
    except Exception as error:
        logger.exception("work %d", work.number)
        return work.failed(f"{type(error).__name__}: {error}")


def lost(work: Work, how: str) -> Answer:
    """What becomes of work whose workers were lost every time."""
    return work.failed(f"its worker was lost {RETRIES + 1} times, {how}")
