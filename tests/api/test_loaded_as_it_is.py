"""What a checkpoint holds and its configuration says may differ: the export states what it is."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from safetensors.torch import save_file

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from autocompress.deploy.verify import Verification
from autocompress.surgery.loading import LoadedModel, fingerprint, load_model
from autocompress.surgery.permanent import compressed_copy
from autocompress.surgery.workbench import Workbench
from tests.api.verifying import score_here
from tests.conftest import VOCABULARY
from tests.deploy.exporting import export_tiny
from tests.mixed_plans import builder, mixed_plan

EMBEDDING_ALONE = """\
version: 1
layers:
  model.embed_tokens: {method: quantize, bits: 8, group_size: 16}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of one's own with a text and a recipe for the embedding alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedding alone.yaml").write_text(EMBEDDING_ALONE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=3_000)
    (tmp_path / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    return tmp_path


@pytest.fixture
def save(place, tiny_tokenizer):
    """Save a model with other tensors, under a name."""

    def save(model, name, tensors=None):
        model.save_pretrained(place / name)
        tiny_tokenizer.save_pretrained(place / name)
        if tensors is not None:
            whole = {key: tensor.clone() for key, tensor in tensors.items()}
            save_file(whole, place / name / "model.safetensors", metadata={"format": "pt"})
        return str(place / name)

    return save


def with_own_head(model):
    """The tensors of a model with tied embeddings, and a head that is another matrix."""
    head = next(name for name in model.all_tied_weights_keys if not name.startswith("encoder"))
    if model.config.model_type == "t5":
        head = "lm_head.weight"
    tensors = dict(model.state_dict())
    return tensors | {head: tensors[head].flip(0) + 0.1}


def command(model, out):
    return [
        *("compress", model, "--recipe", "embedding alone.yaml", "--data", "text.txt"),
        *("--out", out, "--overwrite"),
    ]


def test_a_head_of_its_own_in_a_checkpoint_that_is_called_tied(save, place, tiny_llama, capsys):
    dense = save(tiny_llama, "own head", with_own_head(tiny_llama))
    assert main(command("own head", "small")) == 0, capsys.readouterr().err
    config = json.loads((place / "small" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    model, _ = autocompress.load("small")
    wanted = load_model(dense).model.lm_head.weight
    assert torch.equal(model.lm_head.weight, wanted)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_partly_tied_models_load_as_they_are(
    family, save, tiny_model, tiny_tokenizer, inputs_of, tmp_path
):
    """T5 has a tied encoder, BERT a tied bias beside the head that is not."""
    model = load_model(save(tiny_model(family), "own", with_own_head(tiny_model(family)))).model
    inputs = inputs_of(model)
    tiny = export_tiny(model, tiny_tokenizer, inputs, tmp_path / "small")
    again, _ = autocompress.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, tiny.logits)
    again.save_pretrained(tmp_path / "again")
    twice = type(model).from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(twice(**inputs).logits, tiny.logits)
    transformers.AutoModel.from_pretrained(tmp_path / "small")


@pytest.mark.parametrize("path", ["lm_head", "model.layers.1.mlp.up_proj"])
def test_weights_shared_in_memory_that_no_configuration_ties(
    path, tiny_model, tiny_tokenizer, inputs_of, tmp_path
):
    model = tiny_model("llama_untied")
    one = model.model.embed_tokens if path == "lm_head" else model.model.layers[0].mlp.up_proj
    model.get_submodule(path).weight = one.weight
    inputs = inputs_of(model)
    tiny = export_tiny(model, tiny_tokenizer, inputs, tmp_path / "small")
    again, _ = autocompress.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, tiny.logits)
    assert again.config.tie_word_embeddings

    workbench = Workbench(model)
    copy = compressed_copy(workbench, mixed_plan(workbench.inventory), builder(workbench))
    with torch.no_grad():
        wanted = copy(**inputs).logits
    copy.save_pretrained(tmp_path / "copy")
    with torch.no_grad():
        again = type(model).from_pretrained(tmp_path / "copy")
        assert torch.equal(again(**inputs).logits, wanted)


def without_head(model):
    return {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}


def test_a_language_model_that_was_saved_without_its_head(save, tiny_llama, capsys):
    save(tiny_llama.model, "headless")
    assert main(command("headless", "small")) == 0, capsys.readouterr().err
    assert isinstance(autocompress.load("small")[0], transformers.LlamaForCausalLM)


def test_keys_with_another_prefix(save, tiny_llama, capsys):
    tensors = without_head(tiny_llama)
    save(tiny_llama, "renamed", {k.removeprefix("model."): v for k, v in tensors.items()})
    assert main(command("renamed", "small")) == 0, capsys.readouterr().err


def test_parts_of_a_checkpoint_without_a_use_are_named(save, tiny_llama, capsys):
    save(tiny_llama, "more", without_head(tiny_llama) | {"score.weight": torch.ones(3, 32)})
    assert main(command("more", "small")) == 0
    assert "no use for 1 tensors of the checkpoint (score.weight)" in capsys.readouterr().err


def test_a_folder_that_fails_its_check_is_not_left(save, place, tiny_llama, monkeypatch, capsys):
    save(tiny_llama, "dense")
    wrong = lambda *_, **__: Verification(1.0, 1, 1)  # noqa: E731
    monkeypatch.setattr(verify, "score_in_fresh_process", wrong)
    assert main(command("dense", "small")) == 1
    assert f"{place / 'small'} loads as another model" in capsys.readouterr().err
    assert not any(path.name.startswith((".", "small")) for path in place.iterdir())

    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    assert main(command("dense", "small")) == 0
    before = (place / "small" / "measurements.json").read_text()
    monkeypatch.setattr(verify, "score_in_fresh_process", wrong)
    assert main(command("dense", "small")) == 1
    assert (place / "small" / "measurements.json").read_text() == before


CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM


class TinyConfig(LlamaConfig):
    model_type = "tiny_custom"


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out
"""


def test_code_that_comes_with_a_model(save, place, tiny_llama, monkeypatch, capsys):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place / "modules")
    )
    folder = place / "own code"
    save(tiny_llama, folder.name)
    (folder / "modeling_tiny.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "tiny_custom",
        "architectures": ["TinyForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_tiny.TinyConfig",
            "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert main(command("own code", "small")) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert main([*command("own code", "small"), "--trust-remote-code"]) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    model, _ = autocompress.load("small", trust_remote_code=True)
    assert type(model).__name__ == "TinyForCausalLM"


def test_trust_changes_nothing_for_models_without_code(save, tiny_model):
    folder = save(tiny_model("bert"), "bert")
    model = load_model(folder, trust_remote_code=True).model
    assert type(model) is transformers.BertForMaskedLM
    loaded = LoadedModel(model, None, "bert", fingerprint(model))
    assert not loaded.trust_remote_code
