"""A run folder says which study it is of, wherever it is moved."""

from __future__ import annotations

import os

import pytest

from autocompress.errors import StorageError, StudyError
from autocompress.studies.run_folder import find_study, touch
from autocompress.studies.storage import default_storage
from autocompress.studies.study_store import create_study, read_study
from tests.studies.study_fixtures import study_of
from tests.studies.test_study_store import make


def test_the_latest_study_is_the_one_started_or_resumed_last(tmp_path):
    for age, name in ((300, "a"), (200, "b"), (100, "c")):
        make(tmp_path, name)
        pointer = tmp_path / name / "study.json"
        os.utime(pointer, (pointer.stat().st_mtime - age,) * 2)
    assert find_study(None, tmp_path)[0] == "c"
    touch(tmp_path / "a", "a", default_storage(tmp_path / "a"))
    assert read_study(None, tmp_path).name == "a"
    assert read_study("b", tmp_path).name == "b"


def test_a_run_folder_may_be_moved_and_another_storage_is_kept(tmp_path):
    make(tmp_path / "runs", "mine")
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    name, url, folder = find_study("mine", tmp_path / "elsewhere")
    assert (name, folder) == ("mine", tmp_path / "elsewhere" / "mine")
    assert url == default_storage(folder)
    assert read_study("mine", tmp_path / "elsewhere").folder == folder
    other = default_storage(tmp_path / "shared")
    touch(folder, "mine", other)
    assert find_study("mine", tmp_path / "elsewhere")[1] == other


def test_studies_that_are_not_there_are_named_with_those_that_are(tmp_path):
    with pytest.raises(StudyError, match="no study in"):
        read_study(None, tmp_path)
    make(tmp_path, "mine")
    with pytest.raises(StudyError, match=r"'yours'.*mine"):
        read_study("yours", tmp_path)
    with pytest.raises(StudyError, match=r"'yours'.*mine"):
        read_study("yours", tmp_path, default_storage(tmp_path / "mine"))


def test_a_storage_elsewhere_needs_no_run_folder(tmp_path):
    url = default_storage(tmp_path)
    header = study_of(folder=tmp_path / "runs" / "s")
    create_study(header, url)
    assert read_study("s", tmp_path / "other", url).dense_bytes == header.dense_bytes
    assert find_study("s", tmp_path / "runs")[1] == url


def test_a_damaged_pointer_is_a_storage_error(tmp_path):
    make(tmp_path)
    (tmp_path / "s" / "study.json").write_text("{")
    with pytest.raises(StorageError, match=r"study\.json"):
        read_study("s", tmp_path)


def test_a_run_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    header = study_of(folder=tmp_path / "file" / "s")
    with pytest.raises(StorageError, match="--runs-dir"):
        create_study(header, default_storage(tmp_path))
    with pytest.raises(StorageError, match="--runs-dir"):
        touch(tmp_path / "file" / "s", "s", default_storage(tmp_path))
