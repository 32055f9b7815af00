"""The mirror against a real SQLite store."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from autocompress.judging.front import front_of
from autocompress.judging.hypervolume import hypervolume_series
from autocompress.methods.plan import Plan
from autocompress.tracking import mlflow_store
from autocompress.tracking.environment import describe_environment, git_revision
from autocompress.tracking.mlflow_client import load_mlflow
from autocompress.tracking.mlflow_mirror import MlflowMirror
from tests.studies.study_fixtures import realistic_study, with_windows
from tests.tracking.stored_runs import open_artifact, runs_of

PATIENCE = 120.0


def sync(study, uri):
    """Send whatever MLflow lacks of a study, its front included, and return the warnings."""
    mirror = MlflowMirror(uri)
    mirror.finished(study)
    return mirror.close(PATIENCE)


@pytest.fixture(scope="module")
def mirrored(client, tmp_path_factory):
    """A study mirrored as a search does it: trial by trial, then the front."""
    folder = tmp_path_factory.mktemp("runs") / "llama-10x"
    running, done = realistic_study(folder, finished=False), with_windows(realistic_study(folder))
    mirror = MlflowMirror(client.tracking_uri)
    mirror.started(replace(running, trials=()))
    for trial in running.trials:
        mirror.trial_finished(running.name, trial)
    mirror.finished(done)
    assert mirror.close(PATIENCE) == []
    return done


def test_parent_and_children(client, mirrored):
    (parent,), children = runs_of(client, mirrored)
    assert parent.info.run_name == "llama-10x"
    assert parent.info.status == "FINISHED"
    assert [int(run.data.tags["autocompress.trial"]) for run in children] == list(
        range(len(mirrored.trials))
    )
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert children[2].info.run_name == "002 uniform 3 bit"
    assert children[2].data.params["label"] == "uniform 3 bit"
    assert children[2].data.params["role.query"] == str(
        mirrored.trials[2].plan["model.layers.0.self_attn.q_proj"]
    )
    assert children[14].data.params["knob.floor"] == "0.0"
    assert children[0].data.metrics["perplexity"] == pytest.approx(
        mirrored.trials[0].selection.figure
    )
    assert [children[number].info.status for number in (21, 22, 23)] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
    ]
    assert children[22].data.tags["autocompress.state"] == "infeasible"
    assert children[23].data.tags["autocompress.error"] == "out of memory"


def test_front_members_carry_the_report_and_a_tag(client, mirrored):
    _, children = runs_of(client, mirrored)
    tagged = {
        n for n, run in enumerate(children) if run.data.tags.get("autocompress.front") == "yes"
    }
    assert tagged == {trial.number for trial in front_of(mirrored)}
    assert [
        n for n, run in enumerate(children) if run.data.tags.get("autocompress.best") == "yes"
    ] == [10]
    assert children[10].data.metrics["report_perplexity"] == pytest.approx(
        mirrored.trials[10].report.figure
    )
    metrics = children[10].data.metrics
    assert (
        metrics["report_increase_low"]
        < metrics["report_increase"]
        < metrics["report_increase_high"]
    )


def test_parent_says_what_a_person_needs(client, mirrored, tmp_path, monkeypatch):
    (parent,), _ = runs_of(client, mirrored)
    assert parent.data.params["seed"] == "0"
    assert parent.data.params["environment.python"] == describe_environment()["python"]
    assert "Best that meets every target: trial 10" in parent.data.tags["mlflow.note.content"]
    names = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert names == {
        "front.json", "front_table.json", "front.html", "front.png", "best.yaml",
        "environment.json", "settings.json", "methods_table.json",
    }  # fmt: skip
    front = json.loads(open_artifact(client, parent, "front.json", tmp_path))
    assert front["best"]["trial"] == 10
    assert (
        "torch"
        in json.loads(open_artifact(client, parent, "environment.json", tmp_path))["packages"]
    )
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", client.tracking_uri
    )  # load_table searches with the global functions
    table = client.load_table(parent.info.experiment_id, "front_table.json", [parent.info.run_id])
    assert list(table["trial"]) == [point["trial"] for point in front["front"]]
    methods = client.load_table(
        parent.info.experiment_id, "methods_table.json", [parent.info.run_id]
    )
    assert {"8 bit", "svd", "keep"} <= set(methods["method"])
    assert sum(methods["bytes_share"]) == pytest.approx(1)
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [metric.step for metric in history] == [trial.number for trial in mirrored.complete]
    assert [metric.value for metric in history] == sorted(metric.value for metric in history)


def test_recipe_artifact_is_the_plan(client, mirrored, tmp_path):
    import yaml

    _, children = runs_of(client, mirrored)
    recipe = yaml.safe_load(open_artifact(client, children[8], "recipe.yaml", tmp_path))
    assert Plan.from_recipe(recipe).hash == mirrored.trials[8].plan.hash


def test_sending_again_adds_nothing(client, mirrored):
    before, children = runs_of(client, mirrored)
    assert sync(mirrored, client.tracking_uri) == []
    after, again = runs_of(client, mirrored)
    assert [run.info.run_id for run in after + again] == [
        run.info.run_id for run in before + children
    ]
    assert len(client.get_metric_history(children[10].info.run_id, "report_perplexity")) == 1
    assert len(client.get_metric_history(before[0].info.run_id, "hypervolume")) == len(
        mirrored.complete
    )


def test_resume_sends_what_was_missed_and_replaces_half_written_runs(client, tmp_path):
    study = realistic_study(tmp_path / "cut-off", finished=False)
    study = replace(study, trials=study.trials[:5])
    mirror = MlflowMirror(client.tracking_uri)
    mirror.started(replace(study, trials=study.trials[:2]))
    assert mirror.close(PATIENCE) == []
    (parent,), children = runs_of(client, study)
    assert parent.info.status == "KILLED"
    assert len(children) == 2
    client.update_run(
        children[1].info.run_id, status="RUNNING"
    )  # as if the process had died while writing it

    assert sync(study, client.tracking_uri) == []
    (resumed,), children = runs_of(client, study)
    assert resumed.info.run_id == parent.info.run_id
    assert resumed.info.status == "FINISHED"
    assert [run.data.tags["autocompress.trial"] for run in children] == ["0", "1", "2", "3", "4"]


def test_the_curve_is_made_whole_where_it_has_gaps_or_was_overtaken(client, tmp_path):
    study = realistic_study(tmp_path / "gaps", finished=False)
    one, two, three, *_ = study.trials
    mirror = MlflowMirror(client.tracking_uri)
    mirror.started(replace(study, trials=(one,)))
    mirror.trial_finished(study.name, three)  # a worker that was quicker than that of trial two
    mirror.trial_finished(study.name, two)
    assert mirror.close(PATIENCE) == []
    study = replace(study, trials=(one, two, three))
    for _ in range(2):
        assert sync(study, client.tracking_uri) == []
    (parent,), _ = runs_of(client, study)
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    shown: dict[int, float] = {}
    for metric in history:
        shown[metric.step] = max(metric.value, shown.get(metric.step, 0.0))
    assert shown == pytest.approx(
        {step.trial: step.hypervolume for step in hypervolume_series(study)}
    )
    assert len(history) == 4  # trial three before and after it was known that two had ended


def test_the_same_name_in_a_new_folder_is_another_study(client, mirrored, tmp_path):
    again = replace(mirrored, folder=tmp_path / "llama-10x", trials=mirrored.trials[:1])
    assert sync(again, client.tracking_uri) == []
    parents, children = runs_of(client, mirrored)
    assert len(parents) == 2
    assert len(children) == len(mirrored.trials) + 1


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_a_server_that_is_down_costs_nothing_and_is_told_once(tmp_path):
    study = realistic_study(tmp_path / "lonely")
    mirror = MlflowMirror(f"http://127.0.0.1:{closed_port()}")
    began = time.monotonic()
    mirror.started(replace(study, trials=()))
    for trial in study.trials:
        mirror.trial_finished(study.name, trial, study)
    mirror.finished(study)
    assert time.monotonic() - began < 0.5
    (warning,) = mirror.close(30)
    assert time.monotonic() - began < 25
    assert "is missing 24 trials and the front" in warning
    assert "Connection refused" in warning
    assert "--resume lonely" in warning


def test_a_server_that_never_answers_does_not_hold_up_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        study = realistic_study(tmp_path / "silent")
        mirror = MlflowMirror(f"http://127.0.0.1:{server.getsockname()[1]}")
        mirror.started(study)
        began = time.monotonic()
        (warning,) = mirror.close(1.0)
        assert time.monotonic() - began < 3
    assert "is missing 24 trials: it did not answer in time" in warning


def test_a_store_that_fails_midway_is_made_whole_at_the_end(client, tmp_path, monkeypatch):
    study = realistic_study(tmp_path / "flaky")
    study = replace(study, trials=study.trials[:4])
    real = mlflow_store.MlflowStore.send_trial
    failed = threading.Event()

    def once(self, of, trial):
        if trial.number == 1 and not failed.is_set():
            failed.set()
            raise ConnectionError("gone")
        real(self, of, trial)

    monkeypatch.setattr(mlflow_store.MlflowStore, "send_trial", once)
    mirror = MlflowMirror(client.tracking_uri)
    mirror.started(replace(study, trials=()))
    for trial in study.trials:
        mirror.trial_finished(study.name, trial)
    mirror.finished(study)
    assert mirror.close(PATIENCE) == []
    assert failed.is_set()
    assert len(runs_of(client, study)[1]) == 4


def test_a_mirror_that_was_never_used_has_nothing_to_say():
    assert MlflowMirror("sqlite:////nowhere/mlflow.db").close() == []


def test_default_store_is_mlflows_own(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_mlflow().get_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_git_revision(tmp_path):
    assert git_revision(tmp_path) == {} or "commit" in git_revision(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    subprocess.run(["git", "-C", str(tmp_path), "add", "file"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "first"], check=True)
    assert git_revision(tmp_path)["changed"] == "no"
    (tmp_path / "file").write_text("2")
    revision = git_revision(tmp_path)
    assert revision["changed"] == "yes"
    assert len(revision["commit"]) == 40
