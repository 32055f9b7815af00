from __future__ import annotations

import json
import random

import pytest
import yaml

from autocompress.api import batch, compressing
from autocompress.cli.main import main
from autocompress.deploy import verify
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4], group_sizes: [16]}
"""
TOKENS = 3_000


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_llama, tiny_tokenizer):
    """A folder with a tiny dense model, a text and a space."""
    monkeypatch.chdir(tmp_path)
    tiny_llama.save_pretrained("dense")
    tiny_tokenizer.save_pretrained("dense")
    (tmp_path / "tiny.yaml").write_text(SPACE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=TOKENS)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    return tmp_path


BUDGET = ["--budget", "2x", "--space", "tiny.yaml", "--data", "text.txt"]


def test_several_models_end_with_what_is_done_and_what_failed(place, capfd, monkeypatch):
    command = ["compress", "dense", "./none", *BUDGET, "--out", "small", "--jobs", "2"]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert "2 models: 1 done, 1 failed" in out
    assert "dense, at most 2x" in out
    assert "Error: ./none: there is no folder ./none" in err
    assert "Traceback" not in err
    assert [path.name for path in (place / "small").iterdir()] == ["dense"]

    assert main(command) == 2  # nothing that is finished is written over
    assert "--skip-existing" in capfd.readouterr().err

    def fail(jobs, *_arguments, **_options):
        return [batch.ModelOutcome(job, "failed", 1.0, error="there is no folder") for job in jobs]

    monkeypatch.setattr(batch, "run_jobs", fail)
    assert main([*command, "--skip-existing", "--json"]) == 1
    done, failed = json.loads(capfd.readouterr().out)
    assert (done["model"], done["state"]) == ("dense", "skipped")
    assert (failed["model"], failed["state"]) == ("./none", "failed")
    assert "no folder" in failed["error"]


@pytest.fixture
def no_work(monkeypatch):
    """Make it an error to begin with the work."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this should have been refused before")

    monkeypatch.setattr(batch, "run_jobs", refuse)
    monkeypatch.setattr(compressing, "open_for_target", refuse)


@pytest.mark.parametrize("models", [["dense"], ["dense", "org/other"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x"], "neither a recipe, a budget nor a quality"),
        (["--out", "x", "--recipe", "r.yaml"], "r.yaml"),
        (["--out", "x", "--budget", "2z"], "2z"),
        (["--out", "x", "--budget", "2x", "--space", "none"], "none"),
        (["--out", "x", "--budget", "2x", "--jobs", "0"], "--jobs"),
    ],
)
def test_what_is_wrong_with_all_is_said_once(models, options, words, place, no_work, capsys):
    assert main(["compress", *models, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert words in err
    assert err.count("\n") == 1


def test_models_that_would_share_a_folder_are_refused(place, no_work, capsys):
    assert main(["compress", "dense", "./dense", "--budget", "2x", "--out", "x"]) == 2
    assert "dense and ./dense" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(place, no_work, capsys):
    (place / "x").mkdir()
    (place / "x" / "photo").write_text("")
    assert main(["compress", "dense", "--budget", "2x", "--out", "x"]) == 2
    assert "--out" in capsys.readouterr().err


def test_one_model_is_written_to_the_folder_itself(place, monkeypatch, capsys):
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    command = ["compress", "dense", *BUDGET, "--out", "small"]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(place / "small")
    assert facts["ratio"] >= 2
    assert facts["perplexity"] > 0 < facts["dense_perplexity"]
    assert len(facts["layers"]) == len(facts["recipe"]["layers"])
    for key in ("bytes", "dense_bytes", "parameters"):
        in_layers = sum(layer[key] for layer in facts["layers"])
        assert sum(role[key] for role in facts["by_role"]) == in_layers
    assert main([*command, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out[out.index("Memory by role") :].splitlines()[:-1])) <= 100
    rows = [line.split() for line in out.splitlines()]
    embedding = next(role for role in facts["by_role"] if role["role"] == "embedding")
    (row,) = [row for row in rows if row[:1] == ["embedding"]]
    assert row[1] == "1"
    assert f"{embedding['ratio']:.2f}x" in row
    assert any(row[:1] == ["file"] for row in rows)
    assert main([*command, "--skip-existing"]) == 0
    assert "finished already" in capsys.readouterr().out


RECIPE = """\
version: 1
budget: 2x
space: my space.yaml
seed: 1
layers:
  "*.up_proj": {method: tensor_train, ranks: 4, out_modes: [6, 8], in_modes: [4, 8], init: random}
  "*.q_proj": {method: svd, rank: 8}
penalty:
  - {layers: "*.q_proj", kind: shannon, weight: 0.1}
"""


def test_a_recipe_is_completed_to_its_budget_and_the_folder_healed_as_it_says(
    place, monkeypatch, capsys
):
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    (place / "my recipes").mkdir()
    (place / "my recipes" / "my space.yaml").write_text(SPACE)
    (place / "my recipes" / "r.yaml").write_text(RECIPE)
    command = ["compress", "dense", "--data", "text.txt", "--recipe", "my recipes/r.yaml"]
    assert main([*command, "--out", "small", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ratio"] >= 2
    assert "2 tensor trains start from random cores" in err
    written = yaml.safe_load((place / "small" / "recipe.yaml").read_text())
    assert (written["seed"], len(written["penalty"])) == (1, 1)
    layers = written["layers"]
    assert len(layers) == len(json.loads(out)["layers"])  # a plain plan of every matrix
    assert {layers[f"model.layers.{k}.mlp.up_proj"]["seed"] for k in (0, 1)} == {1}
    heal = ["heal", "small", "--data", "text.txt", "--steps", "2", "--tokens", "64"]
    assert main([*heal, "--out", "healed", "--json"]) == 0
    assert "asks for a penalty of 0.1 x shannon on *.q_proj" in capsys.readouterr().err
    healed = yaml.safe_load((place / "healed" / "recipe.yaml").read_text())
    assert healed["penalty"] == written["penalty"]

    assert main([*command, "--out", "other", "--budget", "50x"]) == 3
    assert "4 matrices as they are given" in capsys.readouterr().err


def test_a_budget_that_cannot_be_met_ends_with_three(place, capsys):
    assert main(["compress", "dense", *BUDGET, "--out", "x", "--budget", "50x"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "at least" in err.splitlines()[-1]
    assert not (place / "x").exists()
