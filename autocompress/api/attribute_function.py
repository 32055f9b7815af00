"""``autocompress.attribute``, with the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.api.attributing import Attributed, attribute_plan, attribute_trial
from autocompress.api.exported_folder import folder_of, open_folder, refuse_options
from autocompress.driver.study_choice import Destination
from autocompress.errors import StorageError
from autocompress.judging.attribution import USUAL_GROUPINGS
from autocompress.progress import SILENT, Progress
from autocompress.studies.study import StudyRecord
from autocompress.tracking.attribution_run import log_attribution
from autocompress.tracking.mlflow_mirror import check_tracking


def attribute(
    source: str | Path | StudyRecord | None = None,
    *,
    trial: str | int | None = None,
    by: Sequence[str] = USUAL_GROUPINGS,
    model: str | None = None,
    data: str | None = None,
    context: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
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
        data: of a folder: source of text, cut into three parts as in a search; the texts that it
            was made with when left out.
        context: of a folder: tokens of a window of text; as when it was made when left out.
        device: of a folder: where the model runs; ``cpu`` when left out.
        trust_remote_code: of a folder: let code that comes with a hub model run.
        runs_dir: folder of run folders and of the cache; a record knows its own.
        storage: of a study: URL of its storage, when it is not in the run folder.
        track: of a study: add it to the trial's run in MLflow.
        tracking_uri: of a study: MLflow's store; what MLflow itself would choose when left out.
        progress: told how far things are.

    Raises:
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    folder = folder_of(source)
    if folder is not None:
        refuse_options(
            f"the folder {folder}", trial=trial, storage=storage, tracking_uri=tracking_uri
        )
        opened = open_folder(
            folder,
            model=model,
            data=data,
            context=context,
            runs_dir=Path(runs_dir),
            device=device or "cpu",
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        return attribute_plan(
            opened.session, opened.plan, str(folder), numbers=opened.numbers, by=by
        )
    refuse_options(
        "a study, which has its own",
        model=model,
        context=context,
        data=data,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    check_tracking(track, tracking_uri)
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
