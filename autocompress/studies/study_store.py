"""Reads and writes a study in Optuna's storage, the one truth of trials.

The study's user attribute ``autocompress`` says what was searched and against what. A trial's
attribute ``proposal`` holds its plan from the moment it is asked for; ``result`` its measurement.
Measurements on the report text come after the trials have ended, and are attributes of the study by
plan hash, for a finished trial cannot be written to.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import StudyError
from autocompress.methods.plan import Plan
from autocompress.records import Gauge, Kind, LayerSpec, Measurement, Role, Skipped, exponential
from autocompress.studies.relation import Relation
from autocompress.studies.run_folder import find_study, unwritable, write_pointer
from autocompress.studies.storage import (
    file_of,
    open_storage,
    settle,
    storage_errors,
    storage_url,
)
from autocompress.studies.study import Healing, StudyRecord, TrialRecord
from autocompress.units import Limits

HEADER = "autocompress"
REPORT = "report "
RELATION = "latency relation"
# A study is without its header only for the moment between two writes to the storage.
UNHEADED_SECONDS = 10.0
DIRECTIONS = [StudyDirection.MINIMIZE] * 3  # see ``values_of``
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "infeasible",
    TrialState.FAIL: "failed",
}


def create_study(header: StudyRecord, url: str) -> optuna.Study:
    """Make a new study, with what it is about, and the pointer to it in the run folder."""
    try:
        header.folder.mkdir(parents=True, exist_ok=True)
        storage = open_storage(url)
        with storage_errors(url):
            study = optuna.create_study(
                study_name=header.name, storage=storage, directions=DIRECTIONS
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(_names_of_values(header.gauge))  # for dashboard and plots
            study.set_user_attr(HEADER, _header_to_dict(header))
        write_pointer(header.folder, header.name, url)
    except DuplicatedStudyError as error:
        raise StudyError(
            f"another search has just made a study {header.name!r} in {url}",
            hint="The same command again goes on with it, or says in which settings it differs.",
        ) from error
    except OSError as error:
        raise unwritable(header.folder, error) from error
    return study


def values_of(loss: float, size: int, latency_ms: float | None) -> list[float]:
    """What Optuna and its samplers are told of a trial, each to be minimised.

    First comes the exponential of the loss, a scale on which great losses are far apart; for a
    language model it is the perplexity.
    """
    return [exponential(loss), float(size), latency_ms or 0.0]


def _names_of_values(gauge: Gauge) -> list[str]:
    return [gauge.figure if gauge.exponential else f"exp {gauge.loss}", "bytes", "latency_ms"]


def existing_study(name: str, url: str) -> optuna.Study | None:
    """The study of a name in a storage, or ``None``; one cut off while being made is removed."""
    path = file_of(storage_url(url))
    if path is not None and not path.exists():
        return None
    storage = open_storage(url)
    with storage_errors(url):
        if name not in optuna.get_all_study_names(storage):
            return None
        with suppress(KeyError):  # another search removes it, too
            study = optuna.load_study(study_name=name, storage=storage)
            if _gets_header(study, url):
                return study
            optuna.delete_study(study_name=name, storage=storage)
    return None


def _gets_header(study: optuna.Study, url: str) -> bool:
    """Whether a study has its header, or is given it while this waits.

    Raises:
        StudyError: it is not of autocompress.
    """
    deadline = time.monotonic() + UNHEADED_SECONDS
    while HEADER not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise StudyError(
                f"the study {study.study_name!r} in {url} was not made by autocompress",
                hint="Name another with --study.",
            )
        if time.monotonic() >= deadline:
            return False
        time.sleep(UNHEADED_SECONDS / 100)
    return True


def load_optuna_study(name: str, url: str) -> optuna.Study:
    """Load a study from its storage."""
    path = file_of(storage_url(url))
    if path is not None and not path.exists():
        raise StudyError(f"the storage of study {name!r} is gone: {path} does not exist")
    storage = open_storage(url)
    with storage_errors(url):
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError as error:
            names = ", ".join(optuna.get_all_study_names(storage)) or "none"
            raise StudyError(
                "unknown study", got=repr(name), wanted=f"one of those in {url}: {names}"
            ) from error
        if HEADER not in study.user_attrs:
            raise StudyError(
                f"the study {name!r} in {url} was not made by autocompress, "
                "or was cut off while it was made"
            )
    return study


def read_study(name: str | None, runs_dir: Path, storage: str | None = None) -> StudyRecord:
    """Read a study as it stands; ``None`` means the latest."""
    name, url, folder = find_study(name, runs_dir, storage)
    study = load_optuna_study(name, url)
    try:
        return to_record(study, folder)
    finally:
        settle(study)


def to_record(study: optuna.Study, folder: Path) -> StudyRecord:
    """Turn an Optuna study into a record."""
    with storage_errors(f"of study {study.study_name!r}"):
        attributes, stored = study.user_attrs, study.get_trials(deepcopy=False)
    reports = {
        key.removeprefix(REPORT): Measurement.from_dict(value)
        for key, value in attributes.items()
        if key.startswith(REPORT)
    }
    header = _header_from_dict(study.study_name, folder, attributes[HEADER])
    trials = [to_trial_record(trial, reports) for trial in stored if trial.state.is_finished()]
    relation = attributes.get(RELATION)
    return replace(
        header,
        trials=tuple(trial for trial in trials if trial is not None),
        relation=relation and Relation.from_dict(relation),
    )


def to_trial_record(trial: FrozenTrial, reports: dict[str, Measurement]) -> TrialRecord | None:
    """Turn an Optuna trial into a record; ``None`` when it was cut off before it had a plan."""
    proposal, result = trial.user_attrs.get("proposal"), trial.user_attrs.get("result", {})
    if proposal is None:
        return None
    selection, partial = (
        Measurement.from_dict(result[name]) if name in result else None
        for name in ("selection", "partial")
    )
    plan, healing = Plan.from_recipe(proposal["recipe"]), proposal.get("healing")
    record = TrialRecord(
        number=trial.number,
        phase=proposal["phase"],
        label=proposal["label"],
        state="stopped" if partial else _STATES[trial.state],
        plan=plan,
        bytes=proposal["bytes"],
        selection=selection,
        partial=partial,
        seconds=result.get("seconds", 0.0),
        params=dict(trial.params),
        error=result.get("error", ""),
        healing=healing and Healing.from_dict(healing),
    )
    return replace(record, report=reports.get(record.key) if selection else None)


def keep_report(study: optuna.Study, trial: TrialRecord, measurement: Measurement) -> None:
    """Keep a measurement of a trial on the report text."""
    study.set_user_attr(REPORT + trial.key, measurement.to_dict())


def keep_relation(study: optuna.Study, relation: Relation) -> None:
    """Keep how measured latencies relate to those of the table."""
    study.set_user_attr(RELATION, relation.to_dict())


def _header_to_dict(header: StudyRecord) -> dict[str, Any]:
    return {
        "model": header.model,
        "fingerprint": header.fingerprint,
        "settings": header.settings,
        "limits": asdict(header.limits),
        "specs": [asdict(spec) for spec in header.specs],
        "skipped": [asdict(skipped) for skipped in header.skipped],
        "unreached": [asdict(matrix) for matrix in header.unreached],
        "dense_bytes": header.dense_bytes,
        "dense_bf16_bytes": header.dense_bf16_bytes,
        "dense_selection": header.dense_selection.to_dict(),
        "dense_report": header.dense_report.to_dict(),
    }


def _header_from_dict(name: str, folder: Path, data: dict[str, Any]) -> StudyRecord:
    specs = [
        LayerSpec(
            **spec
            | {"role": Role(spec["role"]), "kind": Kind(spec["kind"]), "tied": tuple(spec["tied"])}
            | {"factors": tuple(map(tuple, spec.get("factors", ())))}
        )
        for spec in data["specs"]
    ]
    return StudyRecord(
        name=name,
        folder=folder,
        model=data["model"],
        fingerprint=data["fingerprint"],
        settings=data["settings"],
        limits=Limits(**data["limits"]),
        specs=tuple(specs),
        skipped=tuple(Skipped(**skipped) for skipped in data["skipped"]),
        dense_bytes=data["dense_bytes"],
        dense_bf16_bytes=data["dense_bf16_bytes"],
        dense_selection=Measurement.from_dict(data["dense_selection"]),
        dense_report=Measurement.from_dict(data["dense_report"]),
        trials=(),
        unreached=tuple(Skipped(**matrix) for matrix in data.get("unreached", ())),
    )
