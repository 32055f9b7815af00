"""How commands write: results on stdout, progress and notes on stderr, and quiet libraries."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import wrapt
from rich.console import Console

from autocompress.progress import Advance, Progress
from autocompress.units import about

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

console = Console(highlight=False, soft_wrap=False)
log = Console(stderr=True, highlight=False)

# Libraries log to stderr of their own accord; a person wants their warnings, not their news.
_NOISY_LOGGERS = (
    "transformers",
    "datasets",
    "optuna",
    "alembic",
    "mlflow",
    "lm_eval",
    "httpx",
    "urllib3",
    "filelock",
)
_QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",  # GitPython complains where there is no git
    "TOKENIZERS_PARALLELISM": "false",  # a warning at every fork
    "LMEVAL_LOG_LEVEL": "ERROR",
}


def quieten_libraries() -> None:
    """Keep libraries from logging anything but errors; call it before they are imported.

    What the environment already says wins.
    """
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in _NOISY_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    # Optuna sets its own level when it is imported.
    wrapt.register_post_import_hook(
        lambda optuna: optuna.set_verbosity(logging.ERROR), "optuna.logging"
    )


def print_json(value: object) -> None:
    """Print one JSON object on stdout; numbers that JSON lacks (NaN, infinity) become null."""
    sys.stdout.write(
        json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    )


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


SECONDS_TO_A_LINE = 5.0  # until a task that goes on is first told of in a log
MOST_SECONDS_TO_A_LINE = 60.0


class ConsoleProgress:
    """Draws bars on stderr; where that is no terminal, lines: ever fewer as a task goes on."""

    def __init__(self, target: Console = log) -> None:
        self._target = target
        self._bars: Bars | None = None
        self._running = 0

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Start a task of so many steps; call what it gives with the steps done since."""
        return self._task(description, total)

    def note(self, message: str) -> None:
        """Say one line, above the bars."""
        self._target.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def _task(self, description: str, total: int | None) -> Iterator[Advance]:
        if not self._target.is_terminal:
            self._target.print(f"{description} ...", markup=False)
            lines = _Lines(self.note, description, total)
            yield lines.advance
            lines.end()
            return
        bars = self._start()
        task = bars.add_task(description, total=total)
        try:
            yield _advance(bars, task)
        finally:
            bars.update(task, visible=False)
            self._running -= 1
            if self._running == 0:
                bars.stop()
                self._bars = None

    def _start(self) -> Bars:
        """The one set of bars of nested tasks."""
        from rich import progress as rich_progress

        if self._bars is None:
            self._bars = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(),
                rich_progress.TaskProgressColumn(),
                rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
                console=self._target,
                transient=True,
            )
            self._bars.start()
        self._running += 1
        return self._bars


class _Lines:
    """Tells in lines how far a task is: after 5 seconds, then at intervals that double to a minute.

    Args:
        say: writes one line.
        description: what is done.
        total: steps of the task, where that is known.
    """

    def __init__(self, say: Callable[[str], None], description: str, total: int | None) -> None:
        self._say, self._description, self._total = say, description, total
        self._done = 0
        self._started = self._told = time.monotonic()
        self._pause = SECONDS_TO_A_LINE

    def advance(self, steps: int) -> None:
        """Count steps, and say so where the last line was long ago."""
        self._done += steps
        now = time.monotonic()
        if now - self._told < self._pause or not self._done:
            return
        self._told, self._pause = now, min(2 * self._pause, MOST_SECONDS_TO_A_LINE)
        elapsed = now - self._started
        if self._total is None:
            self._say(f"{self._description}: {self._done:,} in {about(elapsed)}")
        else:
            left = elapsed * max(self._total - self._done, 0) / self._done
            self._say(f"{self._description}: {self._done:,} of {self._total:,}, {about(left)} left")

    def end(self) -> None:
        """Say how long it took, where it took long enough to be told of."""
        elapsed = time.monotonic() - self._started
        if elapsed >= SECONDS_TO_A_LINE:
            self._say(f"{self._description}: done in {about(elapsed)}")


def _advance(bars: Bars, task: TaskID) -> Callable[[int], None]:
    return lambda steps: bars.advance(task, steps)


def progress(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """Draw one bar on stderr while the context lasts; call its value with the steps done since."""
    drawn: Progress = ConsoleProgress()
    return drawn.task(description, total)
