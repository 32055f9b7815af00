"""Several models compressed side by side, each in a process of its own.

A process that fails, is killed or runs out of memory takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from autocompress.errors import AutocompressError, ConfigurationError
from autocompress.progress import Advance
from autocompress.requests.verbs import CompressRequest

MOST_JOBS = 4  # by default: each holds a model, and memory is often the first to run out
PATIENCE = 10.0  # seconds that an interrupted process may take to remove what it was writing


@dataclass(frozen=True)
class ModelJob:
    """One model to compress.

    Attributes:
        model: folder or hub name.
        out: the folder to write.
        request: how to compress it; picklable.
    """

    model: str
    out: Path
    request: CompressRequest = field(hash=False)


@dataclass(frozen=True)
class ModelOutcome:
    """How a job ended.

    Attributes:
        job: the job.
        state: whether its folder is written, was there already, or was not written.
        seconds: how long it took.
        report: ``CompressionReport.to_dict``; empty when it failed or was skipped.
        summary: the report in words.
        error: one paragraph about what went wrong.
    """

    job: ModelJob
    state: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    report: Mapping[str, Any] = field(default_factory=dict, hash=False)
    summary: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        facts = {"model": self.job.model, "out": str(self.job.out), "state": self.state}
        if self.state == "failed":
            return facts | {"seconds": self.seconds, "error": self.error}
        return facts | ({"seconds": self.seconds} | dict(self.report) if self.report else {})


class Watcher(Protocol):
    """Told how far the jobs are, in the process that started them."""

    def stage(self, job: ModelJob, description: str, total: int | None) -> None:
        """A job has begun a task of so many steps."""

    def advance(self, job: ModelJob, steps: int) -> None:
        """So many steps of the task are done since."""

    def note(self, job: ModelJob, message: str) -> None:
        """A job has something to say."""

    def ended(self, outcome: ModelOutcome) -> None:
        """A job has ended."""


def places_for(models: Sequence[str], parent: Path) -> dict[str, Path]:
    """Give each of several models a subfolder: a folder's own name, ``org--name`` for the hub's.

    Raises:
        ConfigurationError: two models would be written to the same folder, or one has no name.
    """
    places = {model: parent / _name_of(model) for model in models}
    sharing: dict[str, list[str]] = defaultdict(list)
    for model in models:
        sharing[places[model].name.lower()].append(model)  # some disks do not tell case apart
    for named in sharing.values():
        if len(named) > 1:
            raise ConfigurationError(
                f"{len(named)} models would be written to {places[named[0]]}",
                got=" and ".join(named),
                wanted="models with different names",
                hint="Compress one of them by itself: then --out is its own folder.",
            )
    return places


def _name_of(model: str) -> str:
    path = Path(model).expanduser()
    name = path.resolve().name if path.exists() else model.strip("/").replace("/", "--")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if not safe:
        raise ConfigurationError("a model without a name cannot be given a folder", got=repr(model))
    return safe


def default_jobs(models: int, device: str) -> int:
    """How many processes to run at once: few enough for memory, one on an accelerator."""
    return 1 if device != "cpu" else max(1, min(models, cpu_count(), MOST_JOBS))


def cpu_count() -> int:
    """Cores that this process may use; ``OMP_NUM_THREADS`` where it asks for fewer threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores or 1, int(asked)) if asked.isdecimal() and int(asked) else cores or 1


def run_jobs(
    jobs: Iterable[ModelJob],
    processes: int,
    watcher: Watcher,
    *,
    prepare: Callable[[], None] | None = None,
) -> list[ModelOutcome]:
    """Compress models, so many at a time, and give the outcomes in the order of the jobs.

    When it is interrupted the processes are ended, and what they were writing is removed; finished
    folders stay.

    Args:
        jobs: what to do.
        processes: how many at a time; the cores are shared out among them.
        watcher: told how far they are.
        prepare: called first in each process; picklable.
    """
    jobs = list(jobs)
    waiting = deque(jobs)
    outcomes: dict[ModelJob, ModelOutcome] = {}
    threads = max(1, cpu_count() // max(1, min(processes, len(jobs))))
    with _running() as running:
        while waiting or running:
            while waiting and len(running) < processes:
                worker = _Worker.start(waiting.popleft(), threads, prepare)
                running[worker.connection] = worker
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                outcome = running[ready].listen(watcher)
                if outcome is not None:
                    outcomes[outcome.job] = outcome
                    del running[ready]
                    watcher.ended(outcome)
    return [outcomes[job] for job in jobs]


@contextmanager
def _running() -> Iterator[dict[Connection, _Worker]]:
    """The workers at work; none is left behind."""
    workers: dict[Connection, _Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()


@dataclass(frozen=True)
class _Worker:
    """A process, as the one that started it sees it."""

    job: ModelJob
    process: SpawnProcess
    connection: Connection
    started: float
    said: list[ModelOutcome]

    @classmethod
    def start(cls, job: ModelJob, threads: int, prepare: Callable[[], None] | None) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, threads, prepare, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen when the process ends
        return cls(job, process, ours, time.monotonic(), [])

    def listen(self, watcher: Watcher) -> ModelOutcome | None:
        """Pass on the next message; the outcome, when that was the last."""
        seconds = time.monotonic() - self.started
        try:
            kind, *content = self.connection.recv()
        except (EOFError, OSError):  # the second when it is killed in the middle of a message
            self.process.join()
            return self.said[0] if self.said else self._broken(seconds)
        if kind == "done":
            report, summary = content
            self.said.append(ModelOutcome(self.job, "done", seconds, report, summary))
        elif kind == "failed":
            self.said.append(ModelOutcome(self.job, "failed", seconds, error=content[0]))
        elif kind == "stage":
            watcher.stage(self.job, *content)
        elif kind == "advance":
            watcher.advance(self.job, *content)
        else:
            watcher.note(self.job, *content)
        return None

    def _broken(self, seconds: float) -> ModelOutcome:
        code = self.process.exitcode or 0
        if code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
            hint = "The machine may have run out of memory; try fewer --jobs."
        else:
            how = f"its process ended with exit code {code}"
            hint = "What it said is above; this is a fault of autocompress or of a library."
        return ModelOutcome(self.job, "failed", seconds, error=f"{how} before it was done. {hint}")


def _work(
    job: ModelJob, threads: int, prepare: Callable[[], None] | None, connection: Connection
) -> None:
    """The process of one job."""
    # Ctrl-C reaches every process of a terminal; the one that started this ends it in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if prepare is not None:
        prepare()
    import torch

    from autocompress.api.compressing import compress

    torch.set_num_threads(threads)
    try:
        sending = _Sending(connection)
        asked = replace(job.request, model=job.model, out=job.out, progress=sending)
        report = compress(asked).report
    except (AutocompressError, OSError) as error:
        connection.send(("failed", str(error)))
    else:
        connection.send(("done", report.to_dict(), str(report)))


def _leave(*_signal: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


class _Sending:
    """Progress that is shown in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Begin a task of so many steps."""
        self._connection.send(("stage", description, total))
        yield lambda steps: self._connection.send(("advance", steps))

    def note(self, message: str) -> None:
        """Say one line."""
        self._connection.send(("note", message))
