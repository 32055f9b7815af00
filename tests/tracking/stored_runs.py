"""Reads what has been written to a store."""

from __future__ import annotations

from pathlib import Path

from autocompress.tracking.mlflow_client import EXPERIMENT


def runs_of(client, study):
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = list(
        client.search_runs(
            [experiment.experiment_id], f"tags.`autocompress.study` = '{study.name}'"
        )
    )
    parents = [run for run in runs if run.data.tags["autocompress.role"] == "study"]
    children = [run for run in runs if run.data.tags["autocompress.role"] == "trial"]
    return parents, sorted(children, key=lambda run: int(run.data.tags["autocompress.trial"]))


def open_artifact(client, run, name, folder):
    return Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_text()
