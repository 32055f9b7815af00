"""``autocompress export``: a trial of a study as a model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.output import ConsoleProgress, console, print_json, quieten_libraries

if TYPE_CHECKING:
    from autocompress.deploy.exported import Exported


def export(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    study: Annotated[
        str | None, typer.Argument(help="Name of the study; the latest when left out.")
    ] = None,
    trial: Annotated[
        str,
        typer.Option("--trial", help="best, knee, smallest, fastest, or the number of a trial."),
    ] = "best",
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Folder of the run folders.")] = Path(
        "runs"
    ),
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="URL of the study's storage, when it is not in the run folder."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is already there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    r"""Write a trial as a Hugging Face folder and compare its perplexity, loaded in a new process.

    \b
    autocompress export --trial best --out my-model
    autocompress export demo-10x --trial 17 --out my-model --overwrite
    """
    quieten_libraries()
    from autocompress.api.exporting import export_trial
    from autocompress.driver.study_choice import Destination

    destination = Destination(study, runs_dir, storage)
    exported = export_trial(
        destination, out, trial=trial, overwrite=overwrite, progress=ConsoleProgress()
    )
    if as_json:
        print_json(exported.to_dict())
    else:
        show_exported(exported)


def show_exported(exported: Exported) -> None:
    """Print what was written, what it costs, and how to load it."""
    from autocompress.units import format_bytes

    report, seen = exported.report, exported.verification
    lines = (
        f"{exported.source}: {exported.plan.summary() or 'all kept'}",
        f"{report.folder}",
        f"  weights     {format_bytes(report.weight_bytes)} in {report.tensors} tensors "
        f"({exported.dense_bytes / report.weight_bytes:.3g} times less than dense), "
        f"{format_bytes(report.file_bytes)} on disk",
        f"  perplexity  {seen.perplexity:.4f} on the {exported.text} text, "
        "loaded again in a fresh process",
        "",
        "Use it:",
        "  import autocompress",
        f"  model, tokenizer = {exported.call_to_load}",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
