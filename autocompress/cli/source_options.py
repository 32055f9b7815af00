"""Options of the commands that take a study or an exported folder, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY|FOLDER",
        help="A study, by default the latest, or a folder that export wrote.",
    ),
]
Trial = Annotated[
    str | None,
    typer.Option(
        "--trial",
        help="Of a study: best, knee, smallest, fastest, or the number of a trial.",
        show_default="best",
    ),
]
DenseModel = Annotated[
    str | None,
    typer.Option("--model", help="Of a folder: the dense model, if it is not where it was."),
]
FolderDevice = Annotated[
    str | None,
    typer.Option("--device", help="Of a folder: device, as torch names it.", show_default="cpu"),
]
FolderTrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Of a folder: let code that comes with the model run."
    ),
]
FolderContext = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Of a folder: tokens of a window of text, at most the model's context.",
        show_default="as when it was made",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="Of a study: URL of its storage, if not in the run folder."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="Of a study: MLflow's store or server; else MLflow's own default."
    ),
]
