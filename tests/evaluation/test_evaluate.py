from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import autocompress
from autocompress.api.evaluating import evaluate
from autocompress.cli.evaluate import evaluate as command
from autocompress.errors import ConfigurationError, DataError, ModelError, StorageError
from autocompress.evaluation.corpus import bundled_text, cut_in_three
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import LoadedModel, load_model
from tests.conftest import make_tiny_tokenizer

TOKENS = 600


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load_model(None)


@pytest.fixture
def run() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(command)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_bundled_model_on_the_bundled_report_text(bundled: LoadedModel, tmp_path: Path) -> None:
    result = evaluate(tokens=TOKENS)
    assert result["bytes"] == stored_bytes(bundled.model)
    assert result["tokens"] == TOKENS - math.ceil(TOKENS / 256)
    assert result["perplexity"] == pytest.approx(math.exp(result["nll"]))
    assert 1 < result["perplexity"] < 200
    assert (result["kl"], result["tasks"]) == (None, [])
    copy = tmp_path / "copy.txt"
    copy.write_text(bundled_text("report"), encoding="utf-8")
    again = evaluate(bundled, data=str(copy), tokens=TOKENS)
    assert again["perplexity"] == pytest.approx(result["perplexity"], rel=1e-9)


def test_a_part_is_what_a_search_would_cut(bundled: LoadedModel, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.txt", tmp_path / "part.txt"
    whole.write_text(bundled_text("selection"), encoding="utf-8")
    part.write_text(cut_in_three(bundled_text("selection"))[2], encoding="utf-8")
    cut = evaluate(bundled, data=str(whole), part="report", tokens=TOKENS)
    assert cut["nll"] == pytest.approx(
        evaluate(bundled, data=str(part), tokens=TOKENS)["nll"], rel=1e-9
    )
    assert cut["data"].endswith("whole.txt (report part)")


def test_divergence_from_itself_is_zero(bundled: LoadedModel) -> None:
    result = evaluate(bundled, against=bundled, tokens=TOKENS)
    assert abs(result["kl"]) < 1e-6
    assert result["against"] == "autocompress-demo"


def test_the_increase_over_a_dense_model_has_an_interval(bundled: LoadedModel) -> None:
    noisy = load_model(None)
    weight = noisy.model.get_submodule("model.layers.1.mlp.up_proj").weight
    assert isinstance(weight, torch.Tensor)
    weight += weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    result = evaluate(noisy, against=bundled, tokens=8 * 256)
    low, high = result["increase_interval"]
    assert 0 < low < result["increase"] < high
    few = evaluate(noisy, against=bundled, tokens=TOKENS)
    assert (few["increase"] > 0, few["increase_interval"]) == (True, None)


def test_the_speed_of_models_in_memory_has_no_memory_of_a_fresh_process(tiny_llama: Any) -> None:
    model = LoadedModel(tiny_llama, make_tiny_tokenizer(), "tiny", "")
    result = autocompress.evaluate(model, against=model, speed=True)
    assert (result["perplexity"], result["kl"]) == (None, None)
    speed = result["speed"]
    assert speed["ratio"].keys() == {"decode", "prefill", "first_token", "bytes"}
    assert speed["ratio"]["bytes"] == 1
    assert "peak_memory_bytes" not in speed["model"]


def test_models_of_other_vocabularies_are_not_compared(
    bundled: LoadedModel, tiny_llama: Any
) -> None:
    other = LoadedModel(tiny_llama, bundled.tokenizer, "tiny", "")
    with pytest.raises(ModelError, match="vocabularies of 4096 and 96"):
        evaluate(bundled, against=other, tokens=TOKENS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tokens": 1}, ConfigurationError, "--tokens is too low"),
        ({"limit": 0}, ConfigurationError, "--limit is too low"),
        ({"part": "middle"}, ConfigurationError, "unknown --part"),
        ({"data": "no/such/file.txt"}, DataError, "no such data file"),
    ],
)
def test_bad_arguments(
    bundled: LoadedModel, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(bundled, **settings)


def test_json_is_all_that_stdout_holds(run: Callable[..., Any]) -> None:
    printed = json.loads(run("--tokens", str(TOKENS), "--json").stdout)
    assert {"model", "perplexity", "bytes", "tokens", "kl", "tasks"} <= printed.keys()
    assert printed["model"] == "autocompress-demo"


def test_table_and_mlflow(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autocompress.evaluation.tasks.run_tasks", lambda *_, **__: [_row()])
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    result = run(
        "--tasks", "quiz", "--data", _file(tmp_path), "--tokens", str(TOKENS), "--tracking-uri", uri
    )
    assert "quiz" in result.stdout
    assert "perplexity" in result.stdout
    assert f"Logged to {uri}" in result.stderr
    client = mlflow.MlflowClient(tracking_uri=uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("autocompress").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["quiz/acc"] == 0.5
    assert logged.data.metrics["perplexity"] > 1
    assert logged.data.params["model"] == "autocompress-demo"
    table = json.loads(
        Path(client.download_artifacts(logged.info.run_id, "tasks.json")).read_text()
    )
    assert table["columns"][:3] == ["task", "metric", "value"]
    assert table["data"][0][:3] == ["quiz", "acc", 0.5]
    assert table["data"][0][table["columns"].index("stderr")] is None


def test_tasks_alone_score_no_text(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    monkeypatch.setattr("autocompress.evaluation.tasks.run_tasks", lambda *_, **__: [_row()])
    monkeypatch.setattr(
        "autocompress.tracking.evaluation_run.log_evaluation", lambda *a, **_: logged.append(a)
    )
    printed = json.loads(run("--tasks", "quiz", "--json").stdout)
    assert printed["perplexity"] is None
    assert printed["tasks"][0]["value"] == 0.5
    assert len(logged) == 1


def test_a_store_that_fails_keeps_the_figures(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise StorageError("the evaluation was not logged")

    monkeypatch.setattr("autocompress.evaluation.tasks.run_tasks", lambda *_, **__: [_row()])
    monkeypatch.setattr("autocompress.tracking.evaluation_run.log_evaluation", refuse)
    result = run("--tasks", "quiz", "--json")
    assert json.loads(result.stdout)["tasks"]
    assert "not logged" in result.stderr
    with pytest.raises(StorageError):
        run("--tasks", "quiz", "--tracking-uri", "http://localhost:1")


def _row() -> Any:
    from autocompress.evaluation.tasks import TaskResult

    return TaskResult("quiz", "acc", 0.5, math.nan, 4)


def _file(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text(bundled_text("report"), encoding="utf-8")
    return str(path)
