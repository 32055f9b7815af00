"""Logs one evaluation as a run of its own: what was measured, and the table of tasks."""

from __future__ import annotations

import getpass
import json
import math
from collections.abc import Mapping
from typing import Any

from autocompress.errors import StorageError
from autocompress.tracking.mlflow_client import (
    allowed_name,
    load_mlflow,
    open_experiment,
    without_password,
)

TABLE_FILE = "tasks.json"


def log_evaluation(
    uri: str | None,
    model: str,
    metrics: Mapping[str, float],
    *,
    params: Mapping[str, Any] | None = None,
    table: Mapping[str, list[Any]] | None = None,
) -> str:
    """Write one run to MLflow and return where it is: the store and the run's id.

    Args:
        uri: where to track; what MLflow itself would choose when left out.
        model: name of the model, the run's name.
        metrics: figures by name; those that are no finite number are left out.
        params: what they depend on.
        table: columns of equal length, such as the tasks' metrics; shown by MLflow as a table.

    Raises:
        StorageError: the store cannot be reached or written.
    """
    mlflow = load_mlflow()
    place = uri or mlflow.get_tracking_uri()
    try:
        return _write(mlflow, place, model, metrics, params or {}, table)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(
            f"the evaluation was not logged to {without_password(place)} ({reason})",
            hint="The figures above are complete; "
            "name a store that can be written with --tracking-uri.",
        ) from error


def _write(
    mlflow: Any,
    place: str,
    model: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    table: Mapping[str, list[Any]] | None,
) -> str:
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = open_experiment(client, place)
    tags = {
        "mlflow.source.name": "autocompress evaluate",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "autocompress.role": "evaluation",
    }
    run = client.create_run(experiment, run_name=model, tags=tags).info.run_id
    for name, value in {"model": model, **params}.items():
        client.log_param(run, name, value)
    for name, value in metrics.items():
        if math.isfinite(value):
            client.log_metric(run, allowed_name(name), value)
    if table:
        rows = [[_json_value(value) for value in row] for row in zip(*table.values(), strict=True)]
        client.log_dict(run, {"columns": list(table), "data": rows}, TABLE_FILE)
        client.set_tag(
            run, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE_FILE, "type": "table"}])
        )
    client.set_terminated(run)
    return f"{without_password(place)}, run {run}"


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
