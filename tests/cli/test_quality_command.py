"""A quality as the target, as it is typed: search, compress, front."""

from __future__ import annotations

import json
import random

import pytest

from autocompress.cli.main import main
from autocompress.deploy import verify
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY, make_tiny_model, make_tiny_tokenizer

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 2], group_sizes: [16]}
"""
TOKENS = 3_000
COMMON = ["--space", "tiny.yaml", "--data", "my text.txt"]
SEARCH = ["search", "--model", "dense", *COMMON, "--no-track", "--no-refit"]
SEARCH += ["--runs-dir", "my runs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny dense model, a text and a space, in a folder with a space in its name."""
    place = tmp_path_factory.mktemp("my folder")
    make_tiny_model("llama").save_pretrained(place / "dense")
    make_tiny_tokenizer().save_pretrained(place / "dense")
    (place / "tiny.yaml").write_text(SPACE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=TOKENS)
    (place / "my text.txt").write_text("\n".join(f"w{word}" for word in words))
    return place


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here, raising=False)


def test_compress_writes_the_smallest_plan_that_keeps_it(capfd):
    sizes = {}
    for quality in ("cosine 0.9", "cosine 0.99"):
        command = ["compress", "dense", "--quality", quality, *COMMON, "--out", quality, "--json"]
        assert main(command) == 0
        report = json.loads(capfd.readouterr().out)
        assert {each["text"] for each in report["targets"]} == {"selection", "report"}
        assert all(each["met"] for each in report["targets"])
        assert all(each["reached"] >= float(quality.split()[1]) for each in report["targets"])
        sizes[quality] = report["bytes"]
    assert sizes["cosine 0.9"] < sizes["cosine 0.99"] < report["dense_bytes"]


def test_compress_says_what_is_nearest_where_the_budget_rules_the_quality_out(capfd, folder):
    command = ["compress", "dense", "--quality", "cosine 0.9999", "--budget", "4x", *COMMON]
    assert main([*command, "--out", "out"]) == 3
    said = " ".join(capfd.readouterr().err.split())
    assert "no plan keeps the quality" in said
    assert "cosine MISSED: 0." in said
    assert "The nearest takes" in said
    assert not (folder / "out").exists()


def test_search_and_front(capfd):
    assert main([*SEARCH, "--quality", "cosine 0.98", "--trials", "6", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    best = found["best"]
    assert found["study"] == "dense-qcosine-0.98"
    assert found["budget"]["cosine"] == 0.98
    assert all(verdict["met"] for verdict in best["targets"])
    smaller = [point for point in found["front"] if point["bytes"] < best["bytes"]]
    assert smaller
    assert not any(point["meets_budget"] for point in smaller)

    assert main(["front", "--runs-dir", "my runs"]) == 0
    text = capfd.readouterr().out
    assert "cosine to dense at least 0.98" in text
    assert "The best meets every target:" in text
    assert "cosine met: 0.9" in text

    assert main(["front", "--runs-dir", "my runs", "--quality", "cosine 0.9", "--json"]) == 0
    picked = json.loads(capfd.readouterr().out)["picked"]
    assert picked["bytes"] < best["bytes"]


def test_a_search_that_cannot_keep_it_shows_the_nearest_and_exits_with_three(capfd):
    command = [*SEARCH, "--quality", "cosine 0.9999", "--budget", "5x", "--trials", "2"]
    assert main(command) == 3
    out, err = capfd.readouterr()
    assert "No measured trial meets every target. The nearest is trial" in out
    assert "MISSED" in out
    assert "nearest" in out
    assert "autocompress export" in out
    assert "MISSED" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quality", "5"], "Type 5% if perplexity may grow by 5 %"),
        (["--quality", "good"], "--quality is not understood: got 'good'"),
        (["--quality", "cosine 1.5"], "a cosine between 0 and 1"),
        (["--quality", "0%"], "more than zero"),
    ],
)
@pytest.mark.parametrize("command", [["search"], ["compress", "dense", "--out", "x"]])
def test_a_wrong_quality_is_one_paragraph(capfd, command, arguments, words):
    assert main([*command, *arguments]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said


def test_options_that_would_do_nothing_are_refused(capfd, folder):
    recipe = folder / "recipe.yaml"
    recipe.write_text("layers: {}")
    command = ["compress", "dense", "--out", "x", *COMMON]
    assert main([*command, "--budget", "4x", "--selection-data", "my text.txt"]) == 2
    assert "selection_data" in capfd.readouterr().err
    assert main([*command, "--recipe", str(recipe), "--quality", "5%"]) == 2
    assert "a recipe and a quality" in " ".join(capfd.readouterr().err.split())
