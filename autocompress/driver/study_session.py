"""Opens the model of a study again, as it was when the study began."""

from __future__ import annotations

from pathlib import Path

from autocompress.driver.study_choice import SearchSettings
from autocompress.errors import StudyError
from autocompress.progress import SILENT, Progress
from autocompress.session.session import Session
from autocompress.studies.study import StudyRecord


def open_study_session(study: StudyRecord, runs_dir: Path, progress: Progress = SILENT) -> Session:
    """Load the model and the texts that a study was made with.

    Raises:
        StudyError: the model's weights have changed since.
        ModelError: it cannot be loaded.
    """
    session = SearchSettings.of_study(study).open(runs_dir, progress)
    if session.loaded.fingerprint != study.fingerprint:
        raise StudyError(
            f"the model {study.model} has changed since study {study.name}",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=study.fingerprint,
            hint="Search again, or bring back the weights of that time.",
        )
    return session
