"""The functions of the Python API that have no module of their own."""

from __future__ import annotations

from pathlib import Path

from autocompress.api.exporting import export_trial
from autocompress.api.profiling import make_profile
from autocompress.api.study import Study
from autocompress.calibration.profile import Profile
from autocompress.deploy.exported import Exported
from autocompress.driver.going_on import refuse_other_settings
from autocompress.driver.searching import run_search
from autocompress.driver.study_choice import Destination
from autocompress.requests.base import verb
from autocompress.requests.verbs import (
    ExportRequest,
    ProfileRequest,
    SearchRequest,
)
from autocompress.studies.study_store import read_study
from autocompress.tracking.mlflow_mirror import mirrored


@verb(SearchRequest)
def search(request: SearchRequest) -> Study:
    """Search for the front of plans between quality, memory and latency, and return the study.

    Under a quality it seeks the smallest plan that keeps it, on the selection text, and confirms
    that on the report text.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget.
        ConfigurationError: beside ``resume`` a setting that is not the study's.
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    if request.resume is not None:
        study = read_study(request.resume, Path(request.runs_dir), request.storage)
        refuse_other_settings(study, request.changed())
    with mirrored(request.track, request.tracking_uri, request.progress) as observers:
        return Study.of(run_search(request, observers))


@verb(ProfileRequest)
def profile(request: ProfileRequest) -> Profile:
    """Measure how sensitive each matrix of a model is to each option of a space."""
    return make_profile(request)


def front(
    study: str | None = None, *, runs_dir: str | Path = "runs", storage: str | None = None
) -> Study:
    """Read a study as it stands, the latest when none is named.

    Raises:
        StudyError: no such study.
    """
    return Study.of(read_study(study, Path(runs_dir), storage))


@verb(ExportRequest)
def export(request: ExportRequest) -> Exported:
    """Write a trial of a study as a model folder that loads elsewhere.

    Raises:
        StudyError: no such study or trial, or its model has changed since.
        BudgetUnreachable: no trial is within the limits of the study.
        ConfigurationError: ``out`` is in use.
        StorageError: it cannot be written, or does not load as what was measured.
    """
    return export_trial(
        Destination.of(request.study, request),
        Path(request.out),
        trial=str(request.trial),
        overwrite=request.overwrite,
        progress=request.progress,
    )
