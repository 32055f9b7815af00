from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.api import speed as api_speed
from autocompress.cli.main import main
from autocompress.evaluation.speed import MemoryUse
from tests.api.tiny_folders import export_to
from tests.conftest import make_tiny_model, make_tiny_tokenizer

KINDS = {"decode", "prefill", "first_token"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny models")
    export_to(place, make_tiny_model("llama"))
    encoder = make_tiny_model("bert")
    encoder.save_pretrained(place / "encoder")
    make_tiny_tokenizer().save_pretrained(place / "encoder")
    return place


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Be in the folder, with no fresh process; what memory is measured of."""
    asked: list[Any] = []

    def alone(source: Any, settings: Any, threads: int) -> MemoryUse:
        asked.append((Path(source).name, settings["dtype"], threads))
        return MemoryUse(200 + 100 * len(asked), 100, None)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(api_speed, "memory_alone", alone)
    return asked


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["evaluate", *words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_an_exported_folder_is_timed_beside_its_dense_model(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = _json(capsys, "small", "--speed")
    assert facts["perplexity"] is None  # the folder says nothing of its texts
    speed = facts["speed"]
    for name in ("model", "dense"):
        assert all(speed[name][f"{kind}_ms"]["median_ms"] > 0 for kind in KINDS)
        assert speed[name]["dtype"] == "float32"
    assert (speed["model"]["exported"], speed["dense"]["exported"]) == (True, False)
    assert speed["ratio"].keys() == KINDS | {"peak_memory", "bytes"}
    assert speed["ratio"]["peak_memory"] == 300 / 400
    assert speed["ratio"]["bytes"] == facts["bytes"] / speed["dense"]["bytes"] < 1
    assert speed["ratio"]["decode"] == pytest.approx(
        speed["model"]["decode_ms"]["median_ms"] / speed["dense"]["decode_ms"]["median_ms"]
    )
    assert speed["prompt_tokens"] == 64  # the context
    assert speed["threads"] >= 1
    assert asked == [("small", "float32", speed["threads"]), ("dense", "float32", speed["threads"])]


def test_the_table_has_both_models_their_ratios_and_how_they_were_timed(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "small", "--speed", "--data", "text.txt", "--tokens", "200"]) == 0
    out, err = capsys.readouterr()
    for words in ("perplexity", "compressed, float32", "dense, float32", "ratio", "first token"):
        assert words in out
    assert max(map(len, out.splitlines())) <= 100
    assert "interquartile range" in out
    assert "Timing" in err
    assert "left out" not in err


def test_a_dense_model_alone_has_its_own_figures_and_needs_no_text(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "dense", "--speed"]) == 0
    out, err = capsys.readouterr()
    assert "model, float32" in out
    assert "ratio" not in out
    assert "Quality is left out: no text is named with --data" in err
    speed = _json(capsys, "./dense", "--speed", "--compute-dtype", "bfloat16")["speed"]
    assert (speed["dense"], speed["ratio"]) == (None, None)
    assert speed["model"]["dtype"] == "bfloat16"
    assert [dtype for _, dtype, _ in asked] == ["float32", "bfloat16"]


def test_a_folder_whose_dense_model_is_gone_is_compared_with_the_one_that_is_named(
    asked: list[Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (folder / "lonely").exists():
        shutil.copytree("small", "lonely")
        recipe = Path("lonely/recipe.yaml")
        gone = str(folder / "gone")
        recipe.write_text(recipe.read_text().replace(str(folder / "dense"), gone))
        assert gone in recipe.read_text()
    assert main(["evaluate", "lonely", "--speed"]) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("Error")]
    assert "lonely was made from cannot be loaded: there is no folder" in line
    assert line.endswith("Name the dense model with --against.")
    speed = _json(capsys, "lonely", "--speed", "--against", "dense")["speed"]
    assert speed["dense"]["model"] == "dense"
    assert speed["ratio"]["prefill"] > 0


@pytest.mark.parametrize(
    ("model", "words"),
    [("encoder", "predictions look at later tokens"), ("none/such/folder", "no folder")],
)
def test_what_does_not_decode_is_refused_in_a_paragraph(
    model: str, words: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", model, "--speed"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert asked == []


def test_another_dense_model_under_the_same_name_is_refused(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = api_speed.load_model
    monkeypatch.setattr(
        api_speed, "load_model", lambda *a, **k: replace(load(*a, **k), fingerprint="other")
    )
    assert main(["evaluate", "small", "--speed"]) == 2
    assert "any more: got fingerprint other" in capsys.readouterr().err
