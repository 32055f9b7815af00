"""What lies in an exported folder beside its model: recipe, measurements and model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autocompress import __version__
from autocompress.deploy.exported import Export
from autocompress.evaluation.objectives import objective_for
from autocompress.methods.plan import Plan
from autocompress.records import Gauge
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.stored_types import dtype_name
from autocompress.units import format_bytes

RECIPE = "recipe.yaml"
MEASUREMENTS = "measurements.json"

_TEMPLATE = """---
library_name: transformers
tags:
- autocompress
- compressed
---

# {source}, compressed by autocompress

{size} of weights; the dense model has {dense} ({ratio:.3g} times as much). \
Layers: {summary}.{quality}

Which method stores which matrix is in `recipe.yaml`, and what was measured in `measurements.json`.

{loading}"""


def write_documents(export: Export, inventory: Inventory, folder: Path, loading: str) -> None:
    """Write what lies beside a model.

    Args:
        export: what was written.
        inventory: tells the bytes of the plan.
        folder: holds the model.
        loading: says how it is loaded, for the model card.
    """
    loaded, plan = export.loaded, export.plan
    recipe = plan.to_recipe()
    origin = {
        "version": recipe.pop("version"),
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
    }
    measurement = export.measurement
    known = {}
    if measurement:  # each window's scores are in the measurements
        known = {"measurement": {k: v for k, v in measurement.items() if k != "windows"}}
    text = yaml.safe_dump(
        origin | known | dict(export.header) | recipe,
        sort_keys=False,
        default_flow_style=None,
        width=120,
    )
    (folder / RECIPE).write_text(text, encoding="utf-8")
    facts = {
        "autocompress": __version__,
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
        "plan": plan.hash,
        "computed_in": dtype_name(loaded.model.dtype),
        "bytes": inventory.plan_bytes(plan),
        "dense_bytes": inventory.dense_bytes,
        "measurement": measurement,
    }
    if loaded.quantized_by:
        facts["quantized_by"] = loaded.quantized_by
    (folder / MEASUREMENTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    gauge = objective_for(loaded.model).gauge
    card = _model_card(loaded.source, plan, facts, gauge, loading)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _model_card(
    source: str, plan: Plan, facts: Mapping[str, Any], gauge: Gauge, loading: str
) -> str:
    """Say in a few lines what the folder holds and how to load it."""
    measurement = facts["measurement"] or {}
    quality = ""
    if gauge.figure in measurement:
        text = measurement.get("text")
        where = f" on the {text} text" if text in ("selection", "report") else ""
        quality = f"\n{gauge.figure.capitalize()}{where}: {measurement[gauge.figure]:.4f}."
    local = Path(source)
    return _TEMPLATE.format(
        source=local.name if local.is_absolute() else source,
        size=format_bytes(facts["bytes"]),
        dense=format_bytes(facts["dense_bytes"]),
        ratio=facts["dense_bytes"] / facts["bytes"],
        summary=plan.summary() or "all kept",
        quality=quality,
        loading=loading,
    )
