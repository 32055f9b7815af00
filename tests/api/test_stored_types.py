"""Bytes count in the types of the checkpoint, whatever type the model is computed in."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from autocompress.surgery import loading
from autocompress.surgery.inventory import stored_bytes, take_inventory
from autocompress.surgery.loading import load_model
from tests.api.tiny_compression import FEW, SPACE, token_ids
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY

KEPT = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    """A folder with tiny models of several types, a text and a space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    for name, family, dtype in (
        ("half", "llama", torch.float16),
        ("brain", "llama", torch.bfloat16),
        ("experts", "mixtral", torch.bfloat16),
    ):
        tiny_model(family, dtype).save_pretrained(name)
        tiny_tokenizer.save_pretrained(name)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=3_000)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    return tmp_path


def types_in(folder):
    with safe_open(folder / "autocompress.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", ["half", "brain", "experts"])
def test_float32_is_arithmetic_and_costs_no_bytes(name, place, capsys):
    size = (place / name / "model.safetensors").stat().st_size  # header included
    command = [
        *("compress", name, "--budget", "1.5x", "--space", "tiny.yaml", "--data", "text.txt"),
        *("--out", "small", "--json"),
    ]
    assert main([*command, "--compute-dtype", "float32"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    # A file has experts one by one, which are stacked when they are loaded: shorter names.
    names = 100 * 2 * 4 * 3 + 100 if name == "experts" else 0
    assert size - names <= report["dense_bytes"] <= size
    assert report["bytes"] <= size / 1.5
    kept = {layer["name"]: layer for layer in report["layers"]}
    assert all(
        each["dense_bytes"] == 2 * torch.Size(each["shape"]).numel()
        for each in kept.values()
        if "shape" in each
    )
    types = types_in(place / "small")
    assert "F32" not in types.values()
    assert types[NORM] == {"half": "F16"}.get(name, "BF16")
    config = json.loads((place / "small" / "config.json").read_text())
    assert config["dtype"] == {"half": "float16"}.get(name, "bfloat16")
    assert (
        autocompress.evaluate("small", data="text.txt", tokens=64, compute_dtype="float32")["bytes"]
        == report["bytes"]
    )


def test_commands_compute_in_what_is_faster_and_say_so(place, capsys, monkeypatch):
    texts = ("--space", "tiny.yaml", "--data", "text.txt", "--json")
    compress = ["compress", "brain", "--budget", "1.5x", *texts]
    evaluate = ["evaluate", "small", "--data", "text.txt", "--tokens", "64", "--json"]
    for fastest, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        monkeypatch.setattr(loading, "fastest_type", lambda *_asked, chosen=fastest: chosen)
        assert main([*compress, "--out", "small", "--overwrite"]) == 0
        said = capsys.readouterr().err
        note = "Computing in float32, which this processor does faster than bfloat16"
        assert (note in said) == (name == "float32")
        facts = json.loads((place / "small" / "measurements.json").read_text())
        assert facts["computed_in"] == name
        report = json.loads((place / "small" / "config.json").read_text())
        assert report["dtype"] == "bfloat16"
        assert main(evaluate) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["perplexity"] > 1
        assert (
            main([*compress, "--compute-dtype", "bfloat16", "--out", "other", "--overwrite"]) == 0
        )
        assert note not in capsys.readouterr().err


def test_checkpoints_of_mixed_types_count_each_tensor(place, tiny_tokenizer):
    """transformers loads all of it in the type that the configuration names."""
    path = place / "brain" / "model.safetensors"
    tensors = load_file(path)
    wide = {name: t.float() if "norm" in name else t for name, t in tensors.items()}
    save_file(wide, path, metadata={"format": "pt"})
    size = path.stat().st_size
    for dtype in (None, "float32", "bfloat16"):
        loaded = load_model("brain", dtype=dtype)
        inventory = take_inventory(loaded.model, loaded.stored_types)
        assert inventory.dense_bytes == stored_bytes(loaded.model, loaded.stored_types) == size
        assert {spec.dtype for spec in inventory.layers} == {"bfloat16"}


def test_a_model_in_memory_is_its_own_checkpoint(place, tiny_model):
    model = load_model("brain", dtype="float32").model
    _, report = autocompress.compress(
        model,
        budget="2x",
        calibration_data=token_ids(1),
        **FEW,
        space="tiny.yaml",
        measure=False,
        runs_dir=None,
    )
    assert report.dense_bytes == stored_bytes(model)
