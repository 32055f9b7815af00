"""``autocompress.heal``, with the words of the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autocompress.api.exported_folder import (
    OpenedFolder,
    folder_of,
    open_folder,
    refuse_options,
)
from autocompress.api.exporting import export_trial
from autocompress.api.healing_folder import heal_folder, place_for
from autocompress.deploy.folder import check_free
from autocompress.driver.healing import heal_trial, refuse_idle
from autocompress.driver.healing_report import HealingReport
from autocompress.driver.study_choice import Destination
from autocompress.errors import ConfigurationError
from autocompress.methods.penalties import Penalty
from autocompress.progress import Progress
from autocompress.requests.base import verb
from autocompress.requests.healing import HealSettings
from autocompress.requests.verbs import HealRequest
from autocompress.space.document import read_document
from autocompress.space.recipe_file import read_recipe
from autocompress.tracking.mlflow_mirror import mirrored

NO_PENALTY = "none"


@verb(HealRequest)
def heal(request: HealRequest) -> HealingReport:
    """Train the stored weights of a compressed model to predict what the dense one predicts.

    A healed trial becomes a further trial of its study; a folder is healed into another.

    Raises:
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    if request.out is None and request.overwrite:
        refuse_options("no --out to write to", overwrite=True)
    penalties = request.penalties
    if request.penalty is not None and str(request.penalty) != NO_PENALTY:
        penalties = _penalties_of(Path(request.penalty))
    settings = request.into(HealSettings, penalties=penalties)
    checkpoint = None if request.checkpoint is None else Path(request.checkpoint)
    folder = folder_of(request.study)
    if folder is not None:
        return _heal_folder(folder, request, settings, checkpoint)
    refuse_options("a study, which has its own", **request.of_a_folder())
    destination = Destination.of(request.study, request)
    if request.out is not None:
        check_free(Path(request.out), request.overwrite)
    progress = request.progress
    with mirrored(request.track, request.tracking_uri, progress) as observers:
        healed = heal_trial(
            destination,
            str(request.trial or "best"),
            settings,
            data=request.data,
            checkpoint=checkpoint,
            observers=observers,
            progress=progress,
        )
    if request.out is None:
        return healed
    exported = export_trial(
        destination,
        Path(request.out),
        trial=str(healed.trial),
        overwrite=request.overwrite,
        progress=progress,
    )
    return replace(healed, exported=exported)


def _heal_folder(
    folder: Path, request: HealRequest, settings: HealSettings, checkpoint: Path | None
) -> HealingReport:
    what = f"the folder {folder}"
    refuse_options(what, **request.of_a_study())
    refuse_idle(settings, what, fitted_for_good=True)
    settings = replace(settings, refit=False)  # only stored weights are left to go on from
    out = None if request.out is None else Path(request.out)
    place = place_for(folder, out, request.overwrite)
    opened = open_folder(folder, request)
    if request.penalty is None and not settings.penalties and settings.steps:
        settings = _with_own_penalties(settings, opened, request.progress)
    return heal_folder(
        opened,
        place,
        settings,
        runs_dir=Path(request.runs_dir),
        checkpoint=checkpoint,
        overwrite=request.overwrite,
    )


def _with_own_penalties(
    settings: HealSettings, opened: OpenedFolder, progress: Progress
) -> HealSettings:
    """The settings with the penalties of the folder's recipe, if it has any."""
    if not opened.penalties:
        return settings
    progress.note(
        f"The recipe of {opened.path} asks for a penalty of "
        f"{', '.join(map(str, opened.penalties))}; --penalty none heals without."
    )
    return replace(settings, penalties=opened.penalties)


def _penalties_of(path: Path) -> tuple[Penalty, ...]:
    penalties = read_recipe(read_document(path.expanduser())).penalties
    if not penalties:
        raise ConfigurationError(
            f"--penalty: the recipe {path} has no penalty: entries",
            wanted='for example  penalty: [{layers: "*.mlp.*", kind: renyi, alpha: 0.5, '
            "weight: 0.01}]  beside its layers:",
            hint="Its kinds are renyi and shannon; without a penalty leave --penalty out.",
        )
    return penalties
