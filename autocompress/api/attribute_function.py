"""``autocompress.attribute``, with the words of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autocompress.api.attributing import Attributed, attribute_folder, attribute_trial
from autocompress.api.study_choice import Destination
from autocompress.errors import ConfigurationError, StorageError
from autocompress.progress import SILENT, Progress
from autocompress.search.attribution import USUAL_GROUPINGS
from autocompress.search.study import StudyRecord
from autocompress.tracking.attribution_run import log_attribution


def attribute(
    source: str | Path | StudyRecord | None = None,
    *,
    trial: str | int | None = None,
    by: Sequence[str] = USUAL_GROUPINGS,
    model: str | None = None,
    data: str | None = None,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    track: bool = True,
    tracking_uri: str | None = None,
    progress: Progress = SILENT,
) -> Attributed:
    """Say what each group of matrices of a compressed model saves and harms.

    One group at a time is put back to dense, and the rest is scored again on the selection text.

    Args:
        source: name or record of a study, the latest when left out; or an exported folder.
        trial: of a study: ``best`` when left out, ``knee``, ``smallest``, ``fastest`` or a number.
        by: how matrices are grouped: ``method``, ``part``, ``depth``, ``role``, ``block``,
            ``layer``.
        model: of a folder: the dense model, when it is not where its recipe says.
        data: of a folder: source of text, cut into three parts as in a search; the bundled texts
            when left out.
        runs_dir: folder of run folders and of the cache; a record knows its own.
        storage: URL of a study's storage, when it is not in the run folder.
        track: add it to the trial's run in MLflow.
        tracking_uri: MLflow's store; what MLflow itself would choose when left out.
        progress: told how far things are.

    Raises:
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    if isinstance(source, str | Path) and (Path(source) / "config.json").is_file():
        _refuse(f"the folder {source}", {"trial": trial, "storage": storage})
        return attribute_folder(
            Path(source), by=by, model=model, data=data, runs_dir=Path(runs_dir), progress=progress
        )
    _refuse("a study, which has its own", {"model": model, "data": data})
    name = str(source) if isinstance(source, Path) else source
    destination = Destination.of(name, runs_dir, storage)
    chosen = "best" if trial is None else str(trial)
    found, study, of = attribute_trial(destination, trial=chosen, by=by, progress=progress)
    if track:
        try:
            place = log_attribution(study, of, found.attribution, tracking_uri)
        except StorageError as error:
            if tracking_uri is not None:  # only a store that was asked for by name must be there
                raise
            progress.note(str(error))
        else:
            progress.note(f"Logged to {place}")
    return found


def _refuse(what: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigurationError(f"--{option} does not go with {what}", got=value)
