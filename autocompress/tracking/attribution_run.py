"""Adds to the run of a trial what each group of its matrices saves and harms."""

from __future__ import annotations

import json
from typing import Any

from autocompress.errors import StorageError
from autocompress.judging.attribution import Attribution
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.tracking.mlflow_client import load_mlflow, without_password
from autocompress.tracking.mlflow_store import MlflowStore
from autocompress.tracking.run_data import split_table

DETAILS, TABLE = "attribution.json", "attribution_table.json"


def log_attribution(
    study: StudyRecord, trial: TrialRecord, attribution: Attribution, uri: str | None = None
) -> str:
    """Write an attribution into the run of its trial, and return where that is.

    What is there already is replaced. A trial that was not tracked before gets its run.

    Args:
        study: the study.
        trial: one of its trials.
        attribution: of the trial's plan.
        uri: where to track; what MLflow itself would choose when left out.

    Raises:
        StorageError: the store cannot be reached or written.
    """
    mlflow = load_mlflow()
    place = uri or mlflow.get_tracking_uri()
    try:
        store = MlflowStore(study, uri)
        run = store.run_of(study, trial)
        send_attribution(store.client, run, attribution)
        if store.is_new:
            store.end("FINISHED")
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(
            f"the attribution was not logged to {without_password(place)} ({reason})",
            hint="The same command again tries once more; --no-track leaves it out.",
        ) from error
    return f"{without_password(place)}, run {run}"


def send_attribution(client: Any, run: str, attribution: Attribution) -> None:
    """Write the table that MLflow shows, and all there is as JSON."""
    client.log_dict(run, attribution.to_dict(), DETAILS)
    client.log_dict(run, split_table(attribution_table(attribution)), TABLE)
    client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))


def attribution_table(attribution: Attribution) -> dict[str, list[Any]]:
    """The groups by columns, after those of each grouping what is left of the total."""
    rows: list[dict[str, Any]] = []
    key = attribution.gauge.divergence.lower()
    for grouping in attribution.groupings:
        rows += [
            {
                "by": grouping,
                "group": each.group,
                "matrices": each.layers,
                "bytes_saved": each.bytes_saved,
                "saved_share": each.saved_share,
                "increase": each.lost.increase,
                "increase_low": each.interval and each.interval.low,
                "increase_high": each.interval and each.interval.high,
                key: each.lost.divergence,
            }
            for each in attribution.by(grouping)
        ]
        rest = attribution.interaction(grouping)
        rows.append(dict.fromkeys(rows[0]) | {
            "by": grouping, "group": "interaction", "increase": rest.increase, key: rest.divergence,
        })  # fmt: skip
    return {column: [row[column] for row in rows] for column in rows[0]}
