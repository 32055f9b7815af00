"""Healed trials: their stored weights in the run folder, and their records in the study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import optuna
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autocompress.atomic_write import written_whole
from autocompress.errors import StorageError
from autocompress.records import Measurement
from autocompress.store import content_key, tensor_key
from autocompress.studies.study import HEALED, Healing, StudyRecord, TrialRecord
from autocompress.studies.study_store import keep_report, to_trial_record, values_of
from autocompress.studies.trial_owner import own
from autocompress.surgery.compressed import Compressed

FOLDER = "healed"  # in the run folder


def key_of(weights: Mapping[str, Tensor]) -> str:
    """Hash of stored weights, twelve hexadecimal digits."""
    return content_key({name: tensor_key(tensor) for name, tensor in weights.items()})[:12]


def keep_weights(folder: Path, weights: Mapping[str, Tensor]) -> str:
    """Write stored weights into a run folder and return their hash.

    Raises:
        StorageError: they cannot be written.
    """
    key = key_of(weights)
    path = _path(folder, key)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        with written_whole(path) as temporary:
            save_file(held, temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the healed weights {path} cannot be written: {error}",
            hint="Free some space; the model before healing is untouched.",
        ) from error
    return key


def compressed_of(folder: Path, trial: TrialRecord) -> Compressed:
    """A trial's plan, with its stored weights, memory-mapped, where it was healed.

    Raises:
        StorageError: they are gone or cannot be read.
    """
    if trial.healing is None:
        return Compressed(trial.plan)
    path = _path(folder, trial.healing.weights)
    try:
        return Compressed(trial.plan, load_file(path))
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the weights of healed trial {trial.number} cannot be read: {path}: {error}",
            hint="They lie in the run folder of the machine that made them. Heal trial "
            f"{trial.healing.of} again, with --steps 0 where it was only refitted.",
        ) from error


def add_healed(
    study: optuna.Study,
    source: TrialRecord,
    healing: Healing,
    selection: Measurement,
    report: Measurement,
    seconds: float,
) -> TrialRecord:
    """Add a trial that has healed another one, with what was measured of it.

    The plan and the bytes are those of ``source``: as they became, where ranks were cut.

    Raises:
        StorageError: the storage has lost it.
    """
    trial = study.ask()
    own(trial)
    label = source.label.partition(", healed")[0]
    trial.set_user_attr(
        "proposal",
        {
            "phase": HEALED,
            "label": f"{label}, {healing.done}",
            "bytes": source.bytes,
            "plan_hash": source.plan.hash,
            "recipe": source.plan.to_recipe(),
            "healing": healing.to_dict(),
        },
    )
    trial.set_user_attr("result", {"seconds": seconds, "selection": selection.to_dict()})
    values = values_of(selection.loss, source.bytes, selection.latency_ms)
    record = to_trial_record(study.tell(trial, values), {})
    if record is None:
        raise StorageError(f"the storage has lost the healed trial {trial.number}")
    keep_report(study, record, report)
    return record


def healed_already(study: StudyRecord, source: TrialRecord, healing: Healing) -> TrialRecord | None:
    """The trial that has healed a source in the same way, if there is one and it is whole.

    One that was cut off before it was measured, or whose weights are gone, does not count.
    """
    for trial in study.complete:
        known = trial.healing
        if known is None or known.of != source.number or way_of(known) != way_of(healing):
            continue
        if trial.report is not None and _path(study.folder, known.weights).exists():
            return trial
    return None


def way_of(healing: Healing) -> str:
    """How it was done, comparable with what has been through JSON."""
    return json.dumps([healing.settings, healing.text, healing.tokens_hash], sort_keys=True)


def picture_of(folder: Path, number: int) -> Path:
    """Where the curve of a healed trial is drawn."""
    return folder / FOLDER / f"trial-{number}.png"


def _path(folder: Path, key: str) -> Path:
    return folder / FOLDER / f"{key}.safetensors"
