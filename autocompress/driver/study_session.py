"""Opens models for the runtime that they are compressed for, and those of studies again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.deploy.targets import target_of
from autocompress.driver.study_choice import request_of
from autocompress.errors import StudyError
from autocompress.evaluation.corpus import PARTS
from autocompress.progress import SILENT, Progress
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import OwnContent, Session, open_session
from autocompress.studies.study import StudyRecord


def open_for_target(
    request: SessionRequest, *, own: OwnContent | None = None, parts: Sequence[str] = PARTS
) -> Session:
    """Make a model ready to be compressed for the runtime that the request names.

    See ``open_session`` for the arguments and for what is raised.
    """
    return open_session(request, own=own, parts=parts, target=target_of(request.target))


def open_study_session(study: StudyRecord, runs_dir: Path, progress: Progress = SILENT) -> Session:
    """Load the model and the texts that a study was made with.

    Raises:
        StudyError: the model's weights have changed since.
        ModelError: it cannot be loaded.
    """
    session = open_for_target(replace(request_of(study), runs_dir=runs_dir, progress=progress))
    if session.loaded.fingerprint != study.fingerprint:
        raise StudyError(
            f"the model {study.model} has changed since study {study.name}",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=study.fingerprint,
            hint="Search again, or bring back the weights of that time.",
        )
    return session
