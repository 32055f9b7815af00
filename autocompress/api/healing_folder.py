"""Heals an exported folder: against the dense model that it was made from, into another folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from autocompress.api.exporting import write_folder
from autocompress.api.healing import HealingReport, heal_plan, healing_text
from autocompress.api.session import Session, TextSettings, open_session
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.errors import ConfigurationError, ModelError
from autocompress.export.checkpoint import MEASUREMENTS
from autocompress.export.folder import check_free
from autocompress.export.weights import weight_files
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.settings import HealSettings
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import Evaluator
from autocompress.search.study import Healing
from autocompress.surgery.loading import BUNDLED_MODEL
from autocompress.surgery.placement import prefix_of

FOLDER = "healing"  # of checkpoints, among the runs


def heal_folder(
    folder: Path,
    out: Path | None,
    settings: HealSettings,
    *,
    model: str | None = None,
    data: str | None = None,
    texts: TextSettings | None = None,
    runs_dir: Path = Path("runs"),
    checkpoint: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> HealingReport:
    """Heal an exported folder and write the result to another.

    Args:
        folder: the exported folder; it stays as it is.
        out: the folder to write.
        settings: how to heal.
        model: the dense model; where the folder says it was when left out.
        data: text to heal on; the calibration text when left out.
        texts: calibration, selection and report texts; the bundled ones when left out.
        runs_dir: folder of runs, for the cache and the checkpoint.
        checkpoint: file that holds how far it is; among the runs when left out.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.

    Raises:
        ConfigurationError: no ``out``, or one in use.
        ModelError: the folder is no export, or the dense model is not the one it was made from.
        DataError: too little text, or one that was selected or is reported on.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    if out is None:
        raise ConfigurationError(
            f"{folder} is a folder, and is healed into another", wanted="--out NEW_FOLDER"
        )
    check_free(out, overwrite)
    plan, facts = _read(folder)
    session = open_session(
        model or _source(facts), texts or TextSettings(), runs_dir, progress=progress
    )
    known = facts.get("fingerprint")
    if known not in (None, session.loaded.fingerprint):
        raise ModelError(
            f"{session.loaded.source} is not the model that {folder} was made from",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=str(known),
            hint="Name the one it was made from with --model.",
        )
    numbers = _numbers(folder, plan, session)
    text, ids = healing_text(session, data, settings)
    report = session.scored_text("report")
    evaluator = Evaluator(session.workbench, session.build)
    before = evaluator.measure(plan, report, numbers=numbers)
    identity = {
        "model": session.loaded.fingerprint,
        "plan": plan.hash,
        "numbers": content_key({name: tensor_key(tensor) for name, tensor in numbers.items()}),
        "text": tensor_key(ids),
        "settings": asdict(settings),
    }
    kept = Checkpoint(
        checkpoint or runs_dir / FOLDER / f"{content_key(identity)[:12]}.part", identity
    )
    healed = heal_plan(session, plan, numbers, ids, settings, kept)
    seen = evaluator.measure(plan, report, latency=False, numbers=healed.numbers)
    after = replace(
        seen,
        latency_ms=before.latency_ms,
        latency_spread_ms=before.latency_spread_ms,
        prefill_ms=before.prefill_ms,
        cache_bytes_per_token=before.cache_bytes_per_token,
    )
    source = f"{folder}, healed"
    written = write_folder(
        session, plan, out, after, source, numbers=healed.numbers, overwrite=overwrite
    )
    kept.remove()
    healing = Healing(
        steps=healed.checks[-1].step,
        tokens=healed.tokens,
        text=text,
        settings=asdict(settings),
        checks=tuple(asdict(check) for check in healed.checks),
    )
    return HealingReport(
        str(folder), plan, evaluator.dense(report), before, after, healing, exported=written
    )


def _read(folder: Path) -> tuple[Plan, dict[str, Any]]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        recipe = config["quantization_config"]["recipe"]
        facts = json.loads((folder / MEASUREMENTS).read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} is no folder that autocompress has exported",
            got=f"{type(error).__name__}: {error}",
            wanted=f"one with config.json and {MEASUREMENTS}",
        ) from error
    return Plan.from_recipe(recipe), facts


def _source(facts: dict[str, Any]) -> str | None:
    source = facts.get("model")
    return None if source == BUNDLED_MODEL else source


def _numbers(folder: Path, plan: Plan, session: Session) -> dict[str, Tensor]:
    """Tensors of the compressed matrices, and vectors: all that healing may have changed."""
    inventory = session.workbench.inventory
    inside = tuple(prefix_of(inventory[name]) for name, method in plan.items() if method != Keep())
    kept = tuple(f"{name}." for name, method in plan.items() if method == Keep())
    return {
        name: tensor
        for path in weight_files(folder)
        for name, tensor in load_file(path).items()
        if name.startswith(inside) or (tensor.ndim == 1 and not name.startswith(kept))
    }
