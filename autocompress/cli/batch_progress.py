"""A line of progress for each of several models that are compressed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from autocompress.cli.output import log

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from autocompress.api.batch import ModelJob, ModelOutcome

INTERRUPTED = (
    "{done} of {all} models were finished and are kept; "
    "the same command with --skip-existing goes on with the others."
)


class BatchProgress:
    """Draws a bar for each model at work; where stderr is no terminal, a line for each stage.

    Args:
        jobs: the models.
        target: where to draw.
    """

    def __init__(self, jobs: Sequence[ModelJob], target: Console = log) -> None:
        self._target, self._all, self._done = target, len(jobs), 0
        self._width = max((len(job.out.name) for job in jobs), default=0)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BatchProgress:
        if self._target.is_terminal:
            self._bars = _bars(self._target)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._print(INTERRUPTED.format(done=self._done, all=self._all))

    def stage(self, job: ModelJob, description: str, total: int | None) -> None:
        """A model has come to its next stage."""
        if self._bars is None:
            self._print(f"{self._label(job)}  {description} ...")
            return
        name = f"{self._label(job)}  {description}"
        task = self._tasks.get(job.model)
        if task is None:
            self._tasks[job.model] = self._bars.add_task(name, total=total)
        else:
            self._bars.reset(task, description=name, total=total)

    def advance(self, job: ModelJob, steps: int) -> None:
        """A model is so many steps further."""
        if self._bars is not None:
            self._bars.advance(self._tasks[job.model], steps)

    def note(self, job: ModelJob, message: str) -> None:
        """Say a line about a model."""
        self._print(f"{self._label(job)}  {message}")

    def ended(self, outcome: ModelOutcome) -> None:
        """A model is done, or has failed; why is said at the end."""
        job = outcome.job
        if self._bars is not None and job.model in self._tasks:
            self._bars.remove_task(self._tasks.pop(job.model))
        self._done += outcome.state == "done"
        ratio = f", {outcome.report['ratio']:.3g} times less" if outcome.state == "done" else ""
        self._print(f"{self._label(job)}  {outcome.state} in {outcome.seconds:.0f} s{ratio}")

    def _label(self, job: ModelJob) -> str:
        return job.out.name.ljust(self._width)

    def _print(self, line: str) -> None:
        self._target.print(line, markup=False, soft_wrap=True)


def _bars(target: Console) -> Bars:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        console=target,
        transient=True,
    )
