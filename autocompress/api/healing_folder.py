"""Heals an exported folder: against the dense model that it was made from, into another folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from autocompress.api.exported_folder import OpenedFolder
from autocompress.api.exporting import write_folder
from autocompress.deploy.folder import check_free
from autocompress.driver.healing_report import HealingReport
from autocompress.driver.reporting import measure_again
from autocompress.errors import ConfigurationError
from autocompress.evaluation.evaluator import Evaluator
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.heal_plan import heal_plan, healing_text
from autocompress.requests.healing import HealSettings
from autocompress.store import content_key, tensor_key
from autocompress.studies.healed_trials import key_of
from autocompress.studies.study import Healing

FOLDER = "healing"  # of checkpoints, among the runs


def place_for(folder: Path, out: Path | None, overwrite: bool) -> Path:
    """Where to write a folder healed, checked before any work is put into it.

    Args:
        folder: the exported folder.
        out: what was asked for.
        overwrite: whether a model there may be replaced.

    Raises:
        ConfigurationError: nothing was asked for, it is in use, or the folder itself would go.
    """
    if out is None:
        raise ConfigurationError(
            f"{folder} is a folder, and is healed into another", wanted="--out NEW_FOLDER"
        )
    if folder.resolve().is_relative_to(out.expanduser().resolve()):
        raise ConfigurationError(
            f"the folder {folder} would be replaced by what is made from it",
            got=f"--out {out}",
            wanted="another folder",
            hint="Healing may also lose: replace the old one yourself when you have compared them.",
        )
    check_free(out, overwrite)
    return out


def heal_folder(
    opened: OpenedFolder,
    out: Path,
    settings: HealSettings,
    *,
    runs_dir: Path = Path("runs"),
    checkpoint: Path | None = None,
    overwrite: bool = False,
) -> HealingReport:
    """Heal an exported folder and write the result to another.

    Args:
        opened: the exported folder, which stays as it is. Its session's calibration text is what
            it is healed on.
        out: the folder to write, see ``place_for``; whole or not at all.
        settings: how to heal.
        runs_dir: folder of runs, for the checkpoint.
        checkpoint: file that holds how far it is; among the runs when left out.
        overwrite: whether a model in ``out`` may be replaced.

    Raises:
        ConfigurationError: ``out`` is in use.
        DataError: too little text, or one that was selected or is reported on.
        AutocompressError: healing diverges, or there is not enough memory.
        StorageError: ``out`` cannot be written, or does not load as what was measured.
    """
    session, compressed = opened.session, opened.compressed
    text, ids = healing_text(session, None, settings)
    report = session.scored_text("report")
    evaluator = Evaluator(session.workbench, session.builder.build, begin=session.begin)
    before = evaluator.measure(compressed, report)
    identity = {
        "model": session.loaded.fingerprint,
        "plan": compressed.plan.hash,
        "weights": key_of(compressed.weights),
        "text": tensor_key(ids),
        "begin": list(session.begin),
        "settings": asdict(settings),
    }
    kept = Checkpoint(
        checkpoint or runs_dir / FOLDER / f"{content_key(identity)[:12]}.part", identity
    )
    came, healed = heal_plan(session, compressed, ids, settings, kept)
    known = before if came.plan == compressed.plan else None
    after = measure_again(evaluator, came, report, known)
    source = f"{opened.path}, healed"
    written = write_folder(
        session,
        came,
        out,
        after,
        source,
        penalties=settings.penalties if settings.steps else opened.penalties,
        overwrite=overwrite,
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
        str(opened.path),
        came.plan,
        evaluator.dense(report),
        before,
        after,
        healing,
        session.objective.gauge,
        exported=written,
    )
