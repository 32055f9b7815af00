"""What each verb is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.paths import located
from autocompress.requests.base import Allowed, Request, any_of, at_least, option, request, setting
from autocompress.requests.groups import (
    CALIBRATION_HELP,
    DATA_HELP,
    NATIVE,
    QUALITY_HELP,
    REPORT_HELP,
    RUNS_DIR,
    SELECTION_HELP,
    TARGET_HELP,
    ChoiceRequest,
    DeviceRequest,
    EngineRequest,
    FolderRequest,
    LoadRequest,
    SessionRequest,
    StoppingRequest,
    StudyRequest,
    ToldRequest,
    TrackRequest,
    WindowRequest,
)
from autocompress.requests.healing import HealSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from autocompress.methods.plan import Plan
    from autocompress.studies.study import StudyRecord
    from autocompress.surgery.loading import LoadedModel

    Content = str | Sequence[str] | Tensor

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")
REPORT_TOKENS = 24_576  # as many as a thorough search measures its final figures on
IN_PYTHON = "In Python also a list of texts, or token ids [tokens] or [windows, tokens]."
STUDY_OR_FOLDER = "A study, by default the latest, or a folder that export wrote."
FIT_ALL_HELP = (
    "Fit every option of every matrix. Otherwise most are predicted by fits to similar matrices, "
    "and fitted when a plan takes them."
)


@request
class FinishRequest(Request):
    """What is done with the plans that a search has found."""

    heal: int | None = option(
        default=None,
        help="Steps to train the weights of each plan on the front for, after the search; 0 "
        "refits the matrices of each.",
        typed=int,
        metavar="STEPS",
        free=True,
    )
    heal_data: str | None = option(
        default=None,
        help="Text to heal the front on; the calibration text when left out.",
        free=True,
    )
    refit: bool = option(
        default=True,
        help="Refit each matrix of the best plan at the end, on what the compressed "
        "matrices before it give, if --time is left.",
        free=True,
    )


@request
class NamedStudyRequest(StudyRequest):
    """The study of a search."""

    study: str | None = option(
        default=None, help="Name of the study; made up from model and budget when left out."
    )
    resume: str | None = option(
        default=None,
        help="Study to go on with, by its own settings.",
        metavar="STUDY",
        free=True,
    )


@request
class SearchRequest(
    SessionRequest,
    ChoiceRequest,
    StoppingRequest,
    FinishRequest,
    EngineRequest,
    NamedStudyRequest,
    TrackRequest,
):
    """What ``search`` is asked."""

    budget: str | None = option(
        default=None, help="Most bytes of the stored model: 10x, 25%, 1.6MB, 2GiB.", kw_only=False
    )
    latency: str | None = option(
        default=None,
        help="Most time for a decoded token at batch 1: 6ms, or 0.8x of dense.",
        kw_only=False,
    )
    quality: str | None = option(default=None, help=QUALITY_HELP)
    fit_all: bool = option(default=False, help=FIT_ALL_HELP)
    sampler: str = option(
        default="auto",
        help="Sampler that proposes plans: auto, tpe, nsga2, gp or random.",
        check=any_of(*SAMPLERS),
    )

    def located(self) -> SearchRequest:
        """The same with the paths of local files and folders made absolute."""
        return replace(
            super().located(),
            model=located(self.model, Path.is_dir),
            space=located(self.space, Path.is_file) or self.space,
            runs_dir=Path(self.runs_dir).expanduser().absolute(),
        )


@request
class ProfileRequest(ChoiceRequest, SessionRequest):
    """What ``profile`` is asked."""

    model: str | None = option(
        default=None,
        help="Folder or hub name of a causal language model; else the bundled one.",
        argument=True,
        kw_only=False,
    )


@request
class CompressRequest(ChoiceRequest, WindowRequest, DeviceRequest, ToldRequest):
    """What ``compress`` is asked."""

    model: str | Path | PreTrainedModel | None = setting(
        default=None,
        help="A causal language model in memory, a folder or a hub name; else the bundled one.",
        kw_only=False,
    )
    recipe: str | Path | Mapping[str, Any] | Plan | None = option(
        default=None,
        help="A YAML file that says which layers are stored how; the others stay dense, or share "
        "what a --budget or the recipe's own leaves. In Python also its content, or a plan.",
        typed=Path,
        kw_only=False,
    )
    out: str | Path | None = setting(
        default=None,
        help="A folder to write as well; it is then loaded again in a fresh process and compared.",
        kw_only=False,
    )
    budget: str | None = option(
        default=None, help="Most bytes of each stored model: 4x, 25%, 1.6MB, 2GiB."
    )
    quality: str | None = option(default=None, help=QUALITY_HELP)
    fit_all: bool = option(default=False, help=FIT_ALL_HELP)
    data: str | None = option(default=None, help=DATA_HELP)
    calibration_data: Content | None = option(default=None, help=f"{CALIBRATION_HELP} {IN_PYTHON}")
    selection_data: Content | None = option(default=None, help=f"{SELECTION_HELP} {IN_PYTHON}")
    report_data: Content | None = option(default=None, help=f"{REPORT_HELP} {IN_PYTHON}")
    seed: int | None = option(
        default=None,
        help="Seed of the labels that the calibration draws, and of a recipe's random cores.",
        typed=int,
        shown="the recipe's own, or 0",
    )
    runs_dir: str | Path | None = option(
        default=RUNS_DIR,
        help="Folder of the cache, from which another budget takes seconds. In Python None keeps "
        "nothing.",
        typed=Path,
    )
    target: str = option(default=NATIVE, help=TARGET_HELP)
    overwrite: bool = option(default=False, help="Replace a model that is already there.")
    tokenizer: PreTrainedTokenizerBase | None = setting(
        default=None, help="Of a model in memory; not needed when the data are token ids."
    )
    inplace: bool = setting(
        default=False,
        help="Change the given model itself. By default it stays as it is, and what is returned is "
        "another model that shares with it the tensors that are not compressed. A model that is "
        "loaded by name is nobody else's, and is always changed itself.",
    )
    measure: bool = setting(
        default=True,
        help="Measure perplexity before and after; always when a folder is written.",
    )


@request
class EvaluateRequest(DeviceRequest, ToldRequest):
    """What ``evaluate`` is asked."""

    model: str | LoadedModel | None = option(
        default=None,
        help="Folder (dense or exported) or hub name; without it the bundled model.",
        argument=True,
        kw_only=False,
    )
    data: str | None = option(
        default=None,
        help="Text file, hub/name:config:split or bundled; else, of an exported folder, the "
        "report text that it was made with. Any other model needs one. With --tasks and without "
        "--data or --against no text is scored.",
    )
    part: str | None = option(
        default=None,
        help="Part of the text to score, as search cuts it: calibration, selection or report.",
        check=any_of("calibration", "selection", "report"),
    )
    tokens: int = option(
        default=REPORT_TOKENS,
        help="Most tokens to score, from the start of the text.",
        check=at_least(2),
    )
    context: int | None = option(
        default=None,
        help="Tokens of a window of text, at most the model's context.",
        typed=int,
        check=at_least(2),
        shown="2048, or as an exported folder was made",
    )
    bos: bool | None = option(
        default=None,
        help="Start each window with the begin token that the tokenizer puts before a text.",
        typed=bool,
        flags="--bos/--no-bos",
        shown="bos, or as an exported folder was made",
    )
    against: str | LoadedModel | None = option(
        default=None,
        help="Dense model to measure the KL divergence from, and to compare the speed with.",
    )
    tasks: str | Sequence[str] = option(
        default=(), help="Names of lm-eval tasks, groups or tags, with commas between.", typed=str
    )
    task_folder: str | Path | None = option(
        default=None, help="Folder of your own lm-eval task files."
    )
    limit: int | None = option(
        default=None, help="Examples of each task; all when left out.", typed=int, check=at_least(1)
    )
    speed: bool = option(
        default=False,
        help="Measure time and memory, in turn with the dense model: --against, or what an "
        "exported folder was made from.",
    )


@request
class AttributeRequest(FolderRequest):
    """What ``attribute`` is asked."""

    source: str | Path | StudyRecord | None = option(
        default=None, help=STUDY_OR_FOLDER, argument=True, metavar="STUDY|FOLDER", kw_only=False
    )
    by: str | Sequence[str] = option(
        default="method,part,depth",
        help="Groupings of the matrices, with commas: method, part (attention, mlp), depth "
        "(thirds), role, block, layer.",
    )


@request
class HealRequest(HealSettings, FolderRequest):
    """What ``heal`` is asked."""

    study: str | Path | StudyRecord | None = option(
        default=None, help=STUDY_OR_FOLDER, argument=True, metavar="STUDY|FOLDER", kw_only=False
    )
    data: str | None = option(
        default=None,
        help="Text to train on. For a study it is the calibration text when left out. For a "
        "folder it is cut into three parts, to train, to watch progress and to report "
        "on, and is the texts that the folder was made with when left out.",
    )
    penalty: str | Path | None = option(
        default=None,
        help='Recipe whose penalty: entries push ranks down, such as [{layers: "*.mlp.*", '
        "kind: renyi, alpha: 0.5, weight: 0.01}]. A folder's own recipe is taken when "
        "left out; none asks for no penalty.",
        typed=Path,
        metavar="RECIPE",
    )
    checkpoint: str | Path | None = option(
        default=None, help="File to keep progress in; else one in the run folder.", typed=Path
    )
    out: str | Path | None = option(
        default=None,
        help="Folder to write the healed model to; it must be named for a folder.",
        typed=Path,
    )
    overwrite: bool = option(default=False, help="Replace a model that is already in --out.")


@request
class ExportRequest(StudyRequest, ToldRequest):
    """What ``export`` is asked."""

    study: str | StudyRecord | None = option(
        default=None,
        help="Name of the study; the latest when left out.",
        argument=True,
        kw_only=False,
    )
    out: str | Path = option(help="The folder to write.", typed=Path)
    trial: str | int = option(
        default="best",
        help="Trial to take: best, knee, smallest, fastest, or its number.",
        typed=str,
    )
    overwrite: bool = option(default=False, help="Replace a model that is already there.")


@request
class FrontRequest(StudyRequest):
    """What ``front`` is asked."""

    study: str | None = option(
        default=None,
        help="Name of the study; the latest when left out.",
        argument=True,
        kw_only=False,
    )
    pick: str | None = option(
        default=None,
        help="Trial to take: best, knee, smallest, fastest, or its number.",
        shown="best",
    )
    max_size: str | None = option(
        default=None, help="Most bytes of the trial to pick: 2MB, 10x or 25%."
    )
    max_perplexity: float | None = option(
        default=None,
        help="Most perplexity of the trial to pick, as in the table.",
        typed=float,
        check=Allowed(lambda value: value > 0, "more than 0", "{} is too low"),
    )
    max_latency: str | None = option(
        default=None, help="Most time for a token of the trial to pick: 6ms or 0.8x."
    )
    budget: str | None = option(
        default=None,
        help="Budget of another plan, which is allocated from what the study measured: 7x, 2MB.",
    )
    quality: str | None = option(default=None, help=QUALITY_HELP)
    methods: bool = option(
        default=False, help="Say what each method is good for, and what beats it."
    )


@request
class ValidateRequest(LoadRequest):
    """What ``validate`` is asked."""

    file: str = option(
        help="A search space or recipe, or the name of a search space of the package.",
        argument=True,
    )
    model: str | None = option(
        default=None,
        help="Model to check against: a folder or hub name. Without it, a space is tried on the "
        "bundled model.",
    )
