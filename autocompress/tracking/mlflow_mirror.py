"""Mirrors a search into MLflow from its own thread: tracking can neither slow nor break it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from autocompress.errors import ConfigurationError
from autocompress.progress import Progress
from autocompress.studies.observer import Observer
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.tracking.mlflow_client import without_password
from autocompress.tracking.mlflow_store import MlflowStore

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_ATTEMPTS = 30.0
SECONDS_TO_CLOSE = 30.0


class MlflowMirror:
    """Parent run per study, child run per trial, the front at the end.

    The methods return at once: a daemon thread does the work, MLflow's import and the making of its
    database included. What could not be sent is kept count of and told by ``close``; the next
    mirror that is ``started`` with the same study sends it, and nothing twice. One mirror follows
    one study.

    Args:
        uri: tracking store or server; what MLflow itself would choose when left out
            (``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working folder).
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._missing: set[int] = set()
        self._there: set[int] = set()
        self._front_missing = False
        self._ended = True
        self._problem = ""
        self._study: StudyRecord | None = None
        self._store: MlflowStore | None = None
        self._no_attempt_before = 0.0

    def started(self, study: StudyRecord) -> None:
        """Open the parent run, and send the trials that an earlier process could not."""
        self._expect(study.trials)
        self._ended = False
        self._submit(lambda: self._catch_up(study))

    def trial_finished(
        self, study_name: str, trial: TrialRecord, study: StudyRecord | None = None
    ) -> None:
        """Send one trial; ``study`` is the study with it, and may be left out after ``started``."""
        self._expect((trial,))
        self._submit(lambda: self._one_trial(study_name, trial, study))

    def finished(self, study: StudyRecord) -> None:
        """Send the front and close the parent run; whatever was missed is tried once more."""
        self._expect(study.trials)
        self._front_missing, self._ended = True, False
        self._submit(lambda: self._finish(study))

    def close(self, timeout: float = SECONDS_TO_CLOSE) -> list[str]:
        """Wait at most ``timeout`` seconds for what is under way, then say what is missing.

        Returns at most one warning.
        """
        if self._thread is not None:
            self._submit(self._cut_off)
            self._jobs.put(None)
            try:
                self._thread.join(timeout)
            finally:
                self._abandoned.set()
        with self._lock:
            return self._warnings()

    def _warnings(self) -> list[str]:
        parts = []
        if self._missing:
            parts.append(f"{len(self._missing)} {'trial' if len(self._missing) == 1 else 'trials'}")
        if self._front_missing:
            parts.append("the front")
        if not parts:
            return []
        where = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "its default store"
        why = self._problem or "it did not answer in time"
        name = self._study.name if self._study else "STUDY"
        return [
            f"MLflow at {where} is missing {' and '.join(parts)}: {why}. "
            f"The study itself is whole; autocompress search --resume {name} sends the rest."
        ]

    def _expect(self, trials: tuple[TrialRecord, ...]) -> None:
        with self._lock:
            self._missing |= {trial.number for trial in trials} - self._there

    def _submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._abandoned.is_set():
                return
            try:
                job()
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the search must go on
                self._problem = _reason(error)
                self._store = None  # what it wrote last may be half there; a new one looks
                self._no_attempt_before = time.monotonic() + SECONDS_BETWEEN_ATTEMPTS

    def _catch_up(self, study: StudyRecord) -> None:
        self._study = study
        store = self._open(study)
        for trial in study.trials:
            if self._abandoned.is_set():
                return
            store.send_trial(study, trial)
            self._sent(trial)

    def _one_trial(self, study_name: str, trial: TrialRecord, study: StudyRecord | None) -> None:
        study = study or self._study
        if study is None:
            self._problem = f"study {study_name} was never started"
            return
        if all(known.number != trial.number for known in study.trials):
            study = replace(study, trials=(*study.trials, trial))
        self._study = study
        if time.monotonic() >= self._no_attempt_before:
            self._open(study).send_trial(study, trial)
            self._sent(trial)

    def _finish(self, study: StudyRecord) -> None:
        self._catch_up(study)
        if self._store is None or self._abandoned.is_set():
            return
        self._store.send_front(study)
        self._store.end("FINISHED")
        self._front_missing, self._ended, self._problem = False, True, ""

    def _cut_off(self) -> None:
        """Mark the parent run when the search ended before it was finished."""
        if (
            self._store is not None
            and not self._ended
            and time.monotonic() >= self._no_attempt_before
        ):
            self._store.end("KILLED")

    def _open(self, study: StudyRecord) -> MlflowStore:
        if self._store is None:
            self._store = MlflowStore(study, self.uri)
            if not self._ended:
                self._store.begin()
            with self._lock:
                self._there = set(self._store.trials)
                self._missing -= self._there
        return self._store

    def _sent(self, trial: TrialRecord) -> None:
        with self._lock:
            self._there.add(trial.number)
            self._missing.discard(trial.number)


def _reason(error: Exception) -> str:
    """The last cause of a chain of errors, in one short line."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0][:200]


def check_tracking(track: bool, uri: str | None) -> None:
    """Refuse a store that nothing is sent to.

    Raises:
        ConfigurationError: one is named where nothing is tracked.
    """
    if uri is not None and not track:
        raise ConfigurationError(
            "--tracking-uri does nothing with --no-track",
            got=without_password(uri),
            hint="Leave one of them out.",
        )


@contextmanager
def mirrored(track: bool, uri: str | None, progress: Progress) -> Iterator[list[Observer]]:
    """Observers that mirror a study into MLflow, none unless ``track``.

    What could not be sent is told at the end.

    Raises:
        ConfigurationError: a store is named that nothing would be sent to.
    """
    check_tracking(track, uri)
    mirror = MlflowMirror(uri) if track else None
    try:
        yield [mirror] if mirror else []
    finally:
        for warning in mirror.close() if mirror else []:
            progress.note(warning)
            logger.warning(warning)
