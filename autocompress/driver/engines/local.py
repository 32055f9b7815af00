"""Runs the jobs of a search, and its errands, in worker processes of this machine.

Each worker has a pipe of its own, so one that is killed takes nothing with it but the job that it
was at, and that job is tried again by the worker that takes its place.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from autocompress.crew import Done, Task
from autocompress.driver.engines.answering import RETRIES, answer, lost, open_measure
from autocompress.driver.engines.base import Answer, AskTell, OpenWorker, Result, Work
from autocompress.driver.engines.batch import Batch
from autocompress.errors import AutocompressError
from autocompress.evaluation.jobs import Outcome

logger = logging.getLogger(__name__)

# Processes in a row that end before they are ready; then the next would end so, too.
MOST_FAILED_STARTS = 3
READY = "ready"


class LocalProcesses:
    """Runs as many jobs at a time as it has workers, and keeps these until it is closed.

    The workers end with this process, however it ends, and leave Ctrl-C to it. A script that calls
    this must do so under ``if __name__ == "__main__"``, as the workers import it.

    Args:
        open_workers: makes what does the jobs, for each worker.
    """

    def __init__(self, open_workers: Sequence[OpenWorker]) -> None:
        self.open_workers = tuple(open_workers)
        self._workers: list[_Worker] = []
        self._driving = False

    @property
    def workers(self) -> int:
        """See ``Crew``."""
        return len(self.open_workers)

    @property
    def idle(self) -> bool:
        """See ``Crew``."""
        return not self._driving

    def do(
        self,
        tasks: Sequence[Task],
        done: Done = lambda _number, _value: None,
        deadline: float = math.inf,
    ) -> list[Any]:
        """See ``Crew``."""
        batch = Batch(tasks, done, deadline)
        self.drive(batch)
        return batch.values()

    def drive(self, search: AskTell) -> None:
        """See ``Engine``. Where it is cut short, the workers end: they are at what nobody wants."""
        self._driving = True
        try:
            if not search.finished:
                self._start()
            while _give_jobs(self._workers, search):
                for outcome in _hear(self._workers):
                    search.tell(outcome)
        except BaseException:
            self.close()
            raise
        finally:
            self._driving = False

    def close(self) -> None:
        """See ``Engine``."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def _start(self) -> None:
        if not self._workers:
            self._workers = [_Worker(open_worker) for open_worker in self.open_workers]
            for worker in self._workers:
                worker.start()


def _give_jobs(workers: Sequence[_Worker], search: AskTell) -> bool:
    """Give every idle worker a job while there are some; whether there is anything to wait for."""
    for worker in workers:
        if worker.idle and not search.finished and (job := search.ask()) is not None:
            worker.give(job)
    if any(worker.job for worker in workers):
        return True
    return not search.finished and not any(worker.idle for worker in workers)


def _hear(workers: Sequence[_Worker]) -> Iterator[Answer]:
    """Wait until some of the workers say something, and give the answers among it."""
    speaking = wait([worker.connection for worker in workers])
    for worker in workers:
        if worker.connection in speaking and (outcome := worker.hear()) is not None:
            yield outcome


class _Worker:
    """A process, the one that takes its place when it is lost, and the job that they are at."""

    process: BaseProcess
    connection: Connection

    def __init__(self, open_worker: OpenWorker) -> None:
        self.open_worker = open_worker
        self.ready = False
        self.failed_starts = 0
        self.job: Work | None = None
        self.losses = 0  # of this job

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of torch's threads may hang
        self.ready = False
        try:
            self.connection, theirs = context.Pipe()
            arguments = theirs, self.open_worker
            process = context.Process(target=_work, args=arguments, daemon=True)
            # Afterwards the process holds the only other end, so that its end is heard.
            with theirs, _interrupts_held_back():
                process.start()
        except OSError as error:
            raise _cannot_start(f"the system refuses its process: {error}") from error
        self.process = process

    def give(self, job: Work) -> None:
        self.job, self.losses = job, 0
        self._send()

    def hear(self) -> Answer | None:
        """Take what the process says, or what its end means."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._lost()
        if isinstance(message, AutocompressError):
            raise message
        if message != READY:
            self.job = None
            assert isinstance(message, Outcome | Result)
            return message
        self.ready, self.failed_starts = True, 0
        if self.job is not None:
            self._send()
        return None

    def end(self) -> None:
        """End the process, at once: what it keeps on disk is written whole or not at all."""
        if getattr(self, "process", None) is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()

    def _send(self) -> None:
        with suppress(OSError):  # it has just ended, which is heard next
            self.connection.send(self.job)

    def _lost(self) -> Answer | None:
        was_ready = self.ready
        self.end()
        how = _how_it_ended(self.process.exitcode)
        logger.warning("a worker process %s; another takes its place", how)
        if not was_ready:
            self.failed_starts += 1
            if self.failed_starts == MOST_FAILED_STARTS:
                often = f"{MOST_FAILED_STARTS} times in a row"
                raise _cannot_start(f"its process {how} before it was ready, {often}")
        outcome = None
        if was_ready and self.job is not None:
            self.losses += 1
            if self.losses > RETRIES:
                outcome, self.job = lost(self.job, f"the last {how}"), None
        self.start()
        return outcome


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _cannot_start(why: str) -> AutocompressError:
    return AutocompressError(
        f"no worker can start: {why}",
        hint="SIGKILL means mostly that memory ran out: try fewer --workers. A script must call "
        'the search under `if __name__ == "__main__":`, because each worker imports the script.',
    )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a process that never sees Ctrl-C, not even while Python is starting in it.

    A new process inherits which signals are held back. One that comes here meanwhile is delivered
    afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Python before 3.12 lets SIGINT through again when it starts this.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, open_worker: OpenWorker) -> None:
    """Answer jobs until the driver closes the pipe: what a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    try:
        measure = open_measure(open_worker)
    except AutocompressError as error:
        connection.send(error)
        return
    connection.send(READY)
    with suppress(EOFError, OSError):
        while True:
            connection.send(answer(measure, connection.recv()))


def _end_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)  # in the middle of a job: nobody is left to hear of it
