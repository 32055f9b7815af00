"""``autocompress export``: a trial of a study as a model on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.cli.output import console, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.requests.verbs import ExportRequest

if TYPE_CHECKING:
    from autocompress.deploy.exported import Exported


@takes(ExportRequest)
def export(request: ExportRequest, *, as_json: Json = False) -> None:
    r"""Write a trial as a Hugging Face folder and compare its perplexity, loaded in a new process.

    \b
    autocompress export --trial best --out my-model
    autocompress export demo-10x --trial 17 --out my-model --overwrite
    """
    from autocompress.api.functions import export as run

    exported = run(request)
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
        f"  {exported.gauge.figure:<11} {seen.figure:.4f} on the {exported.text} text, "
        "loaded again in a fresh process",
        "",
        "Use it:",
        "  import autocompress",
        f"  model, tokenizer = {exported.call_to_load}",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
