from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from autocompress.driver.study_choice import Destination
from autocompress.driver.worker import WorkerSettings
from autocompress.paths import located, shown
from autocompress.requests.verbs import SearchRequest
from autocompress.studies.storage import file_of, storage_url


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "my work"
    (place / "my model").mkdir(parents=True)
    for name in ("text.txt", "space.yaml"):
        (place / name).write_text("")
    monkeypatch.chdir(place)
    return place


def test_what_is_there_becomes_absolute_and_other_names_stay(folder):
    assert located("my model") == str(folder / "my model")
    assert located(None) is None
    for name in ("org/model", "hub/name:config:split", "default"):
        assert located(name) == name
    (folder / "default").mkdir()
    assert SearchRequest(runs_dir=folder).located() == SearchRequest(
        runs_dir=folder
    )  # a folder is no space
    (folder / "autocompress-demo").mkdir()
    bundled = SearchRequest(model="autocompress-demo", runs_dir=folder)
    assert bundled.located() == bundled


def test_paths_are_shown_from_the_current_folder_on(folder):
    assert shown(folder / "runs" / "demo") == "runs/demo"
    assert shown("org/model") == "org/model"
    assert shown(f"{folder}/text.txt (report part)") == "text.txt (report part)"
    assert shown(folder.parent / "my work too") == str(folder.parent / "my work too")


def test_what_workers_are_handed_names_the_same_files_in_any_folder(folder, tmp_path, monkeypatch):
    texts = {"data": "text.txt", "report_data": "./text.txt"}
    request = SearchRequest(
        model="my model", space="space.yaml", study="s", storage="my.journal", **texts
    )
    destination = Destination.of(request.study, request).located()
    worker = WorkerSettings(request.located())
    monkeypatch.chdir(tmp_path)
    handed = pickle.loads(pickle.dumps(worker)).request
    paths = (handed.model, handed.space, handed.data, handed.report_data)
    assert all(Path(path).exists() for path in paths)
    assert Path(handed.runs_dir) == folder / "runs"
    assert destination.storage == f"journal://{folder}/my.journal"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("sqlite:///relative.db", "my work/relative.db"),
        ("sqlite:///sub folder/relative.db?timeout=9", "my work/sub folder/relative.db"),
        ("study.journal", "my work/study.journal"),
        ("journal://study.journal", "my work/study.journal"),
    ],
)
def test_storages_in_files_are_absolute(folder, given, file):
    url = storage_url(given)
    assert file_of(url) == folder.parent / file
    assert url.endswith(("?timeout=9", ".db", ".journal"))
    assert storage_url(url) == url


@pytest.mark.parametrize("given", ["postgresql://me:secret@host/name", "sqlite://", "no url"])
def test_other_storages_stay_as_they_are(folder, given):
    assert storage_url(given) == given
