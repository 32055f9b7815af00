"""A search that asks for so many jobs, and workers that answer by a formula or end in some way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autocompress.driver.engines.base import Answer, Errand, Measure, OpenWorker
from autocompress.errors import ConfigurationError
from autocompress.evaluation.jobs import Job, Outcome
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from tests.studies.study_fixtures import measurement


class FakeAskTell:
    """Asks for ``jobs`` jobs whose plans depend on what was told before.

    ``None`` is given while ``most_at_a_time`` jobs run.
    """

    def __init__(self, jobs: int, most_at_a_time: int = 100) -> None:
        self.jobs, self.most_at_a_time = jobs, most_at_a_time
        self.asked: list[Job] = []
        self.told: list[Outcome] = []
        self.most_running = 0
        self.thread = threading.get_ident()
        self.study = threading.Lock()  # no search can be pickled

    @property
    def finished(self) -> bool:
        return len(self.asked) >= self.jobs

    @property
    def running(self) -> int:
        return len(self.asked) - len(self.told)

    def ask(self) -> Job | None:
        assert threading.get_ident() == self.thread
        assert not self.finished
        if self.running >= self.most_at_a_time:
            return None
        seen = sum(out.measurement.bytes for out in self.told if out.measurement)
        job = Job(len(self.asked), Plan.of({"layer": Quantize(bits=(2, 3, 4, 8)[seen % 4])}))
        self.asked.append(job)
        self.most_running = max(self.most_running, self.running)
        return job

    def tell(self, outcome: Outcome) -> None:
        assert threading.get_ident() == self.thread
        assert outcome.number in {job.number for job in self.asked}
        self.told.append(outcome)

    @property
    def numbers(self) -> list[int]:
        return sorted(outcome.number for outcome in self.told)


@dataclass(frozen=True)
class Double:
    """A task whose value tells who did it."""

    number: int

    def done_on(self, _desk: object) -> tuple[int, int]:
        return 2 * self.number, os.getpid()


class Refused:
    """A task that cannot be done."""

    def done_on(self, _desk: object) -> None:
        refuses()


class Buggy:
    """A task with a bug."""

    def done_on(self, _desk: object) -> None:
        raise ZeroDivisionError("oh")


@dataclass(frozen=True)
class KilledOnce:
    """A task at which the first worker is killed."""

    seen: Path

    def done_on(self, _desk: object) -> str:
        if self.seen.exists():
            return "again"
        self.seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"


def answer_by_formula(job: Job | Errand) -> Answer:
    if isinstance(job, Errand):
        return job.done_on(None)
    return _outcome(job)


def _outcome(job: Job) -> Outcome:
    size = 1 + sum(job.plan.hash.encode()) + 3 * job.number
    return Outcome(job.number, measurement(0.1, size, 4.0, job.plan), seconds=0.01)


def formula() -> Measure:
    return answer_by_formula


def _misbehave(folder: Path, trouble: dict[int, tuple[str, int]], job: Job) -> Outcome:
    """Count the attempts at each job in files, for the processes that do them come and go."""
    attempts = folder / f"attempts-{job.number}"
    with attempts.open("a") as file:
        file.write("x")
    kind, times = trouble.get(job.number, ("", 0))
    if len(attempts.read_text()) <= times:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "bug":
            raise ZeroDivisionError("oh")
        if kind == "long":
            (folder / f"pid-{job.number}").write_text(str(os.getpid()))
            time.sleep(600)
    return _outcome(job)


def troubled(folder: Path, trouble: dict[int, tuple[str, int]]) -> OpenWorker:
    """Workers that are ``killed``, take ``long`` or have a ``bug`` the first times of some jobs."""
    return partial(_open_troubled, folder, trouble)


def _open_troubled(folder: Path, trouble: dict[int, tuple[str, int]]) -> Measure:
    return partial(_misbehave, folder, trouble)


def refuses() -> Measure:
    raise ConfigurationError("--device is not usable here", got="'cuda:9'", hint="Name another.")


def ends_at_start() -> Measure:
    os._exit(7)


def attempts(folder: Path, number: int) -> int:
    path = folder / f"attempts-{number}"
    return len(path.read_text()) if path.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.02)
