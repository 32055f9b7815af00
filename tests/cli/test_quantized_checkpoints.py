"""Checkpoints that other libraries quantized: one paragraph, or dense again where that can be."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from autocompress.cli.main import main
from autocompress.deploy import verify
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY

LARGEST = 448.0  # of float8_e4m3fn
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
RECIPE = "version: 1\nlayers:\n  lm_head: {method: quantize, bits: 8, group_size: 16}\n"


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    """A folder with an FP8 checkpoint in the folder ``quantized``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    model = tiny_model("llama_untied", torch.bfloat16)
    model.save_pretrained("quantized")
    tiny_tokenizer.save_pretrained("quantized")
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.clone()
        if "proj" in name:
            scale = tensor.float().abs().max() / LARGEST
            tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, "quantized/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=3_000)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    say(tmp_path, FP8)
    return tmp_path


def say(place, settings):
    path = place / "quantized" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": settings}
    path.write_text(json.dumps(config))


COMMAND = ["compress", "quantized", "--recipe", "recipe.yaml", "--data", "text.txt"]


@pytest.mark.parametrize(
    ("settings", "words", "dense_again"),
    [
        ({"quant_method": "gptq", "bits": 4}, "by GPTQ to 4 bits", False),
        ({"quant_method": "awq", "bits": 4}, "by AWQ to 4 bits", False),
        ({"quant_method": "hqq"}, "by HQQ", False),
        ({"quant_method": "unheard-of"}, "by unheard-of", False),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes to 4 bits", True),
        ({"quant_method": "compressed-tensors"}, "by compressed-tensors", True),
        ({"quant_method": "mxfp4"}, "by MXFP4", True),
        (FP8, "by FP8", True),
    ],
    ids=lambda value: value.get("quant_method") if isinstance(value, dict) else "",
)
def test_what_it_is_and_what_to_do(settings, words, dense_again, place, capsys):
    say(place, settings)
    validate = ["validate", "recipe.yaml", "--model", "quantized"]
    evaluate = ["evaluate", "quantized", "--data", "text.txt"]
    for command in ([*COMMAND, "--out", "small"], evaluate, validate):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert words in error
        assert ("--dequantize" in error) is dense_again
        assert "Traceback" not in error
    if not dense_again:
        assert main([*COMMAND, "--out", "small", "--dequantize"]) == 2
        assert "cannot make this kind dense again" in capsys.readouterr().err


def test_dense_again_counts_what_it_takes_then(place, capsys):
    assert main([*COMMAND, "--out", "small", "--dequantize", "--json"]) == 0
    seen = capsys.readouterr()
    assert "was quantized by FP8, and is dense now" in seen.err
    sizes = json.loads(seen.out)
    config = json.loads((place / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "autocompress"
    bf16 = sizes["dense_bytes"]
    stored = (place / "quantized" / "model.safetensors").stat().st_size
    assert bf16 > 1.3 * stored
    assert sizes["bytes"] < bf16
    assert main(["validate", "recipe.yaml", "--model", "quantized", "--dequantize"]) == 0


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
@pytest.mark.skipif(
    any(map(find_spec, ("bitsandbytes", "compressed_tensors"))), reason="they are there"
)
def test_a_package_that_is_missing_is_named(settings, package, place, capsys):
    say(place, settings)
    assert main([*COMMAND, "--out", "small", "--dequantize"]) == 2
    assert package in capsys.readouterr().err


def test_several_widths_of_compressed_tensors_are_refused(place, capsys):
    """transformers 5.24 decodes every layer by the scheme of one of them, without a word."""
    groups = {str(bits): {"weights": {"num_bits": bits}} for bits in (4, 8)}
    say(place, {"quant_method": "compressed-tensors", "config_groups": groups})
    assert main([*COMMAND, "--out", "small", "--dequantize"]) == 2
    assert "2 kinds of quantized weights" in capsys.readouterr().err
