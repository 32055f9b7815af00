"""Tasks of lm-eval on a model that is already loaded, dense or compressed.

Tasks come from lm-eval's own collection (their data from the hub) or from a folder of task files. A
task file may name local data files, which then needs no network; lm-eval reads their paths from the
current folder.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigurationError, DataError, ModelError
from autocompress.evaluation.windows import context_length
from autocompress.quiet import quietened
from autocompress.requests.groups import DEFAULT_CONTEXT

BATCH_SIZE = 8
BOOTSTRAPS = 1000  # draws for the standard error of metrics that are no means
SEED = 1234  # of the few-shot examples; lm-eval's own default
_LOGGERS = ("lm_eval", "lm-eval", "datasets", "huggingface_hub", "accelerate")
_ENVIRONMENT = {"DISABLE_MULTIPROC": "1"}  # so few draws need no pool of processes


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task or group.

    Attributes:
        task: name of the task or group.
        metric: name of the metric; with ``/filter`` when the task filters answers.
        value: the figure.
        stderr: its standard error; NaN where lm-eval gives none.
        samples: examples it is over; 0 where unknown, as for a group.
    """

    task: str
    metric: str
    value: float
    stderr: float
    samples: int


def run_tasks(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    task_folder: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    context: int = DEFAULT_CONTEXT,
    begin: tuple[int, ...] = (),
) -> list[TaskResult]:
    """Run lm-eval tasks.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        names: tasks, groups or tags; patterns such as ``arc_*`` are allowed.
        task_folder: folder of task files, searched before lm-eval's own.
        limit: examples of each task; all when left out.
        batch_size: examples at a time.
        context: longest input, at most the model's context.
        begin: tokens that every text starts with; given, and never scored.

    Raises:
        ConfigurationError: an unknown task (with the nearest names), or a folder that does not
            exist.
        DataError: a task whose data cannot be loaded.
        ModelError: a model that lm-eval cannot run.
    """
    if not names:
        raise ConfigurationError(
            "no task is named", wanted="names of lm-eval tasks, with commas between"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} cannot run tasks here", wanted="a causal language model"
        )
    with _quiet():
        run, wrap = _import_harness()
        wrapped = wrap(model, tokenizer, begin, batch_size, context_length(model, context))
        manager = _manager(names, task_folder)
        tasks = _load(manager, _resolve(manager, names, task_folder))
        results = run(wrapped, tasks, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=False)
    return list(_rows(results))


def _import_harness() -> tuple[Any, Any]:
    """``evaluate``, not ``simple_evaluate``: that reseeds the process and lists every package."""
    try:
        from lm_eval import evaluate

        from autocompress.evaluation.harness import Harness
    except ImportError as error:
        raise ConfigurationError(
            f"lm-eval cannot be imported ({error})", hint="pip install lm-eval accelerate"
        ) from error
    return evaluate, Harness


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    """The index of tasks: of the folder alone if that has them all; lm-eval's is slow."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    if not Path(folder).is_dir():
        raise ConfigurationError(
            "--task-folder is no folder", got=str(folder), wanted="a folder of lm-eval task files"
        )
    local = TaskManager(include_path=str(folder), include_defaults=False)
    return (
        local
        if all(local.match_tasks([name]) for name in names)
        else TaskManager(include_path=str(folder))
    )


def _resolve(manager: Any, names: Sequence[str], folder: str | Path | None) -> list[str]:
    resolved: list[str] = []
    for name in names:
        matches = sorted(manager.match_tasks([name]))
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f"Nearest names: {', '.join(near)}." if near else ""
            place = (
                f" in lm-eval or in {folder}"
                if folder is not None
                else " in lm-eval; --task-folder adds your own"
            )
            raise ConfigurationError(f"there is no such task{place}", got=repr(name), hint=hint)
        resolved += [match for match in matches if match not in resolved]
    return resolved


def _load(manager: Any, names: list[str]) -> Any:
    """Load the tasks with their data, ready to be run."""
    listed = ", ".join(names)
    try:
        loaded = manager.load(names)
    except Exception as error:
        unreachable = isinstance(error, ConnectionError)
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise DataError(
            f"the data of task {listed} cannot be "
            f"{'reached' if unreachable else 'loaded'} ({reason})",
            wanted="the hub, or a task file with local data files",
            hint="Check the network; or write a task file that names local files "
            "(paths from the current folder) and give its folder with --task-folder.",
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _rows(results: Any) -> Iterator[TaskResult]:
    for task, figures in results["results"].items():
        samples = results.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in figures.items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, int | float) or not chosen or metric.endswith("_stderr"):
                continue
            stderr = figures.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == "none" else f"{metric}/{chosen}"
            yield TaskResult(
                task, name, float(value), float(stderr) if _is_number(stderr) else math.nan, samples
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries' news off both streams: stdout is for results."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        with quietened(*_LOGGERS), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
