"""Heals an exported folder: against the dense model that it was made from, into another folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from autocompress.api.exported_folder import open_folder
from autocompress.api.exporting import write_folder
from autocompress.api.heal_plan import heal_plan, healing_text, with_times_of
from autocompress.api.healing_report import HealingReport
from autocompress.api.session import TextSettings
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.errors import ConfigurationError
from autocompress.export.folder import check_free
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.settings import HealSettings
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import Evaluator
from autocompress.search.healed_trials import key_of
from autocompress.search.study import Healing

FOLDER = "healing"  # of checkpoints, among the runs


def heal_folder(
    folder: Path,
    out: Path | None,
    settings: HealSettings,
    *,
    model: str | None = None,
    data: str | None = None,
    runs_dir: Path = Path("runs"),
    checkpoint: Path | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> HealingReport:
    """Heal an exported folder and write the result to another.

    Args:
        folder: the exported folder; it stays as it is.
        out: the folder to write.
        settings: how to heal.
        model: the dense model; where the folder says it was when left out.
        data: one source of text, cut into three disjoint parts: to heal on, to watch progress on
            and to report on; the bundled texts when left out.
        runs_dir: folder of runs, for the cache and the checkpoint.
        checkpoint: file that holds how far it is; among the runs when left out.
        device: where the models run.
        trust_remote_code: let code that comes with a hub model run.
        overwrite: whether a model in ``out`` may be replaced.
        progress: told how far things are.

    Raises:
        ConfigurationError: no ``out``, or one in use.
        ModelError: the dense model cannot be loaded, or is not the one that it was made from.
        DataError: too little text, or one that was selected or is reported on.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    if out is None:
        raise ConfigurationError(
            f"{folder} is a folder, and is healed into another", wanted="--out NEW_FOLDER"
        )
    check_free(out, overwrite)
    session, plan, numbers = open_folder(
        folder,
        model=model,
        texts=TextSettings(data),
        runs_dir=runs_dir,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    text, ids = healing_text(session, None, settings)
    report = session.scored_text("report")
    evaluator = Evaluator(session.workbench, session.build)
    before = evaluator.measure(plan, report, numbers=numbers)
    identity = {
        "model": session.loaded.fingerprint,
        "plan": plan.hash,
        "numbers": key_of(numbers),
        "text": tensor_key(ids),
        "settings": asdict(settings),
    }
    kept = Checkpoint(
        checkpoint or runs_dir / FOLDER / f"{content_key(identity)[:12]}.part", identity
    )
    form, healthy, healed = heal_plan(session, plan, numbers, ids, settings, kept)
    after = evaluator.measure(form, report, latency=form != plan, numbers=healthy)
    if form == plan:
        after = with_times_of(before, after)
    source = f"{folder}, healed"
    written = write_folder(session, form, out, after, source, numbers=healthy, overwrite=overwrite)
    kept.remove()
    healing = Healing(
        steps=healed.checks[-1].step,
        tokens=healed.tokens,
        text=text,
        settings=asdict(settings),
        checks=tuple(asdict(check) for check in healed.checks),
    )
    return HealingReport(
        str(folder), form, evaluator.dense(report), before, after, healing, exported=written
    )
