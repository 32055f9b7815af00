"""Settings that several verbs share, each said once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from autocompress.errors import ConfigurationError
from autocompress.paths import located
from autocompress.progress import SILENT, Progress
from autocompress.requests.base import Request, any_of, at_least, option, request, setting
from autocompress.requests.efforts import EFFORTS, NORMAL, EffortLevel, Tokens

DEFAULT_CONTEXT = 2048
RUNS_DIR = Path("runs")
NATIVE = "native"
TARGET_HELP = (
    "Runtime to compress for, which says what it opens and what that costs there: native, the "
    "folders that transformers opens with autocompress."
)
KEEP, EIGHT_BITS = "keep", "8bit"  # what becomes of matrices that no text reaches
Words = str | Sequence[str] | None  # one, several with commas between, or a list of such
SPACE_HELP = (
    "A search space: default, low_rank_only, quantize_only, attention_conservative, "
    "feed_forward_only, tensor_train_gentle, or a YAML file."
)
QUALITY_HELP = (
    "Quality that the smallest plan is to keep: perplexity at most 5% above dense, "
    "log-perplexity 0.02 nats above, or cosine 0.9 between the last hidden states "
    "and the dense model's."
)
DATA_HELP = (
    "One source of text, cut into three disjoint parts: a file, hub/name:config:split, or bundled "
    "for the texts that come with autocompress. For any model but the bundled one a text must be "
    "named."
)
CALIBRATION_HELP = "Source of the text to calibrate on."
SELECTION_HELP = "Source of the text that plans are chosen on."
REPORT_HELP = "Source of the text for the final figures."


@request
class ToldRequest(Request):
    """What tells how far things are."""

    progress: Progress = setting(default=SILENT, help="Told how far things are.")


@request
class PlaceRequest(Request):
    """Where runs are kept."""

    runs_dir: str | Path = option(
        default=RUNS_DIR, help="Folder of the runs and of the cache.", typed=Path, free=True
    )


@request
class StudyRequest(PlaceRequest):
    """Where a study is kept."""

    storage: str | None = option(
        default=None,
        help="Optuna storage: a URL or a .journal file; else SQLite in the run folder.",
        free=True,
    )


@request
class TrackRequest(Request):
    """What is sent to MLflow."""

    tracking_uri: str | None = option(
        default=None, help="MLflow's store or server; else MLflow's own default.", free=True
    )
    track: bool = option(default=True, help="Mirror what is done into MLflow.", free=True)


@request
class LoadRequest(Request):
    """What a model may be loaded from."""

    trust_remote_code: bool = option(default=False, help="Let code that comes with the model run.")
    dequantize: bool = option(
        default=False,
        help="Let transformers make a quantized checkpoint dense; bytes count from that.",
    )


@request
class DeviceRequest(LoadRequest):
    """How a model is loaded."""

    device: str = option(default="cpu", help="Device, as torch names it.")
    compute_dtype: str | None = option(
        default=None,
        help="Type that the model computes in: float32, bfloat16 or float16. Bytes count what the "
        "checkpoint stores.",
        shown="what is faster here: the stored type or float32",
    )


@request
class SourceRequest(Request):
    """The texts."""

    data: str | None = option(default=None, help=DATA_HELP)
    calibration_data: str | None = option(default=None, help=CALIBRATION_HELP)
    selection_data: str | None = option(default=None, help=SELECTION_HELP)
    report_data: str | None = option(default=None, help=REPORT_HELP)


@request
class WindowRequest(Request):
    """How much of the texts is used, and how they are cut."""

    effort: str = option(
        default=NORMAL,
        help="How much to do: quick, normal or thorough. It sets how many tokens are calibrated, "
        "selected and reported on, how much is fitted, and how many plans are measured.",
        check=any_of(*EFFORTS),
    )
    context: int | None = option(
        default=None,
        help="Tokens of a window of text, at most the model's context.",
        typed=int,
        check=at_least(2),
        shown=str(DEFAULT_CONTEXT),
    )
    bos: bool = option(
        default=True,
        help="Start each window with the begin token that the tokenizer puts before a text.",
    )
    calibration_tokens: int | None = option(
        default=None,
        help="Tokens to calibrate on.",
        typed=int,
        check=at_least(2),
        shown="by effort",
    )
    selection_tokens: int | None = option(
        default=None,
        help="Tokens that plans are scored on.",
        typed=int,
        check=at_least(2),
        shown="by effort",
    )
    report_tokens: int | None = option(
        default=None,
        help="Tokens that the final figures are measured on.",
        typed=int,
        check=at_least(2),
        shown="by effort",
    )
    pricing_tokens: int | None = option(
        default=None,
        help="Tokens of the calibration text to price options on inside a compressed model; 0 "
        "leaves it at predictions.",
        typed=int,
        check=at_least(0),
        shown="by effort",
    )
    refit_tokens: int | None = option(
        default=None,
        help="Tokens that the matrices of the best plan are refitted on.",
        typed=int,
        check=at_least(0),
        shown="by effort",
    )

    @property
    def level(self) -> EffortLevel:
        """How much the effort does."""
        return EFFORTS[self.effort]

    @property
    def tokens(self) -> Tokens:
        """How many tokens of the texts are used: as many as are named, else as the effort says."""
        named = {name: getattr(self, f"{name}_tokens") for name in vars(self.level.tokens)}
        return replace(self.level.tokens, **{name: n for name, n in named.items() if n is not None})

    @property
    def longest(self) -> int:
        """Tokens of the longest window that is wanted."""
        return DEFAULT_CONTEXT if self.context is None else self.context


@request
class TextRequest(SourceRequest, WindowRequest):
    """Which texts are used, and how much of them."""

    def located(self) -> Self:
        """The same with the paths of local files made absolute."""
        named = {name: getattr(self, name) for name in SourceRequest.__annotations__}
        paths: dict[str, Any] = {name: located(value) for name, value in named.items()}
        return replace(self, **paths)

    def texts(self) -> TextRequest:
        """The texts alone, with the numbers of tokens and the context filled in."""
        tokens = {f"{name}_tokens": number for name, number in vars(self.tokens).items()}
        return self.into(TextRequest, context=self.longest, **tokens)


@request
class SessionRequest(TextRequest, DeviceRequest, PlaceRequest, ToldRequest):
    """A model and its texts, ready to be compressed."""

    model: str | None = option(
        default=None,
        help="Folder or hub name of a causal language model; else the bundled one.",
        kw_only=False,
    )
    target: str = option(default=NATIVE, help=TARGET_HELP)
    seed: int = option(
        default=0, help="Seed of the labels that the calibration draws, and of the sampler."
    )


@request
class ChoiceRequest(Request):
    """What may be chosen from."""

    space: str | None = option(default=None, help=SPACE_HELP, shown="default")
    methods: Words = option(
        default=None,
        help="Methods of the space that may be used, with commas or again and again. A matrix may "
        "still stay as it is, where the space lets it.",
        typed=list[str],
        metavar="NAMES",
        shown="all",
    )
    layers: Words = option(
        default=None,
        help='Compress only the matrices with such names: "*.mlp.*".',
        typed=list[str],
        metavar="GLOBS",
        shown="all",
    )
    keep: Words = option(
        default=None,
        help='Leave matrices with such names as they are: "*.attn.*".',
        typed=list[str],
        metavar="GLOBS",
    )
    unreached: str = option(
        default=KEEP,
        help="Form of matrices that the calibration text never reaches: keep, or 8bit.",
        check=any_of(KEEP, EIGHT_BITS),
    )


@request
class StoppingRequest(Request):
    """When a search ends, which changes no trial but the last."""

    trials: int | None = option(
        default=None,
        help="Number of trials in all, uniform baselines included.",
        typed=int,
        check=at_least(1),
        shown=f"by effort: {', '.join(str(each.trials) for each in EFFORTS.values())}",
        free=True,
    )
    time: str | float | None = option(
        default=None,
        help="Time after which the search ends: 90s, 10m, 1h. Fitting what plans take is "
        "given two fifths of it at most, and no trial starts that leaves too little "
        "time to measure the front.",
        free=True,
    )
    patience: int | None = option(
        default=None,
        help="Number of searched trials without growth of the front that end the search; "
        "none when left out.",
        typed=int,
        check=at_least(1),
        free=True,
    )


ENGINES = ("local", "ray")


@request
class EngineRequest(Request):
    """What runs the trials of a search."""

    engine: str = option(
        default="local",
        help="Engine that runs the trials: local, or ray.",
        check=any_of(*ENGINES),
        free=True,
    )
    workers: int = option(
        default=1,
        help="Number of trials at a time; from 2 on each runs in a process of its own.",
        check=at_least(1),
        free=True,
    )
    address: str | None = option(
        default=None,
        help="Address of a running Ray cluster, host:port or auto; a new one when left out.",
        free=True,
    )
    gpus_per_trial: float = option(
        default=0.0, help="GPUs that Ray sets aside for each trial.", check=at_least(0), free=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine != "ray" and (self.address is not None or self.gpus_per_trial):
            named = "--gpus-per-trial" if self.address is None else "--address"
            raise ConfigurationError(f"{named} is for --engine ray", got=f"--engine {self.engine}")

    @property
    def here(self) -> bool:
        """Whether the trials run in this process."""
        return self.engine == "local" and self.workers == 1


@request
class FolderRequest(StudyRequest, TrackRequest, ToldRequest):
    """A trial of a study, or an exported folder."""

    trial: str | int | None = option(
        default=None,
        help="Trial of a study: best, knee, smallest, fastest, or its number.",
        shown="best",
    )
    model: str | None = option(
        default=None, help="Dense model of a folder, if it is not where it was."
    )
    context: int | None = option(
        default=None,
        help="Tokens of a window of text for a folder, at most the model's context.",
        typed=int,
        check=at_least(2),
        shown="as when it was made",
    )
    device: str | None = option(
        default=None, help="Device for the models of a folder, as torch names it.", shown="cpu"
    )
    trust_remote_code: bool = option(
        default=False, help="Let code that comes with the model of a folder run."
    )
    data: str | None = option(
        default=None,
        help="Text for a folder: a file or hub/name:config:split, cut into three parts; "
        "else the texts that the folder was made with.",
    )

    def of_a_folder(self) -> dict[str, object]:
        """What is of use to folders alone."""
        names = ("model", "context", "device", "trust_remote_code")
        return {name: getattr(self, name) for name in names}

    def of_a_study(self) -> dict[str, object]:
        """What is of use to studies alone."""
        return {name: getattr(self, name) for name in ("trial", "storage", "tracking_uri")}
