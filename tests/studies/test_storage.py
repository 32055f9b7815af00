from __future__ import annotations

import shutil
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.errors import StorageError, StudyError
from autocompress.studies import storage, study_store
from autocompress.studies.run_folder import find_study
from autocompress.studies.storage import (
    default_storage,
    file_of,
    open_storage,
    settle,
    storage_errors,
    storage_url,
)
from autocompress.studies.study_store import (
    create_study,
    existing_study,
    load_optuna_study,
    read_study,
)
from autocompress.studies.trial_owner import end_abandoned
from autocompress.units import Limits
from tests.studies.study_fixtures import study_of
from tests.studies.test_study_store import add_trial, propose


@pytest.fixture(params=["sqlite", "journal URL", "journal path"])
def url(request, tmp_path):
    return {
        "sqlite": f"sqlite:///{tmp_path / 'elsewhere.db'}",
        "journal URL": f"journal://{tmp_path / 'elsewhere.log'}",
        "journal path": str(tmp_path / "elsewhere.journal"),
    }[request.param]


def make(runs, url):
    header = study_of(limits=Limits(1_600_000, 4.5), folder=runs / "s")
    return header, create_study(header, url)


def test_every_kind_of_storage_keeps_a_study(tmp_path, url):
    assert existing_study("s", url) is None
    assert not list(tmp_path.glob("elsewhere*"))
    header, study = make(tmp_path, url)
    seen = add_trial(study)
    propose(study)
    settle(study)

    assert find_study(None, tmp_path)[1] == storage_url(url)
    record = read_study(None, tmp_path)
    assert record.dense_bytes == header.dense_bytes
    assert [trial.selection for trial in record.trials] == [seen]
    again = existing_study("s", url)
    assert again is not None
    assert end_abandoned(again) == 0  # it is this very process's
    running = again.get_trials(states=(TrialState.RUNNING,))
    assert [trial.number for trial in running] == [1]
    with pytest.raises(StudyError, match="just made a study 's'"):
        make(tmp_path, url)
    with pytest.raises(StudyError, match="'other'"):
        load_optuna_study("other", url)
    file_of(storage_url(url)).unlink()
    with pytest.raises(StudyError, match="does not exist"):
        read_study("s", tmp_path)


def test_a_storage_that_is_deleted_midway_is_written_again_and_said(tmp_path, url):
    _, study = make(tmp_path / "runs", url)
    seen = add_trial(study)
    file_of(storage_url(url)).unlink()
    with (
        pytest.raises(StorageError, match=r"was deleted while.*written again"),
        storage_errors(url),
    ):
        add_trial(study)
    assert add_trial(study) == seen  # who goes on all the same, goes on in the new file
    settle(study)
    record = read_study("s", tmp_path / "runs")
    assert [trial.selection for trial in record.trials] == [seen, seen]
    assert add_trial(load_optuna_study("s", url)) == seen


def test_a_run_folder_that_is_deleted_midway_comes_back_with_the_trials(tmp_path):
    url = default_storage(tmp_path / "s")
    _, study = make(tmp_path, url)
    seen = add_trial(study)
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StorageError, match="written again"):
        add_trial(study)
    assert read_study("s", tmp_path, url).trials[0].selection == seen


def test_a_file_that_takes_the_place_of_the_storage_is_left_alone(tmp_path, url):
    _, study = make(tmp_path / "runs", url)
    path = file_of(storage_url(url))
    (tmp_path / "new").write_text("precious")
    (tmp_path / "new").replace(path)
    with pytest.raises(StorageError, match="replaced by another file"), storage_errors(url):
        add_trial(study)
    assert path.read_text() == "precious"


LOCKED = r"\.db is locked by another process.*What had finished is kept"


@pytest.fixture
def impatient(monkeypatch):
    """A locked file is not waited for."""
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.1)


def test_a_locked_database_is_a_storage_error(tmp_path, impatient):
    url = default_storage(tmp_path / "s")
    _, study = make(tmp_path, url)
    seen = add_trial(study)
    with sqlite3.connect(tmp_path / "s" / "study.db") as other:
        other.execute("begin exclusive")
        with pytest.raises(StorageError, match=LOCKED), storage_errors(url):
            add_trial(study)
        other.rollback()
    assert read_study("s", tmp_path).trials[0].selection == seen
    assert add_trial(study) == seen


def test_a_locked_database_is_not_said_to_be_damaged(tmp_path, impatient):
    """Who is told to delete a damaged file would lose a sound one."""
    url = default_storage(tmp_path / "s")
    _, study = make(tmp_path, url)
    settle(study)
    with sqlite3.connect(tmp_path / "s" / "study.db") as other:
        other.execute("begin exclusive")
        for read in (lambda: read_study("s", tmp_path), lambda: existing_study("s", url)):
            with pytest.raises(StorageError, match=LOCKED):
                read()
        other.rollback()


def test_a_database_that_is_locked_is_no_unwritable_folder(tmp_path, impatient, monkeypatch):
    create, url = optuna.create_study, f"sqlite:///{tmp_path}/shared.db"
    open_storage(url)
    with sqlite3.connect(tmp_path / "shared.db") as other:

        def late(**settings):
            other.execute("begin exclusive")
            return create(**settings)

        monkeypatch.setattr(study_store.optuna, "create_study", late)
        with pytest.raises(StorageError, match=LOCKED):
            make(tmp_path, url)
        other.rollback()


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    def lacks(*_args, **_options):
        raise ImportError("Failed to import DB access module for the specified storage URL.")

    monkeypatch.setattr(storage.optuna.storages, "RDBStorage", lacks)
    with pytest.raises(
        StorageError, match=r"driver for postgresql.*pip install psycopg2"
    ) as caught:
        open_storage("postgresql://me:secret@host/name")
    assert "secret" not in str(caught.value)


def test_a_journal_that_is_no_journal_is_a_storage_error(tmp_path):
    path = tmp_path / "study.journal"
    path.write_text("nonsense\n" * 9)
    with pytest.raises(StorageError, match=r"study\.journal cannot be opened"):
        open_storage(str(path))
