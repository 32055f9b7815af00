from __future__ import annotations

import json

import pytest

from autocompress.errors import StorageError
from autocompress.judging.attribution import Attribution, Contribution, Lost
from autocompress.judging.bootstrap import Interval
from autocompress.records import PERPLEXITY
from autocompress.tracking.attribution_run import DETAILS, TABLE, log_attribution
from autocompress.tracking.mlflow_store import MlflowStore
from tests.studies.study_fixtures import study_of, trial
from tests.tracking.stored_runs import open_artifact, runs_of

TOTAL = Lost(0.10, 0.08)
SVD = Contribution(
    "method", "svd", 2, 6_000, 2 / 3, Lost(0.04, 0.05), Lost(0.06, 0.03), Interval(0.05, 0.07)
)
CODES = Contribution("method", "3 bit", 1, 3_000, 1 / 3, Lost(0.07, 0.05), Lost(0.03, 0.03), None)
MLP = Contribution("part", "mlp", 3, 9_000, 1.0, Lost(0.0, 0.0), TOTAL, None)
FOUND = Attribution(TOTAL, 9_000, 1024, (SVD, CODES, MLP), PERPLEXITY)


@pytest.fixture
def study(tmp_path):
    trials = [trial(number, 0.1, 1_600_000 + number, 3.0) for number in range(2)]
    return study_of(*trials, folder=tmp_path / "runs" / tmp_path.name)


@pytest.fixture
def tracked(client, study):
    store = MlflowStore(study, client.tracking_uri)
    for each in study.trials:
        store.send_trial(study, each)
    store.end("FINISHED")
    return study


def test_an_attribution_goes_to_the_run_of_its_trial(client, tracked, tmp_path, monkeypatch):
    (before,), children = runs_of(client, tracked)
    for _ in range(2):  # a second one replaces the first
        place = log_attribution(tracked, tracked.trials[1], FOUND, client.tracking_uri)
    (after,), still = runs_of(client, tracked)
    assert place == f"{client.tracking_uri}, run {children[1].info.run_id}"
    assert [run.info.run_id for run in still] == [run.info.run_id for run in children]
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    details = json.loads(open_artifact(client, children[1], DETAILS, tmp_path))
    assert details == json.loads(json.dumps(FOUND.to_dict()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    table = client.load_table(after.info.experiment_id, TABLE, [children[1].info.run_id])
    assert list(table["group"]) == ["svd", "3 bit", "interaction", "mlp", "interaction"]
    assert list(table["kl"]) == pytest.approx([0.03, 0.03, 0.02, 0.08, 0.0])
    assert table["increase_high"][0] == 0.07


def test_a_study_that_is_searching_is_left_searching(client, tracked):
    (parent,), _ = runs_of(client, tracked)
    client.update_run(parent.info.run_id, status="RUNNING")
    log_attribution(tracked, tracked.trials[0], FOUND, client.tracking_uri)
    (parent,), _ = runs_of(client, tracked)
    assert parent.info.status == "RUNNING"


def test_a_study_that_was_not_tracked_gets_the_run_of_this_trial(client, study):
    log_attribution(study, study.trials[1], FOUND, client.tracking_uri)
    (parent,), (child,) = runs_of(client, study)
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.data.tags["autocompress.trial"] == "1"


def test_a_store_that_cannot_be_written_is_one_paragraph(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the attribution was not logged to sqlite"):
        log_attribution(study, study.trials[0], FOUND, f"sqlite:///{tmp_path / 'file' / 'a.db'}")
