"""``autocompress heal``: train the stored numbers of a compressed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autocompress.cli.options import RUNS_DIR, Json, RunsDir
from autocompress.cli.output import ConsoleProgress, console, print_json, quieten_libraries
from autocompress.cli.source_options import (
    DenseModel,
    FolderContext,
    FolderDevice,
    FolderTrustRemoteCode,
    Source,
    Storage,
    TrackingUri,
    Trial,
)


def heal(
    study: Source = None,
    trial: Trial = None,
    steps: Annotated[
        int, typer.Option("--steps", help="Of training; 0 only fits the matrices of a trial anew.")
    ] = 300,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Of a study: text to train on, else its calibration text. Of a folder: text that "
            "is cut into three parts, to train, to watch progress and to report on; else the "
            "texts that it was made with.",
        ),
    ] = None,
    context: FolderContext = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Of a step.")] = 4096,
    tokens_at_once: Annotated[
        int | None,
        typer.Option("--tokens-at-once", help="Of a pass: fewer take less memory."),
    ] = None,
    rate: Annotated[
        float,
        typer.Option("--rate", help="Highest learning rate, as a share of what is trained."),
    ] = 0.01,
    train: Annotated[
        Literal["all", "factors"],
        typer.Option(
            "--train", help="all stored numbers, or factors: all but codes, in less memory."
        ),
    ] = "all",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="First fit each matrix of a trial anew to what the compressed model gives it; "
            "not what was trained or fitted anew before.",
        ),
    ] = True,
    align: Annotated[
        float,
        typer.Option("--align", help="Share of the steps that train each block by itself first."),
    ] = 0.0,
    penalty: Annotated[
        Path | None,
        typer.Option(
            "--penalty",
            help="A recipe whose penalty: entries push ranks down, as "
            '[{layers: "*.mlp.*", kind: renyi, alpha: 0.5, weight: 0.01}]; of a folder its own '
            "recipe's when left out; none for no penalty.",
            metavar="RECIPE",
        ),
    ] = None,
    shrink: Annotated[
        float | None,
        typer.Option(
            "--shrink", help="Then cut ranks that lose at most this share of a matrix, as 0.003."
        ),
    ] = None,
    lm: Annotated[
        float,
        typer.Option("--lm", help="Share of the language-model loss beside the divergence."),
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="End after so many checks without progress; else never."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the text.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="File to keep progress in; else one in the run folder."),
    ] = None,
    model: DenseModel = None,
    device: FolderDevice = None,
    trust_remote_code: FolderTrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write the healed model to; for a folder a must."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is already in --out.")
    ] = False,
    runs_dir: RunsDir = RUNS_DIR,
    storage: Storage = None,
    track: Annotated[
        bool,
        typer.Option("--track/--no-track", help="Of a study: mirror the healed trial into MLflow."),
    ] = True,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    r"""Train the stored numbers of a compressed model to predict what the dense one predicts.

    \b
    autocompress heal                                   the best trial of the latest study
    autocompress heal demo-10x --trial knee --steps 200
    autocompress heal small-model --out healed-model    an exported folder

    What is trained is what is stored: codes, scales, factors, norms and biases. Bytes and form
    stay, unless --shrink cuts ranks. A healed plan is a further trial of its study, to be picked
    and exported like any other. Stop it at any time before its end: the same command goes on.
    After its end the best trial may be the healed one, and would be healed further: name a trial by
    its number to start from that one again.
    """
    quieten_libraries()
    from autocompress.api.heal_function import heal as run
    from autocompress.cli.heal_view import print_healed

    healed = run(
        study,
        trial=trial,
        steps=steps,
        data=data,
        context=context,
        tokens=tokens,
        tokens_at_once=tokens_at_once,
        rate=rate,
        train=train,
        refit=refit,
        penalty=penalty,
        shrink=shrink,
        align=align,
        lm=lm,
        patience=patience,
        seed=seed,
        checkpoint=checkpoint,
        model=model,
        device=device,
        trust_remote_code=trust_remote_code,
        out=out,
        overwrite=overwrite,
        runs_dir=runs_dir,
        storage=storage,
        track=track,
        tracking_uri=tracking_uri,
        progress=ConsoleProgress(),
    )
    if as_json:
        print_json(healed.to_dict())
    else:
        print_healed(healed, console)
