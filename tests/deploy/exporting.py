"""Exports tiny models with a plan that has a bit of everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.deploy.exported import Export, ExportReport
from autocompress.deploy.folder import whole_folder
from autocompress.deploy.native import Native
from autocompress.methods.plan import Plan
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.inventory import Inventory, take_inventory
from autocompress.surgery.loading import LoadedModel, fingerprint
from autocompress.surgery.workbench import Build, Workbench
from tests.mixed_plans import builder, mixed_plan


@dataclass(frozen=True)
class TinyExport:
    """An exported tiny model and what it computed before it was written."""

    loaded: LoadedModel
    plan: Plan
    inventory: Inventory
    logits: Tensor
    report: ExportReport


def export_checkpoint(
    loaded: LoadedModel,
    plan: Plan,
    build: Build,
    out: Path,
    *,
    overwrite: bool = False,
    **more: Any,
) -> ExportReport:
    """Write a folder whole or not at all, without loading it again."""
    with whole_folder(out, overwrite=overwrite) as folder:
        inventory = take_inventory(loaded.model, loaded.stored_types)
        bench = Workbench(loaded.model, inventory)
        report = Native().write(Export(loaded, bench, Compressed(plan), build, **more), folder)
    return replace(report, folder=out.absolute())


def export_tiny(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Any],
    out: Path,
    plan: Plan | None = None,
    **options: Any,
) -> TinyExport:
    """Export a tiny model by a mixed plan, or by the given one."""
    loaded = LoadedModel(model, tokenizer, "tiny", fingerprint(model))
    workbench = Workbench(model)
    plan = mixed_plan(workbench.inventory) if plan is None else plan
    with torch.no_grad(), workbench.applied(plan, builder(workbench)):
        logits = model(**inputs).logits
    report = export_checkpoint(loaded, plan, builder(workbench), out, **options)
    return TinyExport(loaded, plan, workbench.inventory, logits, report)
