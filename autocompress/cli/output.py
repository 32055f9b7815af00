"""How commands write: results on stdout, progress and notes on stderr, and quiet libraries."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import wrapt
from rich.console import Console

from autocompress.progress import Advance, Progress

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


class ConsoleProgress:
    """Draws bars on stderr; where that is no terminal, one line at the start of each task."""

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
            yield lambda _steps: None
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


def _advance(bars: Bars, task: TaskID) -> Callable[[int], None]:
    return lambda steps: bars.advance(task, steps)


def progress(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """Draw one bar on stderr while the context lasts; call its value with the steps done since."""
    drawn: Progress = ConsoleProgress()
    return drawn.task(description, total)
