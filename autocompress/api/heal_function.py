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
from autocompress.healing.settings import HealSettings, Trained
from autocompress.methods.penalties import Penalty
from autocompress.progress import SILENT, Progress
from autocompress.space.document import read_document
from autocompress.space.recipe_file import read_recipe
from autocompress.studies.study import StudyRecord
from autocompress.tracking.mlflow_mirror import mirrored

NO_PENALTY = "none"


def heal(
    study: str | Path | StudyRecord | None = None,
    *,
    trial: str | int | None = None,
    steps: int = 300,
    data: str | None = None,
    context: int | None = None,
    tokens: int = 4096,
    tokens_at_once: int | None = None,
    rate: float = 0.01,
    train: Trained = "all",
    refit: bool = True,
    penalty: str | Path | None = None,
    shrink: float | None = None,
    align: float = 0.0,
    lm: float = 0.0,
    patience: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    track: bool = True,
    tracking_uri: str | None = None,
    progress: Progress = SILENT,
) -> HealingReport:
    """Train the stored numbers of a compressed model to predict what the dense one predicts.

    Args:
        study: name or record of a study, the latest when left out; or an exported folder.
        trial: of a study: ``best`` when left out, ``knee``, ``smallest``, ``fastest`` or a number.
        steps: of training; with 0 the matrices of a trial are only fitted anew.
        data: text to train on, the study's calibration text when left out. For a folder one source
            that is cut into three disjoint parts, to train, to watch progress and to report on;
            the texts that it was made with when left out.
        context: of a folder: tokens of a window of text; as when it was made when left out.
        tokens: of a step.
        tokens_at_once: of a pass; fewer take less memory.
        rate: highest learning rate, as a share of what is trained.
        train: ``all`` stored numbers, or ``factors``: all but codes.
        penalty: a recipe whose ``penalty:`` entries say what is asked of the ranks meanwhile; of a
            folder its own recipe's when left out, and ``none`` for no penalty.
        shrink: afterwards cut ranks where this share of a matrix's squared norm at most is lost.
        refit: first fit each matrix anew to what the compressed model gives it.
        align: share of the steps that train each block by itself first.
        lm: share of the language-model loss beside the divergence.
        patience: end after so many checks on the selection text without progress.
        seed: of the order of the text.
        checkpoint: file to keep progress in; one among the runs when left out.
        model: of a folder: the dense model that it was made from, if that is not where it was.
        device: of a folder: where the models run; ``cpu`` when left out.
        trust_remote_code: of a folder: let code that comes with a hub model run.
        out: folder to write the healed model to; must be given for a folder.
        overwrite: whether a model in ``out`` may be replaced.
        runs_dir: folder of run folders and of the cache; a record knows its own.
        storage: of a study: URL of its storage, when it is not in the run folder.
        track: of a study: mirror the healed trial into MLflow.
        tracking_uri: of a study: MLflow's store; what MLflow itself would choose when left out.
        progress: told how far things are.

    Raises:
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    settings = HealSettings(
        steps=steps,
        tokens=tokens,
        tokens_at_once=tokens_at_once,
        rate=rate,
        align=align,
        lm=lm,
        trained=train,
        patience=patience,
        seed=seed,
        penalties=()
        if penalty is None or str(penalty) == NO_PENALTY
        else _penalties_of(Path(penalty)),
        refit=refit,
        shrink=shrink,
    )
    kept = None if checkpoint is None else Path(checkpoint)
    written = None if out is None else Path(out)
    if written is None and overwrite:
        refuse_options("no --out to write to", overwrite=overwrite)
    folder = folder_of(study)
    if folder is not None:
        refuse_options(
            f"the folder {folder}", trial=trial, storage=storage, tracking_uri=tracking_uri
        )
        refuse_idle(settings, f"the folder {folder}", fitted_for_good=True)
        settings = replace(settings, refit=False)  # only stored numbers are left to go on from
        place = place_for(folder, written, overwrite)
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
        if penalty is None and steps:
            settings = _with_own_penalties(settings, opened, progress)
        return heal_folder(
            opened, place, settings, runs_dir=Path(runs_dir), checkpoint=kept, overwrite=overwrite
        )
    refuse_options(
        "a study, which has its own",
        model=model,
        context=context,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    destination = Destination.of(
        str(study) if isinstance(study, Path) else study, runs_dir, storage
    )
    if written is not None:
        check_free(written, overwrite)
    with mirrored(track, tracking_uri, progress) as observers:
        healed = heal_trial(
            destination,
            "best" if trial is None else str(trial),
            settings,
            data=data,
            checkpoint=kept,
            observers=observers,
            progress=progress,
        )
    if written is None:
        return healed
    exported = export_trial(
        destination, written, trial=str(healed.trial), overwrite=overwrite, progress=progress
    )
    return replace(healed, exported=exported)


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
