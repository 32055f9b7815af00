"""What any method stores is exported and loaded again, here and in a fresh process.

Not to the bit: where tensors lie in memory decides by which instructions they are multiplied.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

from autocompress.methods.registry import METHODS
from autocompress.surgery.workbench import Workbench
from tests.deploy.exporting import export_tiny
from tests.methods.examples import plan_of

FRESH = """
import json, sys, torch, transformers, autocompress
from safetensors.torch import save_file
out, work = json.load(sys.stdin)
seen = {}
for name, folder, ids in work:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        seen[name] = model(torch.tensor(ids)).logits
save_file(seen, out)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("every method")


@pytest.fixture
def exported(tiny_model, tiny_tokenizer, inputs_of, folders):
    def make(name, family="llama_untied"):
        model = tiny_model(family)
        plan = plan_of(Workbench(model).inventory, name)
        return export_tiny(
            model,
            tiny_tokenizer,
            inputs_of(model),
            folders / f"{family} {name}",
            plan,
            overwrite=True,
        )

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # a tied head; Conv1D with biases
@pytest.mark.parametrize("name", METHODS)
def test_a_model_of_one_method_is_loaded_as_it_was(name, family, exported, inputs_of):
    tiny = exported(name, family)
    folder = tiny.report.folder
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        assert_close(model(**inputs_of(model)).logits, tiny.logits)


def test_a_fresh_process_loads_what_any_method_stores(exported, inputs_of, tiny_model, tmp_path):
    ids = inputs_of(tiny_model("llama_untied"))["input_ids"].tolist()
    made = {name: exported(name) for name in METHODS}
    work = [(name, str(each.report.folder), ids) for name, each in made.items()]
    out = tmp_path / "seen.safetensors"
    given = json.dumps([str(out), work])
    run = subprocess.run([sys.executable, "-c", FRESH], input=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert_close(load_file(out), {name: each.logits for name, each in made.items()})
