"""One study in one MLflow store: finds or makes its runs, and writes each thing once.

Every call may fail or take as long as the server lets it; ``MlflowMirror`` keeps that away from the
search.
"""

from __future__ import annotations

import getpass
import json
import math
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from autocompress.judging.front import front_of, front_to_dict
from autocompress.judging.hypervolume import hypervolume, hypervolume_series
from autocompress.judging.picking import best_or_none
from autocompress.pictures.front_plot import write_front_html
from autocompress.pictures.front_png import write_front_png
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.tracking.environment import describe_environment, git_revision
from autocompress.tracking.healing_curve import send_healing
from autocompress.tracking.mlflow_client import allowed_name, load_mlflow, open_experiment
from autocompress.tracking.run_data import (
    TAG,
    RunData,
    describe_study,
    front_table,
    methods_table,
    place_tags,
    recipe_yaml,
    report_metrics,
    split_table,
    study_data,
    trial_data,
)

IDENTITY = "mlflow.json"  # in the run folder: which study this is, whatever its name
HYPERVOLUME = "hypervolume"  # metric of the parent run, by the numbers of trials
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # of one batch
PAGE = 1000


class MlflowStore:
    """A study's runs in an MLflow store.

    Args:
        study: the study; its run folder keeps the identity by which its runs are found again.
        uri: where to track; what MLflow itself would choose when left out.

    Attributes:
        client: of the store.
        is_new: whether the study was not in the store before.
    """

    def __init__(self, study: StudyRecord, uri: str | None = None) -> None:
        mlflow = load_mlflow()
        self.uri: str = uri or mlflow.get_tracking_uri()
        self.client = mlflow.MlflowClient(tracking_uri=self.uri)
        self._children: dict[int, Any] = {}
        self.is_new = False
        self._experiment = open_experiment(self.client, self.uri)
        self._parent = self._open_parent(study)

    @property
    def trials(self) -> frozenset[int]:
        """Numbers of the trials that are in the store."""
        return frozenset(self._children)

    def run_of(self, study: StudyRecord, trial: TrialRecord) -> str:
        """Id of the run of a trial, which is written first if it is not there."""
        self.send_trial(study, trial)
        return str(self._children[trial.number].info.run_id)

    def send_trial(self, study: StudyRecord, trial: TrialRecord) -> None:
        """Write a child run with its parameters, metrics and recipe, unless it is there."""
        if trial.number in self._children:
            return
        data = trial_data(study, trial)
        now = int(time.time() * 1000)
        tags = data.tags | _source_tags() | {"mlflow.parentRunId": self._parent}
        began = now - int(trial.seconds * 1000)
        run = self.client.create_run(
            self._experiment, start_time=began, tags=tags, run_name=data.name
        )
        run_id = run.info.run_id
        self._log(run_id, data, step=trial.number, at=now)
        if trial.state != "failed":
            self.client.log_text(run_id, recipe_yaml(trial.plan), "recipe.yaml")
        if trial.healing is not None:
            send_healing(self.client, run_id, trial.healing.checks, study.gauge, data.name)
        self.client.set_terminated(
            run_id, "FAILED" if trial.state == "failed" else "FINISHED", end_time=now
        )
        self._children[trial.number] = run
        if trial.state == "complete":
            self._log(
                self._parent,
                RunData("", metrics=_progress(study, trial)),
                step=trial.number,
                at=now,
            )

    def send_front(self, study: StudyRecord) -> None:
        """Write what is known at the end: report figures, front places, table, JSON, pictures."""
        places = place_tags(study)
        for trial in study.complete:
            run = self._children.get(trial.number)
            if run is not None:
                self._complete_child(study, trial, run, places[trial.number])
        self._complete_curve(study)
        tables = {
            "front_table.json": front_table(study),
            "methods_table.json": methods_table(study),
        }
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _write_json(folder / "front.json", front_to_dict(study))
            for name, columns in tables.items():
                _write_json(folder / name, split_table(columns))
            if front_of(study):
                write_front_html(study, folder / "front.html")
                write_front_png(study, folder / "front.png")
            best = best_or_none(study)
            if best is not None:
                (folder / "best.yaml").write_text(recipe_yaml(best.plan), encoding="utf-8")
            self.client.log_artifacts(self._parent, str(folder))
        final = RunData(
            "",
            metrics={
                "front_size": len(front_of(study)),
                "trials": len(study.trials),
                "final_hypervolume": hypervolume(study),
            },
            tags={
                "mlflow.note.content": describe_study(study),
                "mlflow.loggedArtifacts": json.dumps(
                    [{"path": name, "type": "table"} for name in tables]
                ),
                TAG + "best_trial": "none" if best is None else str(best.number),
            },
        )
        self._log(self._parent, final, step=len(study.trials), at=int(time.time() * 1000))

    def begin(self) -> None:
        """Mark the parent run ``RUNNING``."""
        self.client.update_run(self._parent, status="RUNNING")

    def end(self, status: str) -> None:
        """Mark the parent run ``FINISHED``, or ``KILLED`` when the search was cut off."""
        self.client.set_terminated(self._parent, status)

    def _open_parent(self, study: StudyRecord) -> str:
        identity = _identity(study.folder)
        found = self._search(f"tags.`{TAG}identity` = '{identity}'")
        if found:
            parent = str(found[0].info.run_id)
            for run in self._search(f"tags.`mlflow.parentRunId` = '{parent}'"):
                self._adopt(run)
            return parent
        self.is_new = True
        data = study_data(study)
        revision = git_revision(Path.cwd())
        tags = data.tags | _source_tags() | {TAG + "identity": identity}
        if revision:
            tags |= {
                "mlflow.source.git.commit": revision["commit"],
                TAG + "git_changed": revision["changed"],
            }
        parent = str(
            self.client.create_run(self._experiment, tags=tags, run_name=data.name).info.run_id
        )
        environment = describe_environment()
        known = {
            f"environment.{key}": str(value)
            for key, value in environment.items()
            if key != "packages"
        }
        params = data.params | known
        self._log(parent, RunData("", params, data.metrics), step=0, at=int(time.time() * 1000))
        self.client.log_dict(parent, environment, "environment.json")
        self.client.log_dict(parent, study.settings, "settings.json")
        return parent

    def _adopt(self, run: Any) -> None:
        """Remember a child run of an earlier process, or remove it if it was left unfinished."""
        number = run.data.tags.get(TAG + "trial", "")
        if not number.isdigit():
            return
        if run.info.status == "RUNNING" or int(number) in self._children:
            self.client.delete_run(run.info.run_id)
        else:
            self._children[int(number)] = run

    def _complete_child(
        self, study: StudyRecord, trial: TrialRecord, run: Any, places: dict[str, str]
    ) -> None:
        known = f"report_{study.gauge.figure}" in run.data.metrics
        metrics = {} if known else report_metrics(study, trial)
        tags = {
            key: value for key, value in places.items() if run.data.tags.get(key, "no") != value
        }
        if metrics or tags:
            self._log(
                run.info.run_id,
                RunData("", {}, metrics, tags),
                step=trial.number,
                at=int(time.time() * 1000),
            )

    def _complete_curve(self, study: StudyRecord) -> None:
        """Log the steps of the hypervolume that are missing, or that other trials have overtaken.

        A process that was killed leaves gaps; of trials that run side by side a later one may end
        first.
        """
        from mlflow.entities import Metric

        history = self.client.get_metric_history(self._parent, HYPERVOLUME)
        known: dict[int, float] = {}
        for metric in history:  # more trials never make it less, so the largest is the latest
            known[metric.step] = max(metric.value, known.get(metric.step, 0.0))
        now = int(time.time() * 1000)
        missing = [
            Metric(HYPERVOLUME, step.hypervolume, now, step.trial)
            for step in hypervolume_series(study)
            if not math.isclose(known.get(step.trial, math.nan), step.hypervolume)
        ]
        for start in range(0, len(missing), MOST_METRICS):
            batch = missing[start : start + MOST_METRICS]
            self.client.log_batch(self._parent, batch, synchronous=True)

    def _log(self, run_id: str, data: RunData, *, step: int, at: int) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(allowed_name(key), value) for key, value in data.params.items()]
        metrics = [
            Metric(allowed_name(key), value, at, step) for key, value in data.metrics.items()
        ]
        tags = [RunTag(key, value) for key, value in data.tags.items()]
        self.client.log_batch(run_id, metrics, params[:MOST_PARAMETERS], tags, synchronous=True)
        for start in range(MOST_PARAMETERS, len(params), MOST_PARAMETERS):
            self.client.log_batch(
                run_id, params=params[start : start + MOST_PARAMETERS], synchronous=True
            )

    def _search(self, where: str) -> list[Any]:
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment], where, max_results=PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs


def _progress(study: StudyRecord, trial: TrialRecord) -> dict[str, float]:
    """How far the search has come, for the curves of the parent run."""
    so_far = {HYPERVOLUME: hypervolume(study, until=trial.number)}
    best = best_or_none(study)
    if best is not None and best.selection is not None:
        so_far |= study.gauge.named({"best_figure": best.selection.figure})
        so_far["best_bytes"] = float(best.bytes)
    return so_far


def _identity(folder: Path) -> str:
    """The run folder's identity, made on first use: names are used again, folders are deleted."""
    path = folder / IDENTITY
    if path.exists():
        try:
            return str(uuid.UUID(json.loads(path.read_text(encoding="utf-8"))["identity"]))
        except (ValueError, KeyError, TypeError):
            path.unlink()
    identity = str(uuid.uuid4())
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, {"identity": identity})
    return identity


def _source_tags() -> dict[str, str]:
    tags = {"mlflow.source.name": "autocompress search", "mlflow.source.type": "LOCAL"}
    try:
        return tags | {"mlflow.user": getpass.getuser()}
    except (OSError, KeyError):
        return tags


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
