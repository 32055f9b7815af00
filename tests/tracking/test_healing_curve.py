from __future__ import annotations

import math
from dataclasses import replace

from autocompress.records import PERPLEXITY
from autocompress.studies.study import HEALED, Healing
from autocompress.tracking.healing_curve import PICTURE, send_healing
from autocompress.tracking.mlflow_client import open_experiment
from autocompress.tracking.mlflow_store import MlflowStore
from tests.studies.study_fixtures import study_of, trial
from tests.tracking.stored_runs import runs_of

CHECKS = (
    {"step": 0, "training_loss": math.nan, "divergence": 0.13, "loss": 2.83},
    {"step": 25, "training_loss": 0.2, "divergence": 0.08, "loss": 2.81},
    {"step": 50, "training_loss": 0.1, "divergence": 0.05, "loss": 2.79},
)


def curve(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]


def test_the_curve_has_a_step_for_each_check(client):
    experiment = open_experiment(client, client.tracking_uri)
    run = client.create_run(experiment, run_name="healed").info.run_id
    send_healing(client, run, CHECKS, PERPLEXITY)
    assert curve(client, run, "heal_kl") == [(0, 0.13), (25, 0.08), (50, 0.05)]
    assert curve(client, run, "heal_nll") == [(0, 2.83), (25, 2.81), (50, 2.79)]
    assert curve(client, run, "heal_loss") == [(25, 0.2), (50, 0.1)]
    assert [entry.path for entry in client.list_artifacts(run)] == [PICTURE]


def test_the_run_of_a_healed_trial_has_its_curve_and_settings(client, tmp_path):
    settings = {"steps": 50, "rate": 0.01}
    healing = Healing(50, 12_800, "bundled", settings, CHECKS, of=0, phase="knobs", weights="ab12")
    before = trial(0, 0.1, 1_600_000)
    healed = replace(trial(1, 0.04, 1_600_000, phase=HEALED), healing=healing)
    study = study_of(before, healed, folder=tmp_path / "runs" / "healing")
    store = MlflowStore(study, client.tracking_uri)
    for each in study.trials:
        store.send_trial(study, each)
    _, (plain, run) = runs_of(client, study)
    assert curve(client, run.info.run_id, "heal_kl") == [(0, 0.13), (25, 0.08), (50, 0.05)]
    assert run.data.params["healing.of"] == "0"
    assert run.data.params["healing.settings.rate"] == "0.01"
    assert not [key for key in {**plain.data.params, **plain.data.metrics} if "heal" in key]
    assert not [key for key in run.data.params if "checks" in key]
