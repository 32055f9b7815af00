"""The functions of the Python API, with the words of the command line."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocompress.api.compressing import Wish, compress_session
from autocompress.api.exporting import Exported, export_trial
from autocompress.api.in_memory import Content, kept_in, own_content, session_in_memory
from autocompress.api.profiling import Profile, make_profile
from autocompress.api.report import Compressed
from autocompress.api.searching import Destination, SearchSettings, resume_search, run_search
from autocompress.api.session import TextSettings, open_session
from autocompress.api.target import RecipeSource, read_target
from autocompress.errors import ConfigurationError
from autocompress.export.folder import check_free
from autocompress.progress import SILENT, Progress
from autocompress.search.study import StudyRecord
from autocompress.search.study_store import read_study
from autocompress.tracking.mlflow_mirror import MlflowMirror

logger = logging.getLogger(__name__)


def search(
    model: str | None = None,
    budget: str | None = None,
    latency: str | None = None,
    *,
    space: str = "default",
    trials: int | None = None,
    time: str | float | None = None,
    sampler: str = "auto",
    seed: int = 0,
    data: str | None = None,
    calibration_data: str | None = None,
    selection_data: str | None = None,
    report_data: str | None = None,
    study: str | None = None,
    resume: str | None = None,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    track: bool = True,
    tracking_uri: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    texts: TextSettings | None = None,
    progress: Progress = SILENT,
) -> StudyRecord:
    """Search for the front of plans between quality, memory and latency, and return the study.

    Args:
        model: folder or hub name of a causal language model; the bundled one when left out.
        budget: most bytes of the stored model: ``10x``, ``25%``, ``1.6MB``; no limit when left out.
        latency: most time for one decoded token at batch 1: ``6ms``, or ``0.8x`` of the dense
            model's.
        space: a search space by name, or the path of a YAML file.
        trials: trials in all, hand-written plans included.
        time: start no trial after so long: ``10m``, or seconds.
        sampler: ``auto``, ``tpe``, ``nsga2``, ``gp`` or ``random``.
        seed: of the calibration's labels and the sampler.
        data: one source of text (a file, or ``hub/name:config:split``), cut into three disjoint
            parts.
        calibration_data: source of the text that statistics are collected on.
        selection_data: source of the text that trials are scored on.
        report_data: source of the text that the final figures are measured on.
        study: name of the study; made up from model and budget when left out. The same name and
            settings go on.
        resume: name of a study to go on with, by its own settings; the other settings are then not
            looked at.
        runs_dir: folder of run folders and of the cache.
        storage: URL of Optuna's storage; a SQLite file in the run folder when left out.
        track: mirror the study into MLflow.
        tracking_uri: MLflow's store; what MLflow itself would choose when left out.
        device: where the model runs.
        dtype: type to load the model in; as stored when left out.
        trust_remote_code: let code that comes with a hub model run.
        texts: the sources and how many tokens of each, instead of the four sources above.
        progress: told how far things are.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget.
        ConfigurationError: ``texts`` and one of the four sources.
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    mirror = MlflowMirror(tracking_uri) if track else None
    observers = [mirror] if mirror else []
    try:
        if resume is not None:
            destination = Destination(resume, Path(runs_dir), storage)
            return resume_search(
                destination, trials=trials, time=time, observers=observers, progress=progress
            )
        settings = SearchSettings(
            model,
            budget,
            latency,
            space,
            sampler,
            seed,
            device,
            dtype,
            trust_remote_code,
            _one_of(texts, TextSettings(data, calibration_data, selection_data, report_data)),
        )
        destination = Destination(study, Path(runs_dir), storage)
        return run_search(
            settings, destination, trials=trials, time=time, observers=observers, progress=progress
        )
    finally:
        for warning in mirror.close() if mirror else []:
            progress.note(warning)
            logger.warning(warning)


def _one_of(texts: TextSettings | None, sources: TextSettings) -> TextSettings:
    """The settings of the texts, where not both they and sources are given."""
    if texts is None:
        return sources
    names = [field.name for field in fields(sources)]
    named = [name for name in names if name.endswith("data") and getattr(sources, name) is not None]
    if named:
        raise ConfigurationError(
            "the texts are named twice",
            got=f"texts and {', '.join(named)}",
            wanted="one of them",
            hint=f"Put the sources into texts: TextSettings({named[0]}=...).",
        )
    return texts


def profile(
    model: str | None = None,
    *,
    space: str = "default",
    data: str | None = None,
    calibration_data: str | None = None,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> Profile:
    """Measure how sensitive each matrix of a model is to each option of a space.

    The arguments mean what they do in ``search``.
    """
    texts = TextSettings(data, calibration_data)
    return make_profile(
        model,
        texts,
        space,
        Path(runs_dir),
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=progress,
        seed=seed,
    )


def front(
    study: str | None = None, *, runs_dir: str | Path = "runs", storage: str | None = None
) -> StudyRecord:
    """Read a study as it stands, the latest when none is named.

    ``autocompress.search.front`` has what to do with it: ``front_of``, ``pick``, ``front_to_dict``.

    Raises:
        StudyError: no such study.
    """
    return read_study(study, Path(runs_dir), storage)


def export(
    study: str | StudyRecord | None = None,
    *,
    out: str | Path,
    trial: str | int = "best",
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write a trial of a study as a model folder that loads elsewhere.

    See ``export_trial`` for what is raised.

    Args:
        study: its name or its record; the latest when left out.
        out: the folder to write.
        trial: ``best``, ``knee``, ``smallest``, ``fastest`` or the number of a trial.
        runs_dir: folder of run folders; a record knows its own.
        storage: URL of Optuna's storage, when it is not in the run folder.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.
    """
    name, folder = (
        (study.name, study.folder.parent)
        if isinstance(study, StudyRecord)
        else (study, Path(runs_dir))
    )
    destination = Destination(name, folder, storage)
    return export_trial(
        destination, Path(out), trial=str(trial), overwrite=overwrite, progress=progress
    )


def compress(
    model: str | PreTrainedModel | None = None,
    recipe: RecipeSource | None = None,
    out: str | Path | None = None,
    *,
    budget: str | None = None,
    space: str = "default",
    tokenizer: PreTrainedTokenizerBase | None = None,
    inplace: bool = False,
    measure: bool = True,
    data: str | None = None,
    calibration_data: Content | None = None,
    report_data: Content | None = None,
    texts: TextSettings | None = None,
    seed: int = 0,
    runs_dir: str | Path | None = "runs",
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Compressed:
    """Compress a model to a budget, or by a recipe, without a search.

    ``model, report = autocompress.compress(model, budget="4x", tokenizer=tokenizer)``

    Under a budget the plan is one exact allocation, corrected once by what each layer costs inside
    the compressed model; a search tries many more.

    Args:
        model: a causal language model in memory, or a folder or hub name of one; the bundled one
            when left out.
        recipe: a file, its content as a mapping, or a plan.
        out: a folder to write as well; it is then loaded again in a fresh process and compared.
        budget: most bytes of the stored model: ``4x``, ``25%``, ``1.6MB``.
        space: what may be chosen from under a budget: a search space by name, or a YAML file.
        tokenizer: of a model in memory; not needed when the data are token ids.
        inplace: change the given model itself. By default it stays as it is, and what is returned
            is another model that shares with it the tensors that are not compressed. A model that
            is loaded by name is nobody else's, and is always changed itself.
        measure: measure perplexity before and after on the report text; always when ``out`` is
            given.
        data: one source of text, cut into three disjoint parts; see ``search``.
        calibration_data: what to calibrate on: a source of text, a list of texts, or token ids
            ``[tokens]`` or ``[windows, tokens]``, read as one sequence; the bundled text when left
            out.
        report_data: what to measure perplexity on, likewise.
        texts: the sources and how many tokens of each, instead of sources by name.
        seed: of the calibration's labels.
        runs_dir: folder of the cache, from which another budget takes seconds; ``None`` keeps
            nothing.
        device: where to load a model by name; ``cpu`` when left out.
        dtype: type to load a model by name in; as stored when left out.
        trust_remote_code: let code that comes with a hub model run.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.

    Returns:
        The compressed model in evaluation mode, and the report: plan, bytes, predicted damage,
        perplexities, layers. ``print(report)`` sums it up.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget; the message says what can be
            reached.
        RecipeError: the recipe is malformed or belongs to another model.
        ModelError: the model cannot be loaded, has no weights, or is compressed already.
        DataError: a text that cannot be used, or texts without a tokenizer.
        ConfigurationError: recipe and budget both or neither; ``out`` in use.
        StorageError: ``out`` cannot be written, or does not load as what was measured.
    """
    target = read_target(recipe, budget, space)
    wish = Wish(None if out is None else Path(out), overwrite, measure, inplace)
    if wish.out is not None:
        check_free(wish.out, overwrite)
    named, own = own_content({"calibration": calibration_data, "report": report_data})
    sources = TextSettings(data, named.get("calibration"), None, named.get("report"))
    settings = _one_of(texts, sources)
    with kept_in(runs_dir) as folder:
        if isinstance(model, PreTrainedModel):
            _refuse(
                "the model is loaded already",
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
            if wish.out is not None and tokenizer is None:
                raise ConfigurationError(
                    "a folder is to be written without a tokenizer",
                    wanted="tokenizer=, which goes into the folder with the model",
                    hint="Or write the model alone: model.save_pretrained(folder).",
                )
            with session_in_memory(
                model, tokenizer, settings, own, folder, progress=progress, seed=seed
            ) as session:
                return compress_session(session, target, wish)
        if not isinstance(model, str | Path | None):
            raise ConfigurationError(
                "this is no model to compress",
                got=type(model).__name__,
                wanted="a transformers PreTrainedModel, a folder, or a name on the hub",
            )
        _refuse("the tokenizer comes with a model by name", tokenizer=tokenizer)
        session = open_session(
            None if model is None else str(model),
            settings,
            folder,
            device=device or "cpu",
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=progress,
            seed=seed,
            own=own,
        )
        return compress_session(session, target, replace(wish, inplace=True))


def _refuse(reason: str, **given: object) -> None:
    """Refuse arguments that would have no effect."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigurationError(reason, got=f"{', '.join(named)}=", hint="Leave it out.")
