from __future__ import annotations

import json

import pytest
import torch

from autocompress.api.exported_folder import folder_of, open_folder
from autocompress.errors import DataError
from autocompress.methods.keep import Keep
from autocompress.requests.groups import FolderRequest, TextRequest
from autocompress.surgery.loading import load_model
from tests.api.tiny_folders import deepseek, export_to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a model with a vector that is a buffer, not a parameter."""
    return export_to(tmp_path_factory.mktemp("deepseek"), deepseek())


def test_a_folder_is_its_plan_and_its_numbers(folder, tmp_path):
    opened = open_folder(folder.path, FolderRequest(data=str(folder.text), runs_dir=tmp_path))
    assert (opened.path, opened.compressed.plan) == (folder.path, folder.plan)
    buffers = [name for name, _ in opened.session.loaded.model.named_buffers()]
    persistent = [name for name in buffers if name.endswith("e_score_correction_bias")]
    assert persistent
    assert not set(persistent) & set(opened.compressed.weights)
    assert "model.norm.weight" in opened.compressed.weights
    kept = [name for name, method in folder.plan.items() if method == Keep()]
    assert kept
    assert not any(f"{name}.weight" in opened.compressed.weights for name in kept)
    exported = load_model(str(folder.path)).model
    ids = torch.arange(3, 35)[None]
    with opened.session.workbench.applied(opened.compressed, build_nothing) as model:
        torch.testing.assert_close(model(ids).logits, exported(ids).logits)


def build_nothing(name, method):
    pytest.fail(f"{name} is in the folder, and was to be built as {method}")


def test_without_a_text_a_folder_must_know_its_own(folder, tmp_path):
    with pytest.raises(DataError, match="no text is named to calibrate on"):
        open_folder(folder.path, FolderRequest(runs_dir=tmp_path))
    path = folder.path / "measurements.json"
    facts = json.loads(path.read_text())
    recorded = TextRequest(data=str(folder.text), context=32, bos=False).to_dict()
    path.write_text(json.dumps(facts | {"texts": recorded}))
    try:
        session = open_folder(folder.path, FolderRequest(runs_dir=tmp_path)).session
        longer = open_folder(folder.path, FolderRequest(context=64, runs_dir=tmp_path)).session
    finally:
        path.write_text(json.dumps(facts))
    assert session.texts.names["report"] == f"{folder.text} (report part)"
    assert (session.context, longer.context, session.begin) == (32, 64, ())


def test_what_names_a_folder(folder, tmp_path):
    assert folder_of(str(folder.path)) == folder_of(folder.path) == folder.path
    assert folder_of(tmp_path) is None
    assert folder_of("demo-10x") is None
    assert folder_of(None) is None
