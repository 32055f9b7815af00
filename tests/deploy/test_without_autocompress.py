"""A process that has not imported autocompress must stop, not run with random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers

from tests.conftest import make_tiny_model, make_tiny_tokenizer
from tests.deploy.exporting import export_tiny

SCRIPT = """
import json, sys, transformers
loaders = {
    "AutoModelForCausalLM": transformers.AutoModelForCausalLM.from_pretrained,
    "LlamaForCausalLM": transformers.LlamaForCausalLM.from_pretrained,
    "AutoModel": transformers.AutoModel.from_pretrained,
    "pipeline": lambda folder: transformers.pipeline("text-generation", model=folder),
}
seen = {}
for folder in sys.argv[1:]:
    for name, load in loaders.items():
        try:
            load(folder)
        except Exception as error:
            seen[f"{folder} {name}"] = f"{type(error).__name__}: {error}"
        else:
            seen[f"{folder} {name}"] = "loaded"
assert not any(name.startswith("autocompress") for name in sys.modules)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Outcome by kind of folder (exported, saved again, and dense as a control) and loader."""
    root = tmp_path_factory.mktemp("without")
    model, tokenizer = make_tiny_model("llama"), make_tiny_tokenizer()
    ids = torch.arange(3, 9)[None]
    export_tiny(model, tokenizer, {"input_ids": ids}, root / "exported")
    transformers.AutoModelForCausalLM.from_pretrained(root / "exported").save_pretrained(
        root / "saved again"
    )
    model.save_pretrained(root / "dense")
    for folder in ("saved again", "dense"):
        tokenizer.save_pretrained(root / folder)
    kinds = ("exported", "saved again", "dense")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(root / kind) for kind in kinds)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    return {key.removeprefix(f"{root}/"): value for key, value in seen.items()}


LOADERS = ("AutoModelForCausalLM", "LlamaForCausalLM", "AutoModel", "pipeline")


@pytest.mark.parametrize("loader", LOADERS)
def test_an_exported_folder_is_an_error(loader, outcomes):
    assert "OSError: Error no file named model.safetensors" in outcomes[f"exported {loader}"]


@pytest.mark.parametrize("loader", LOADERS)
def test_what_save_pretrained_wrote_is_an_error(loader, outcomes):
    assert (
        "RuntimeError: You set `ignore_mismatched_sizes` to `False`"
        in outcomes[f"saved again {loader}"]
    )


@pytest.mark.parametrize("loader", LOADERS)
def test_a_dense_folder_loads_so_the_errors_above_mean_something(loader, outcomes):
    assert outcomes[f"dense {loader}"] == "loaded"
