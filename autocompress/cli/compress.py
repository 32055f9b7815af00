"""``autocompress compress``: apply a recipe without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.export import show_exported
from autocompress.cli.output import ConsoleProgress, print_json, quieten_libraries


def compress(
    model: Annotated[
        str,
        typer.Argument(help="Folder or hub name of the dense model; autocompress-demo is bundled."),
    ],
    recipe: Annotated[Path, typer.Option("--recipe", help="The recipe: a YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A file or hub/name:config:split, cut into three parts; else the bundled texts.",
        ),
    ] = None,
    calibration_data: Annotated[
        str | None, typer.Option("--calibration-data", help="Source of the text to calibrate on.")
    ] = None,
    selection_data: Annotated[
        str | None,
        typer.Option(
            "--selection-data", help="Source of the selection text; nothing is selected here."
        ),
    ] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", help="Source of the text to measure on.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device, as torch names it.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32, bfloat16 or float16; the stored type when left out."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Where the cache is kept.")] = Path(
        "runs"
    ),
    seed: Annotated[
        int, typer.Option("--seed", help="Of the labels that the calibration draws.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is already there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    r"""Compress a model as a recipe says and write it as a Hugging Face folder.

    \b
    autocompress compress ./my-model --recipe recipe.yaml --out my-model-small

    The recipe of every exported folder is its recipe.yaml.
    """
    quieten_libraries()
    from autocompress.api.exporting import compress_by_recipe
    from autocompress.api.session import TextSettings

    exported = compress_by_recipe(
        model,
        recipe,
        out,
        texts=TextSettings(data, calibration_data, selection_data, report_data),
        runs_dir=runs_dir,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        seed=seed,
        overwrite=overwrite,
        progress=ConsoleProgress(),
    )
    if as_json:
        print_json(exported.to_dict())
    else:
        show_exported(exported)
