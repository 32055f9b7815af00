from __future__ import annotations

import math

from autocompress.tracking.healing_curve import PICTURE, send_healing
from autocompress.tracking.mlflow_client import open_experiment

CHECKS = (
    {"step": 0, "loss": math.nan, "kl": 0.13, "nll": 2.83},
    {"step": 25, "loss": 0.2, "kl": 0.08, "nll": 2.81},
    {"step": 50, "loss": 0.1, "kl": 0.05, "nll": 2.79},
)


def curve(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]


def test_the_curve_has_a_step_for_each_check_and_none_twice(client):
    experiment = open_experiment(client, client.tracking_uri)
    run = client.create_run(experiment, run_name="healed").info.run_id
    for checks in (CHECKS[:2], CHECKS, CHECKS):
        send_healing(client, run, checks)
    assert curve(client, run, "heal_kl") == [(0, 0.13), (25, 0.08), (50, 0.05)]
    assert curve(client, run, "heal_nll") == [(0, 2.83), (25, 2.81), (50, 2.79)]
    assert curve(client, run, "heal_loss") == [(25, 0.2), (50, 0.1)]
    assert [entry.path for entry in client.list_artifacts(run)] == [PICTURE]
