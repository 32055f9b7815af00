from __future__ import annotations

import json
import math
import shutil

import pytest
import safetensors.torch
import torch

import autocompress
from autocompress.calibration.builder import LayerBuilder
from autocompress.cli.main import main
from autocompress.driver import stages
from autocompress.driver.study_choice import request_of
from autocompress.errors import (
    BudgetUnreachable,
    ConfigurationError,
    DataError,
    ModelError,
    StorageError,
    StudyError,
)
from autocompress.evaluation.evaluator import Evaluator
from autocompress.judging.front import front_of
from autocompress.judging.picking import pick
from autocompress.session import session
from autocompress.space.document import read_document
from autocompress.space.recipe_file import read_recipe
from tests.api.searches import TRIALS

POINT = {"trial", "perplexity", "kl", "bytes", "ratio", "latency_ms", "recipe"}


@pytest.fixture
def no_work(monkeypatch):
    """Make fits and measurements of plans an error."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this was computed before")

    monkeypatch.setattr(LayerBuilder, "fit", refuse)
    for name in ("measure", "run", "score"):
        monkeypatch.setattr(Evaluator, name, refuse)


def test_a_search_gives_the_study(record, workplace):
    assert record.name == "first"
    assert record.folder == workplace / "runs" / "first"
    assert len(record.trials) == TRIALS
    assert {trial.state for trial in record.trials} == {"complete"}
    assert record.limits.memory_bytes == record.dense_bytes // 8
    best = pick(record)
    assert best.label in ("allocated 8x", "allocated 8x on predictions")
    assert best.bytes <= record.limits.memory_bytes
    assert best.report is not None
    assert best.report.text == "report"
    assert math.isfinite(best.report.figure)
    assert best.report.tokens > record.dense_selection.tokens > 100
    assert record.dense_selection.divergence < 1e-6 < best.selection.divergence
    # No text changes the time of a token: it is measured once.
    assert best.report.latency_ms == best.selection.latency_ms > 0


def test_the_same_call_again_goes_on_and_finds_all_done(record, search, no_work):
    assert search(study="first") == record
    assert autocompress.front("first", runs_dir=record.folder.parent) == record


def test_resume_goes_on_with_the_settings_and_trials_of_the_study(record, no_work):
    again = autocompress.search(resume="first", runs_dir=record.folder.parent, track=False)
    assert again == record


def test_a_study_answers_another_budget_without_the_model(record, no_work, monkeypatch):
    monkeypatch.setattr(session, "load_model", None)
    predicted = autocompress.predict_plan(record, "5x")
    assert predicted.prediction.bytes <= record.dense_bytes / 5
    assert read_recipe(read_document(predicted.recipe)).plan == predicted.prediction.plan
    assert predicted.recipe == record.folder / "predicted-5x.yaml"
    facts = json.loads(json.dumps(predicted.to_dict()))
    assert (facts["measured"], facts["study"]) == (False, "first")
    assert facts["ratio"] >= 5
    predicted.recipe.unlink()


def test_resume_with_more_trials_adds_them(record, search):
    search(study="more", trials=1)
    more = autocompress.search(resume="more", trials=2, runs_dir=record.folder.parent, track=False)
    assert [trial.label for trial in more.trials] == [t.label for t in record.trials[:2]]
    assert more.identity["space"] == "tiny"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"budget": "6x"}, "budget"), ({"seed": 3}, "seed"), ({"sampler": "random"}, "sampler")],
)
def test_other_settings_under_the_name_of_a_study_are_refused(record, search, change, named):
    with pytest.raises(StudyError) as caught:
        search(study="first", **change)
    assert f"({named})" in str(caught.value)
    assert str(change[named]) in str(caught.value)
    assert "--resume first" in str(caught.value)


def test_a_budget_that_cannot_be_met_says_the_smallest_that_can(workplace, search):
    with pytest.raises(BudgetUnreachable) as caught:
        search(study="small", budget="100x")
    reachable = caught.value.wanted.rpartition("(")[2].rstrip(")")
    assert 10 < float(reachable.rstrip("x")) < 16
    assert f"--budget {reachable}" in str(caught.value)
    assert not (workplace / "runs" / "small").exists()
    again = search(study="reachable", budget=reachable, trials=1)  # what it says is true
    assert pick(again).bytes <= again.limits.memory_bytes


def test_a_latency_that_cannot_be_met_is_said_before_options_are_priced(search, monkeypatch):
    monkeypatch.setattr(stages, "price_menu", lambda *_: pytest.fail("they were priced"))
    with pytest.raises(BudgetUnreachable, match="as fast as the latency limit"):
        search(study="fast", latency="0.001x")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"budget": "0x"}, ConfigurationError, "--budget"),
        ({"trials": 0}, ConfigurationError, "--trials"),
        ({"sampler": "best"}, ConfigurationError, "tpe"),
        ({"time": "soon"}, ConfigurationError, "--time"),
        ({"time": -1.0}, ConfigurationError, "--time"),
        ({"model": "no/such/folder"}, ModelError, "no/such/folder"),
        ({"data": "no-such-file.txt"}, DataError, "no-such-file.txt"),
        ({"space": "no_such_space"}, ConfigurationError, "no_such_space"),
        ({"resume": "no-such-study"}, StudyError, "no-such-study"),
        ({"study": "../outside"}, ConfigurationError, "--study"),
        ({"study": ""}, ConfigurationError, "--study"),
    ],
)
def test_bad_arguments_are_named(search, workplace, arguments, error, words):
    before = {path.name for path in workplace.iterdir()}
    with pytest.raises(error) as caught:
        search(**arguments)
    assert words in str(caught.value)
    assert {path.name for path in workplace.iterdir()} <= before | {"runs"}


def test_the_tokens_of_each_text_are_settings(search):
    record = search(study="settings", selection_tokens=100, trials=1)
    assert record.dense_selection.tokens < 100
    assert "text.txt" in record.identity["selection_text"]


def test_a_request_is_what_its_settings_are(record, monkeypatch):
    asked = []

    def reached(request, _observers):
        asked.append(request)
        return record

    monkeypatch.setattr("autocompress.api.functions.run_search", reached)
    request = request_of(record)
    autocompress.search(request, track=False)
    autocompress.search(**{**request.to_dict(), "track": False})
    first, second = asked
    assert first.to_dict() == second.to_dict() == request.to_dict()
    assert autocompress.search(request).front == front_of(record)


def test_a_study_is_asked_for_its_front_a_trial_and_a_table(record):
    assert record.front == front_of(record)
    assert record.pick().number == record.pick(str(record.pick().number)).number
    assert record.pick("smallest").bytes == min(trial.bytes for trial in record.front)
    table = record.table()
    assert [row["trial"] for row in table if row["on_front"]] == [
        trial.number for trial in sorted(record.front, key=lambda trial: trial.bytes)
    ]
    frame = record.to_pandas()
    assert len(frame) == len(table) == len(record.complete)
    assert {"label", "bytes", "perplexity", "increase", "kl", "on_front"} <= set(frame.columns)
    assert record.png().exists()


def test_a_text_that_is_used_twice_is_refused(search, workplace):
    text = str(workplace / "text.txt")
    with pytest.raises(DataError):
        search(data=None, calibration_data=text, selection_data=text)


def test_a_text_that_is_too_short_is_refused(search, tmp_path):
    (tmp_path / "short.txt").write_text("Only a few words. And some more of them. That is all.")
    with pytest.raises(DataError, match="short"):
        search(data=str(tmp_path / "short.txt"))


def test_weights_that_are_not_numbers_are_refused(search, record, tmp_path):
    from importlib.resources import files

    broken = tmp_path / "broken"
    shutil.copytree(str(files("autocompress") / "demo" / "model"), broken)
    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][0, 0] = torch.nan
    safetensors.torch.save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="q_proj"):
        search(model=str(broken))


def test_runs_that_cannot_be_written_are_a_storage_error(search, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="--runs-dir"):
        search(runs_dir=tmp_path / "file" / "runs")


def test_a_damaged_study_is_a_storage_error(search, record):
    folder = record.folder.parent / "damaged"
    folder.mkdir()
    (folder / "study.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match=r"study\.db"):
        search(study="damaged")


def test_the_best_trial_exports_to_a_model_of_the_same_perplexity(record, workplace):
    out = workplace / "exported"
    exported = autocompress.export(record, out=out)
    best = pick(record)
    assert exported.text == "report"
    assert math.isclose(exported.verification.figure, best.report.figure, rel_tol=1e-4)
    assert exported.report.weight_bytes == best.bytes
    on_disk = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert exported.report.file_bytes == on_disk <= record.limits.memory_bytes
    measured = autocompress.evaluate(
        str(out), data=str(workplace / "text.txt"), part="report", context=2048
    )
    assert math.isclose(measured["perplexity"], best.report.figure, rel_tol=1e-4)
    assert measured["bytes"] == best.bytes
    with pytest.raises(ModelError, match="compressed already"):
        autocompress.search(str(out), data="bundled", runs_dir=workplace / "runs", track=False)


def test_a_profile_lists_every_option_of_every_matrix(record, workplace, no_work):
    """Same model, text and space as the search: all of it comes from the cache."""
    profile = autocompress.profile(
        str(workplace / "half demo"),
        space=str(workplace / "tiny.yaml"),
        data=str(workplace / "text.txt"),
        runs_dir=workplace / "runs",
    )
    layers = json.loads(json.dumps(profile.to_dict()))["layers"]
    assert [layer["name"] for layer in layers] == [spec.name for spec in record.specs]
    for layer in layers:
        loss_increases = {
            each["bits"]: each["loss_increase"] for each in layer["options"] if "bits" in each
        }
        assert loss_increases[8] < loss_increases[4] < loss_increases[2]
        assert (
            layer["loss_increase"]["4x"] is None
            or layer["loss_increase"]["4x"] <= layer["loss_increase"]["8x"]
        )


def test_json_is_one_object_on_stdout(record, workplace, capfd):
    arguments = ["--data", str(workplace / "text.txt"), "--space", str(workplace / "tiny.yaml")]
    arguments += ["--model", str(workplace / "half demo")]
    arguments += ["--budget", "8x", "--study", "first", "--trials", str(TRIALS), "--no-track"]
    assert main(["search", *arguments, "--runs-dir", str(workplace / "runs"), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert {"study", "dense", "best", "front"} <= printed.keys()
    assert printed["study"] == "first"
    assert printed["dense"]["bytes"] == record.dense_bytes
    best = pick(record)
    assert printed["best"]["trial"] == best.number
    assert printed["best"]["perplexity"] == best.report.figure
    assert printed["best"]["ratio"] == record.dense_bytes / best.bytes
    for point in [printed["best"], *printed["front"]]:
        assert point.keys() >= POINT
        assert point["text"] == "report"
        assert set(point["recipe"]["layers"]) <= {spec.name for spec in record.specs}
    sizes = [point["bytes"] for point in printed["front"]]
    assert sizes == sorted(sizes)


def test_an_unreachable_budget_ends_the_command_with_three(workplace, capsys):
    arguments = ["--data", str(workplace / "text.txt"), "--space", str(workplace / "tiny.yaml")]
    arguments += ["--budget", "100x", "--runs-dir", str(workplace / "runs"), "--no-track"]
    assert main(["search", *arguments]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.splitlines()[-1].startswith("Error: ")
