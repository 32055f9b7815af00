from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from autocompress.api.batch import (
    ModelJob,
    ModelOutcome,
    cpu_count,
    default_jobs,
    places_for,
    run_jobs,
)
from autocompress.errors import ConfigurationError
from autocompress.requests.verbs import CompressRequest

LONG = 300  # seconds; far longer than any of these tests


class Witness:
    """A watcher that writes down what it is told, and may interrupt."""

    def __init__(self, interrupt: bool = False) -> None:
        self.events: list[tuple[str, str]] = []
        self.interrupt = interrupt

    def stage(self, job: ModelJob, description: str, total: int | None) -> None:
        self.events.append((job.model, description))

    def advance(self, job: ModelJob, steps: int) -> None:
        self.events.append((job.model, "advance"))

    def note(self, job: ModelJob, message: str) -> None:
        self.events.append((job.model, message))

    def ended(self, outcome: ModelOutcome) -> None:
        self.events.append((outcome.job.model, outcome.state))
        if self.interrupt:
            raise KeyboardInterrupt


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def break_down() -> None:
    sys.exit(7)


@dataclass(frozen=True)
class HangUnlessFirst:
    """Only the first process to come by ends by itself."""

    place: Path

    def __call__(self) -> None:
        try:
            self.place.mkdir()
        except FileExistsError:
            time.sleep(LONG)
        else:
            sys.exit(7)


def jobs(*names: str) -> list[ModelJob]:
    return [ModelJob(name, Path("out") / name, CompressRequest(budget="2x")) for name in names]


@pytest.fixture(autouse=True)
def nobody_left():
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("prepare", "words"), [(be_killed, "SIGKILL.*memory"), (break_down, "exit code 7")]
)
def test_a_process_that_breaks_down_is_a_failure_of_its_model_alone(prepare, words):
    witness = Witness()
    outcomes = run_jobs(jobs("a", "b", "c"), 2, witness, prepare=prepare)
    assert [outcome.job.model for outcome in outcomes] == ["a", "b", "c"]
    for outcome in outcomes:
        assert outcome.state == "failed"
        assert re.search(words, outcome.error)
        assert outcome.to_dict()["error"] == outcome.error
    assert sorted(witness.events) == [("a", "failed"), ("b", "failed"), ("c", "failed")]


def test_an_interruption_ends_every_process(tmp_path):
    started, prepare = time.monotonic(), HangUnlessFirst(tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs("a", "b", "c"), 2, Witness(interrupt=True), prepare=prepare)
    assert time.monotonic() - started < LONG


def test_an_expected_error_is_a_paragraph_and_progress_is_passed_on(tmp_path):
    request = CompressRequest(budget="2x", data="bundled", runs_dir=tmp_path)
    job = ModelJob(str(tmp_path / "none"), tmp_path / "out", request)
    witness = Witness()
    (outcome,) = run_jobs([job], 1, witness)
    assert outcome.state == "failed"
    assert outcome.error.startswith(f"there is no folder {tmp_path / 'none'}")
    assert witness.events == [(job.model, f"Loading {job.model}"), (job.model, "failed")]


def test_no_jobs_are_no_work():
    assert run_jobs([], 2, Witness()) == []


def test_subfolders_are_named_after_the_models(tmp_path, monkeypatch):
    (tmp_path / "a" / "small model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    out = Path("out")
    models = ["autocompress-demo", "org/name", "small model", "."]
    assert places_for(models, out) == {
        "autocompress-demo": out / "autocompress-demo",
        "org/name": out / "org--name",
        "small model": out / "small-model",
        ".": out / "a",
    }


@pytest.mark.parametrize("second", ["b/model", "b/MODEL", "a/model", "a/model/"])
def test_models_of_one_name_are_refused(second, tmp_path, monkeypatch):
    for name in ("a/model", "b/model", "b/MODEL"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        places_for(["a/model", "other", second], Path("out"))
    assert f"a/model and {second}" in str(caught.value)


@pytest.mark.parametrize("name", ["..", "/", "***"])
def test_no_model_is_written_outside(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = tmp_path.parent.name
    try:
        place = places_for([name], Path("out"))[name]
    except ConfigurationError:
        return
    assert place == Path("out") / parent


def test_as_many_processes_as_make_sense(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu_count() == 16
    assert [default_jobs(models, "cpu") for models in (1, 3, 20)] == [1, 3, 4]
    assert default_jobs(20, "cuda") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert default_jobs(20, "cpu") == 2
