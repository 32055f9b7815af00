"""Options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A file or hub/name:config:split, cut into three parts, or bundled for the texts that "
        "come with autocompress. For any model but the bundled one a text must be named.",
    ),
]
CalibrationData = Annotated[
    str | None, typer.Option("--calibration-data", help="Source of the text to calibrate on.")
]
SelectionData = Annotated[
    str | None,
    typer.Option("--selection-data", help="Source of the text that plans are chosen on."),
]
ReportData = Annotated[
    str | None, typer.Option("--report-data", help="Source of the text for the final figures.")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Tokens of a window of text, at most the model's context.",
        show_default="2048",
    ),
]
Bos = Annotated[
    bool,
    typer.Option(
        "--bos/--no-bos",
        help="Start each window with the begin token that the tokenizer puts before a text.",
    ),
]
FolderBos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Start each window with the begin token that the tokenizer puts before a text.",
        show_default="bos, or as an exported folder was made",
    ),
]
SPACE_HELP = (
    "default, low_rank_only, quantize_only, attention_conservative, feed_forward_only, "
    "tensor_train_gentle, or a YAML file."
)
Space = Annotated[
    str,
    typer.Option(
        "--space",
        help=SPACE_HELP,
    ),
]
SpaceOrRecipes = Annotated[
    str | None,
    typer.Option(
        "--space",
        help=SPACE_HELP,
        show_default="the recipe's own, or default",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        help="Methods of the space that may be used, with commas or again and again.",
        metavar="NAMES",
        show_default="all",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help='Compress only the matrices with such names: "*.mlp.*".',
        metavar="GLOBS",
        show_default="all",
    ),
]
KeptLayers = Annotated[
    list[str] | None,
    typer.Option(
        "--keep", help='Leave matrices with such names as they are: "*.attn.*".', metavar="GLOBS"
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        "--quality",
        help="The smallest plan that keeps it: perplexity at most 5% above dense, log-perplexity "
        "0.02 nats above, or cosine 0.9 between the last hidden states and the dense model's.",
    ),
]
Unreached = Annotated[
    str,
    typer.Option(
        "--unreached",
        help="What matrices that the calibration text never reaches become: keep, or 8bit.",
    ),
]
Effort = Annotated[
    str,
    typer.Option(
        "--effort",
        help="How much to do: quick, normal or thorough. It sets how many tokens are calibrated, "
        "selected and reported on, how much is fitted, and how many plans are measured.",
    ),
]
FitAll = Annotated[
    bool,
    typer.Option(
        "--fit-all",
        help="Fit every option of every matrix. Otherwise most are predicted by fits to similar "
        "matrices, and fitted when a plan takes them.",
    ),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        help="Afterwards, remove from the cache what was least recently used, down to this size, "
        "such as 5GB.",
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of the runs and of the cache.")]
Device = Annotated[str, typer.Option("--device", help="Device, as torch names it.")]
ComputeDtype = Annotated[
    str | None,
    typer.Option(
        "--compute-dtype",
        help="What the model computes in: float32, bfloat16 or float16. Bytes count what the "
        "checkpoint stores.",
        show_default="what is faster here: the stored type or float32",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
]
Dequantize = Annotated[
    bool,
    typer.Option(
        "--dequantize",
        help="Let transformers make a quantized checkpoint dense; bytes count from that.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the labels that the calibration draws.")]
SeedOrRecipes = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Of the labels that the calibration draws, and of a recipe's random cores.",
        show_default="the recipe's own, or 0",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a model that is already there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

RUNS_DIR = Path("runs")


def is_typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, be it with its usual value."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
