from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from autocompress.errors import StorageError, StudyError
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.studies import study_store, trial_owner
from autocompress.studies.storage import default_storage, open_storage
from autocompress.studies.study_store import (
    DIRECTIONS,
    HEADER,
    create_study,
    existing_study,
    keep_report,
    load_optuna_study,
    read_study,
    to_record,
)
from autocompress.studies.trial_owner import end_abandoned, own
from autocompress.units import Limits
from tests.studies.study_fixtures import measurement, study_of

PLAN = Plan.of({"model.embed_tokens": Quantize(3), "model.layers.0.mlp.up_proj": Keep()})


def make(runs, name="s"):
    header = study_of(limits=Limits(1_600_000, 4.5), folder=runs / name)
    return header, create_study(header, default_storage(runs / name))


def propose(study, plan=PLAN):
    trial = study.ask()
    own(trial)
    proposal = {"phase": "knobs", "label": "searched", "bytes": 7, "recipe": plan.to_recipe()}
    trial.set_user_attr("proposal", proposal)
    return trial


def add_trial(study, plan=PLAN):
    trial = propose(study, plan)
    seen = measurement(0.1, 7, 4.0, plan)
    trial.set_user_attr("result", {"seconds": 1.5, "selection": seen.to_dict()})
    study.tell(trial, [seen.figure, 7.0, 4.0])
    return seen


def test_a_study_is_read_as_it_was_written(tmp_path):
    header, _ = make(tmp_path)
    assert read_study("s", tmp_path) == header
    assert read_study("s", tmp_path).settings == header.settings


def test_the_objectives_have_names(tmp_path, recwarn):
    _, study = make(tmp_path)
    assert study.metric_names == ["perplexity", "bytes", "latency_ms"]
    assert not [each for each in recwarn if "set_metric_names" in str(each.message)]


def test_trials_and_reports_come_back(tmp_path):
    _, study = make(tmp_path)
    seen = add_trial(study)
    report = measurement(0.1, 7, 4.0, PLAN, text="report")
    assert read_study("s", tmp_path).trials[0].report is None
    keep_report(study, read_study("s", tmp_path).trials[0], report)
    (trial,) = read_study("s", tmp_path).trials
    assert (trial.phase, trial.label, trial.state) == ("knobs", "searched", "complete")
    assert (trial.plan, trial.bytes, trial.seconds) == (PLAN, 7, 1.5)
    assert (trial.selection, trial.report) == (seen, report)


def test_a_trial_that_was_cut_off_before_it_had_a_plan_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_owner, "UNOWNED_SECONDS", 0.0)
    _, study = make(tmp_path)
    study.ask()
    add_trial(study)
    assert end_abandoned(study) == 1
    assert end_abandoned(study) == 0
    record = read_study("s", tmp_path)
    assert [trial.number for trial in record.trials] == [1]
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]


KILLED = 9
RUN_UNTIL_KILLED = f"""
import os
from pathlib import Path
from tests.studies.study_fixtures import measurement
from tests.studies.test_study_store import PLAN, add_trial, make, propose

_, study = make(Path("runs"))
for _ in range(3):
    add_trial(study)
study.set_user_attr("report " + PLAN.hash, measurement(0.1, 7, 4.0, PLAN, text="report").to_dict())
propose(study)
os._exit({KILLED})
"""


def test_a_run_that_is_killed_loses_nothing_of_what_it_wrote(tmp_path):
    """What it wrote is then in SQLite's log, not yet in the file of the database."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", RUN_UNTIL_KILLED]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode == KILLED, killed.stderr
    folder = tmp_path / "runs" / "s"
    assert (folder / "study.db-wal").stat().st_size > 0

    record = read_study("s", tmp_path / "runs")
    assert record == replace(
        study_of(limits=Limits(1_600_000, 4.5), folder=folder), trials=record.trials
    )
    assert [trial.number for trial in record.trials] == [0, 1, 2]
    for trial in record.complete:
        assert (trial.plan, trial.bytes, trial.seconds) == (PLAN, 7, 1.5)
        assert trial.selection == measurement(0.1, 7, 4.0, PLAN)
        assert trial.report == measurement(0.1, 7, 4.0, PLAN, text="report")
    study = load_optuna_study("s", default_storage(folder))
    assert end_abandoned(study) == 1
    assert to_record(study, folder).trials[3].plan == PLAN
    with sqlite3.connect(folder / "study.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def test_sqlite_appends_to_a_log(tmp_path):
    _, study = make(tmp_path)
    engine = study._storage._backend.engine
    with engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 1  # NORMAL


def test_a_study_is_read_while_it_is_written(tmp_path):
    _, study = make(tmp_path)
    add_trial(study)
    with sqlite3.connect(tmp_path / "s" / "study.db") as writer:
        writer.execute("begin immediate")
        writer.execute("delete from trials")
        assert len(read_study("s", tmp_path).trials) == 1
        writer.rollback()
    assert len(read_study("s", tmp_path).trials) == 1


def test_a_study_is_made_once(tmp_path):
    header, _ = make(tmp_path)
    with pytest.raises(StudyError, match=r"just made a study 's'.*The same command again"):
        create_study(header, default_storage(tmp_path / "s"))
    assert existing_study("s", default_storage(tmp_path / "s")) is not None
    assert existing_study("other", default_storage(tmp_path / "s")) is None
    assert existing_study("s", default_storage(tmp_path / "nowhere")) is None
    assert not (tmp_path / "nowhere").exists()


def bare_study(folder, name="s"):
    """What Optuna makes, without what autocompress adds to it."""
    folder.mkdir()
    storage = open_storage(default_storage(folder))
    return optuna.create_study(study_name=name, storage=storage, directions=DIRECTIONS)


def test_a_study_that_was_cut_off_while_it_was_made_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(study_store, "UNHEADED_SECONDS", 0.0)
    bare_study(tmp_path / "s")
    assert existing_study("s", default_storage(tmp_path / "s")) is None
    header, _ = make(tmp_path)
    assert read_study("s", tmp_path) == header


def test_a_study_that_another_search_is_making_is_left_to_it(tmp_path, monkeypatch):
    bare_study(tmp_path / "s")
    other = load_bare(tmp_path / "s")
    monkeypatch.setattr(
        study_store.time, "sleep", lambda _seconds: other.set_user_attr(HEADER, {"of": "other"})
    )
    found = existing_study("s", default_storage(tmp_path / "s"))
    assert found is not None
    assert found.user_attrs[HEADER] == {"of": "other"}


def test_a_study_of_another_program_is_left_alone(tmp_path):
    study = bare_study(tmp_path / "s")
    study.tell(study.ask(), [1.0, 1.0, 1.0])
    with pytest.raises(StudyError, match="not made by autocompress"):
        existing_study("s", default_storage(tmp_path / "s"))
    assert len(load_bare(tmp_path / "s").get_trials()) == 1
    with pytest.raises(StudyError, match="not made by autocompress"):
        load_optuna_study("s", default_storage(tmp_path / "s"))


def load_bare(folder):
    return optuna.load_study(study_name="s", storage=open_storage(default_storage(folder)))


def test_a_storage_that_is_lost_while_it_is_read_is_a_storage_error(tmp_path, monkeypatch):
    _, study = make(tmp_path)
    url = default_storage(tmp_path / "s")

    def locked(*_arguments, **_named):
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(type(study._storage), "get_study_user_attrs", locked)
    for read in (
        lambda: existing_study("s", url),
        lambda: load_optuna_study("s", url),
        lambda: read_study("s", tmp_path),
        lambda: to_record(study, tmp_path / "s"),
    ):
        with pytest.raises(StorageError, match=r"the storage .* is locked by another process"):
            read()


@pytest.mark.parametrize("loss_increase", ["garbage", "header only"])
def test_a_damaged_file_is_a_storage_error(tmp_path, loss_increase):
    _, study = make(tmp_path)
    add_trial(study)
    study._storage.remove_session()
    path = tmp_path / "s" / "study.db"
    content = path.read_bytes()
    path.write_bytes(
        b"nonsense " * 500 if loss_increase == "garbage" else content[:100] + b"\xff" * 9000
    )
    for read in (read_study, lambda *_: existing_study("s", default_storage(tmp_path / "s"))):
        with pytest.raises(StorageError) as caught:
            read("s", tmp_path)
        assert "study.db" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_storage_that_is_gone_or_unknown_is_named(tmp_path):
    make(tmp_path)
    (tmp_path / "s" / "study.db").unlink()
    with pytest.raises(StudyError, match="does not exist"):
        read_study("s", tmp_path)
    with pytest.raises(StorageError, match="nosuch://host"):
        open_storage("nosuch://host/name")


def test_a_running_trial_is_not_part_of_the_record(tmp_path):
    _, study = make(tmp_path)
    add_trial(study)
    propose(study)
    assert len(to_record(study, tmp_path / "s").trials) == 1
