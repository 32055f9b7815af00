"""The functions of the Python API, with the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.api.exporting import export_trial
from autocompress.api.profiling import make_profile
from autocompress.calibration.profile import Profile
from autocompress.deploy.exported import Exported
from autocompress.driver.endurance import Endurance
from autocompress.driver.engines.choosing import EngineSettings
from autocompress.driver.finish import Finish
from autocompress.driver.going_on import given_settings, refuse_other_settings
from autocompress.driver.searching import resume_search, run_search
from autocompress.driver.study_choice import Destination, SearchSettings
from autocompress.progress import SILENT, Progress
from autocompress.session.efforts import NORMAL
from autocompress.session.session import TextSettings, named_texts, one_of
from autocompress.space.selection import Selection
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import read_study
from autocompress.tracking.mlflow_mirror import mirrored


def search(
    model: str | None = None,
    budget: str | None = None,
    latency: str | None = None,
    *,
    quality: str | None = None,
    effort: str = NORMAL,
    fit_all: bool = False,
    space: str = "default",
    methods: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    keep: str | Sequence[str] | None = None,
    unreached: str = "keep",
    trials: int | None = None,
    time: str | float | None = None,
    patience: int | None = None,
    engine: str = "local",
    workers: int = 1,
    address: str | None = None,
    gpus_per_trial: float = 0.0,
    heal: int | None = None,
    heal_data: str | None = None,
    refit: bool = True,
    sampler: str = "auto",
    seed: int = 0,
    data: str | None = None,
    calibration_data: str | None = None,
    selection_data: str | None = None,
    report_data: str | None = None,
    context: int | None = None,
    bos: bool = True,
    study: str | None = None,
    resume: str | None = None,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    track: bool = True,
    tracking_uri: str | None = None,
    device: str = "cpu",
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    texts: TextSettings | None = None,
    progress: Progress = SILENT,
) -> StudyRecord:
    """Search for the front of plans between quality, memory and latency, and return the study.

    Args:
        model: folder or hub name of a causal language model; the bundled one when left out.
        budget: most bytes of the stored model: ``10x``, ``25%``, ``1.6MB``; no limit when left out.
        latency: most time for one decoded token at batch 1: ``6ms``, or ``0.8x`` of the dense
            model's.
        quality: what is to be kept by the smallest plan, which is then sought: perplexity at most
            ``5%`` above the dense model's, log-perplexity at most ``0.02`` nats above it, or
            ``cosine 0.9``, the least mean cosine between the hidden states before the head and the
            dense model's. Kept on the selection text, and confirmed on the report text.
        effort: ``quick`` (one allocation, and five points of the front measured), ``normal`` or
            ``thorough``: tokens, trials, and how much is fitted.
        fit_all: fit every option of every matrix, beside those that plans take.
        space: a search space by name, or the path of a YAML file.
        methods: names of the methods of the space that may be used; all when left out. A matrix may
            still stay as it is, where the space lets it.
        layers: globs over the names of matrices: no others are compressed.
        keep: globs over the matrices that stay as they are.
        unreached: what becomes of matrices that the calibration text never reaches, of which no
            loss increase is known: ``keep`` them dense, or ``8bit``.
        trials: trials in all, hand-written plans included; as many as the effort says when left
            out.
        time: end after so long, with the front measured on the report text: ``10m``, or seconds.
        patience: end after so many searched trials in a row without the front growing.
        engine: what runs the trials: ``local`` (this process, or worker processes), or ``ray``.
        workers: trials at a time.
        address: of a Ray cluster that this machine is a node of, ``host:port`` or ``auto``; a Ray
            of its own when left out.
        gpus_per_trial: that Ray sets aside for each trial.
        heal: steps of training for each member of the front at the end; none when left out.
        heal_data: text to heal on; the calibration text when left out.
        refit: fit the matrices of the best plan anew, to what the compressed model gives each;
            where the front is healed, of each of its plans.
        sampler: ``auto``, ``tpe``, ``nsga2``, ``gp`` or ``random``.
        seed: of the calibration's labels and the sampler.
        data: one source of text (a file, or ``hub/name:config:split``), cut into three disjoint
            parts; ``bundled`` for the texts that come with autocompress, which only the bundled
            model takes unasked.
        calibration_data: source of the text that statistics are collected on.
        selection_data: source of the text that trials are scored on.
        report_data: source of the text that the final figures are measured on.
        context: tokens of a window of text; as many as the model's context, at most 2048, when left
            out.
        bos: start each window with what the tokenizer puts before a text, such as a begin token.
        study: name of the study; made up from model and budget when left out. The same name and
            settings go on.
        resume: name of a study to go on with, by its own settings; others are refused beside it.
        runs_dir: folder of run folders and of the cache.
        storage: URL of Optuna's storage; a SQLite file in the run folder when left out.
        track: mirror the study into MLflow.
        tracking_uri: MLflow's store; what MLflow itself would choose when left out.
        device: where the model runs.
        compute_dtype: torch name of the floating-point type that the model computes in; when left
            out, the stored one or float32, whichever is faster here.
        trust_remote_code: let code that comes with a hub model run.
        dequantize: let transformers make a quantized checkpoint dense; bytes count from that.
        texts: the sources and how many tokens of each, instead of the sources, context and bos.
        progress: told how far things are.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget.
        ConfigurationError: ``texts`` and one of these; or beside ``resume`` a setting that is not
            the study's.
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    endurance = Endurance(trials, time, patience)
    where = EngineSettings(engine, workers, address, gpus_per_trial)
    finish = Finish.of(heal, heal_data, refit=refit, seed=seed)
    settings = SearchSettings(
        model,
        budget,
        latency,
        space,
        sampler,
        seed,
        device,
        compute_dtype,
        trust_remote_code,
        one_of(
            texts,
            named_texts(
                *(data, calibration_data, selection_data, report_data),
                context=context,
                bos=bos,
                effort=effort,
            ),
        ),
        Selection.of(methods, layers, keep),
        quality,
        dequantize,
        unreached=unreached,
        effort=effort,
        fit_all=fit_all,
    )
    if resume is not None:
        given = given_settings(settings) | ({} if study is None else {"study": study})
        refuse_other_settings(read_study(resume, Path(runs_dir), storage), given)
    with mirrored(track, tracking_uri, progress) as observers:
        if resume is not None:
            destination = Destination(resume, Path(runs_dir), storage)
            return resume_search(
                destination,
                endurance,
                where,
                finish=finish,
                observers=observers,
                progress=progress,
            )
        destination = Destination(study, Path(runs_dir), storage)
        return run_search(
            settings,
            destination,
            endurance,
            where,
            finish=finish,
            observers=observers,
            progress=progress,
        )


def profile(
    model: str | None = None,
    *,
    space: str = "default",
    methods: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    keep: str | Sequence[str] | None = None,
    unreached: str = "keep",
    data: str | None = None,
    calibration_data: str | None = None,
    context: int | None = None,
    bos: bool = True,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    device: str = "cpu",
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    progress: Progress = SILENT,
) -> Profile:
    """Measure how sensitive each matrix of a model is to each option of a space.

    The arguments mean what they do in ``search``.
    """
    texts = named_texts(data, calibration_data, context=context, bos=bos)
    return make_profile(
        model,
        texts,
        space,
        Path(runs_dir),
        selection=Selection.of(methods, layers, keep),
        device=device,
        compute_dtype=compute_dtype,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
        progress=progress,
        seed=seed,
        unreached=unreached,
    )


def front(
    study: str | None = None, *, runs_dir: str | Path = "runs", storage: str | None = None
) -> StudyRecord:
    """Read a study as it stands, the latest when none is named.

    ``autocompress.judging`` has what to do with it: ``front.front_of``, ``picking.pick``.

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
    return export_trial(
        Destination.of(study, runs_dir, storage),
        Path(out),
        trial=str(trial),
        overwrite=overwrite,
        progress=progress,
    )
