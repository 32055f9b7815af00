"""What the calibration text never reaches is not destroyed, in every command as it is typed."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
import yaml

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from autocompress.judging.front import front_to_dict
from tests.api.tiny_compression import FEW, token_ids
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY, make_tiny_tokenizer

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 2], group_sizes: [row]}
  svd: {rank_fractions: [0.5]}
"""
VISION = ("vision_tower", "multi_modal_projector")
COMMON = ["--data", "my text.txt", "--space", "tiny.yaml"]


def make_llava():
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("unreached")
    make_llava().save_pretrained(place / "my llava")
    make_tiny_tokenizer().save_pretrained(place / "my llava")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=2_000)
    (place / "my text.txt").write_text("\n".join(f"w{word}" for word in words))
    (place / "tiny.yaml").write_text(SPACE)
    (place / "some.yaml").write_text("version: 1\nlayers: {lm_head: {method: keep}}\n")
    return place


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    return folder


def compressed(capfd, *options):
    command = ["compress", "my llava", *options, "--data", "my text.txt", "--overwrite", "--json"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


def of_vision(report):
    return [layer for layer in report["layers"] if any(part in layer["name"] for part in VISION)]


def features(folder):
    model, _ = autocompress.load(folder)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat(model.get_image_features(pixel_values=pixels).pooler_output)


def test_a_vision_tower_stays_dense_and_a_budget_that_it_rules_out_says_so(place, capfd):
    for command in (["compress", "my llava", "--out", "never"], ["search", "--model", "my llava"]):
        assert main([*command, "--budget", "5x", *COMMON]) == 3
        err = capfd.readouterr().err
        assert "matrices that the calibration text never reaches: --unreached 8bit" in err
    reachable = err.partition("Ask for --budget ")[2].partition(" ")[0]
    assert main([*command, "--budget", "5x", *COMMON, "--dry-run"]) == 3
    assert "--unreached 8bit" in capfd.readouterr().err

    report, err = compressed(capfd, "--budget", reachable, "--space", "tiny.yaml", "--out", "kept")
    assert {layer["method"] for layer in of_vision(report)} == {"keep"}
    assert {matrix["name"] for matrix in report["unreached"]} == {
        layer["name"] for layer in of_vision(report)
    }
    assert {matrix["reason"] for matrix in report["unreached"]} == {
        "not one input vector on the calibration text"
    }
    first = err.partition("Calibrating")[0]
    assert "of which no loss increase is known: not one input vector" in first
    assert "model.vision_tower.embeddings.position_embedding" in first
    torch.testing.assert_close(features("kept"), features("my llava"), rtol=0, atol=0)


def test_eight_bits_where_asked_and_a_recipe_is_obeyed(place, capfd):
    report, err = compressed(
        capfd, "--budget", "2.2x", "--space", "tiny.yaml", "--unreached", "8bit", "--out", "8 bit"
    )
    assert all(layer["settings"]["bits"] == 8 for layer in of_vision(report))
    assert all(layer["loss_increase"] is None for layer in of_vision(report))
    assert "Stored in 8 bits, as --unreached asks" in err
    ours, dense = features("8 bit").flatten(), features("my llava").flatten()
    assert torch.cosine_similarity(ours, dense, dim=0) > 0.999

    name = of_vision(report)[-1]["name"]
    recipe = {"version": 1, "layers": {name: {"method": "quantize", "bits": 2, "group_size": 0}}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report, err = compressed(capfd, "--recipe", "recipe.yaml", "--out", "asked for")
    (layer,) = [layer for layer in report["layers"] if layer["method"] != "keep"]
    assert (layer["name"], layer["loss_increase"]) == (name, None)
    assert "Warning: recipe recipe.yaml compresses 1 matrix" in err


def test_every_plan_of_a_search_leaves_it_dense(place):
    study = autocompress.search(
        "my llava",
        "1.3x",
        space="tiny.yaml",
        trials=4,
        refit=False,
        track=False,
        data="my text.txt",
        calibration_tokens=300,
        selection_tokens=300,
        report_tokens=300,
        pricing_tokens=0,
    )
    names = {matrix.name for matrix in study.unreached}
    assert len(names) == 9
    assert {trial.phase for trial in study.trials} == {"allocation", "baseline"}
    assert all(trial.plan[name].name == "keep" for trial in study.trials for name in names)
    assert len(front_to_dict(autocompress.front(study.name))["unreached"]) == 9


def test_a_profile_offers_nothing_for_it(place, capfd):
    assert main(["profile", "my llava", *COMMON, "--json"]) == 0
    profile = json.loads(capfd.readouterr().out)
    assert all([each["method"] for each in layer["options"]] == ["keep"]
               for layer in of_vision(profile))  # fmt: skip
    assert len(profile["unreached"]) == len(of_vision(profile))


def test_a_model_in_memory_keeps_it(place):
    model = make_llava()
    data = {"calibration_data": token_ids(0, 256), "measure": False}
    _, report = autocompress.compress(
        model, budget="1.3x", space="tiny.yaml", runs_dir=None, **FEW, **data
    )
    assert len(report.unreached) == 9
    assert "unreached   left dense: 9 matrices" in str(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "2x", "--unreached", "4bit"], "wanted keep, 8bit"),
        (["--recipe", "some.yaml", "--unreached", "8bit"], "beside a recipe without a budget"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(options, words, place, capfd):
    assert main(["compress", "my llava", *options, "--out", "never"]) == 2
    assert words in capfd.readouterr().err
