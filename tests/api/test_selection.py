"""Search, profile and compress keep to the methods and matrices that a person names."""

from __future__ import annotations

import json

import pytest

import autocompress
from autocompress.cli.main import main
from autocompress.driver.study_choice import request_of
from autocompress.errors import ConfigurationError, StudyError
from autocompress.evaluation.corpus import PARTS
from autocompress.methods.keep import Keep
from autocompress.session.session import space_of
from autocompress.space.selection import Selection
from tests.api.tiny_compression import FEW, token_ids, words
from tests.conftest import make_tiny_model, make_tiny_tokenizer

SPACE = """\
version: 1
name: small
methods:
  keep: true
  quantize: {bits: [8, 4], group_sizes: [16]}
  svd: {ranks: [8]}
"""
MLP = {
    f"model.layers.{depth}.mlp.{name}_proj" for depth in (0, 1) for name in ("gate", "up", "down")
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my place")
    make_tiny_model("llama").save_pretrained(folder / "dense")
    make_tiny_tokenizer().save_pretrained(folder / "dense")
    (folder / "small.yaml").write_text(SPACE)
    for seed in range(3):
        (folder / f"{seed}.txt").write_text("\n".join(words(seed)))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def test_a_search_keeps_to_what_is_selected_and_knows_it_again(here):
    texts = FEW | {f"{part}_data": f"{i}.txt" for i, part in enumerate(PARTS)}
    texts |= {"selection_tokens": 256, "pricing_tokens": 0}
    more = {"space": "small.yaml", "trials": 3, "refit": False, "track": False} | texts
    selected = {"methods": "quantize", "layers": ["*.mlp.*"], "keep": "*.1.mlp.up_proj"}
    record = autocompress.search("dense", "1.2x", **selected, **more)
    changed = [
        {name for name, method in trial.plan.items() if method != Keep()} for trial in record.trials
    ]
    assert set().union(*changed) == MLP - {"model.layers.1.mlp.up_proj"}
    assert record.trials[-1].baselines  # keeps to them as well
    assert space_of(request_of(record)).selection == Selection.of(**selected)
    words = {**selected, "layers": "*.mlp.*,*k_proj"}
    with pytest.raises(StudyError, match=r"layers.*got layers = \['\*\.mlp\.\*', '\*k_proj'\]"):
        autocompress.search("dense", "1.2x", **words, **more, study=record.name)


def test_a_profile_shows_what_is_selected(here, capsys):
    options = ["--methods", "svd", "--layers", "*.mlp.*", "--keep", "*.up_proj", "--json"]
    command = ["profile", "dense", "--space", "small.yaml", "--calibration-data", "0.txt"]
    assert main([*command, *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in facts["layers"]} == {n for n in MLP if "up_proj" not in n}
    methods = {option["method"] for layer in facts["layers"] for option in layer["options"]}
    assert methods == {"keep", "svd"}
    reasons = {each["name"]: each["reason"] for each in facts["skipped"]}
    assert reasons["model.layers.0.mlp.up_proj"] == "not selected"


def test_a_model_in_memory_is_compressed_where_it_is_selected(here, tmp_path):
    arguments = {"calibration_data": token_ids(1), "report_data": token_ids(2)} | FEW
    selected = {"methods": ["quantize"], "layers": "*.mlp.*", "keep": ["*.0.*"]}
    arguments |= selected | {"space": "small.yaml", "runs_dir": tmp_path}
    _, report = autocompress.compress(make_tiny_model("llama"), budget="1.1x", **arguments)
    changed = {name for name, method in report.plan.items() if method != Keep()}
    assert changed
    assert changed <= {name for name in MLP if ".1." in name}
    with pytest.raises(ConfigurationError, match=r"says itself which .* got --methods"):
        autocompress.compress(make_tiny_model("llama"), report.plan, **arguments)
