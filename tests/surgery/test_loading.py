from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import autocompress
from autocompress.errors import AutocompressError, ConfigurationError, ModelError
from autocompress.surgery.loading import BUNDLED_MODEL, fingerprint, load, load_model


@pytest.fixture
def saved(tiny_llama, tiny_tokenizer, tmp_path):
    folder = tmp_path / "dense"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_the_bundled_model_loads_without_a_name():
    loaded = load_model(None)
    assert loaded.source == BUNDLED_MODEL
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert load_model(BUNDLED_MODEL).fingerprint == loaded.fingerprint
    assert loaded.tokenizer("def f(x):")["input_ids"]


def test_a_folder_loads_in_its_own_type_or_the_wanted_one(saved, tiny_llama):
    assert load_model(str(saved)).model.dtype == torch.float32
    loaded = load_model(str(saved), dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.source == str(saved)
    model, tokenizer = load(saved)
    assert torch.equal(model.lm_head.weight, tiny_llama.lm_head.weight)
    assert len(tokenizer) == 96
    assert autocompress.load is load


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stay_in_their_shards_on_disk(dtype, tiny_model, tiny_tokenizer, tmp_path):
    """They are memory-mapped, so a model may be larger than what memory is free."""
    tiny_model("llama", dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(str(tmp_path))
    lines = Path("/proc/self/maps").read_text().splitlines()
    shards = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in lines
        if str(tmp_path) in line
    ]
    for name, parameter in loaded.model.named_parameters():
        assert any(parameter.data_ptr() in shard for shard in shards), name


@pytest.mark.parametrize(
    ("family", "architecture"), [("bert", "BertForMaskedLM"), ("t5", "T5ForConditionalGeneration")]
)
def test_other_architectures_come_as_what_they_were_saved_as(
    family, architecture, tiny_model, tiny_tokenizer, tmp_path
):
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path)).model) is getattr(transformers, architecture)


def test_the_fingerprint_follows_the_weights(saved, tiny_llama):
    before = load_model(str(saved)).fingerprint
    assert before == load_model(str(saved)).fingerprint == fingerprint(tiny_llama)
    assert len(before) == 16
    assert load_model(str(saved), dtype="bfloat16").fingerprint != before
    tiny_llama.model.norm.weight[0] += 1e-3
    assert fingerprint(tiny_llama) != before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, saved, tiny_llama):
    tiny_llama.model.layers[1].mlp.up_proj.weight[3, 4] = value
    tiny_llama.save_pretrained(saved)
    with pytest.raises(
        ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*NaN or infinite"
    ):
        load_model(str(saved))


def test_a_checkpoint_that_lacks_a_tensor(saved, tiny_llama):
    state = tiny_llama.state_dict()
    del state["lm_head.weight"], state["model.layers.0.mlp.up_proj.weight"]
    tiny_llama.save_pretrained(saved, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks 1 of the tensors.*layers\.0\.mlp\.up_proj"):
        load_model(str(saved))


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _scramble(folder):
    (folder / "config.json").write_text("{")


def _without_weights(folder):
    (folder / "model.safetensors").unlink()


def _without_tokenizer(folder):
    for path in folder.glob("tok*"):
        path.unlink()


def _without_config(folder):
    (folder / "config.json").unlink()


def _unknown_kind(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "no-such-type", "architectures": ["Nothing"]})
    )


@pytest.mark.parametrize(
    ("loss_increase", "message"),
    [
        (_cut, "weights of .* cannot be read"),
        (_scramble, "not a valid JSON file"),
        (_without_weights, "no file named model.safetensors"),
        (_without_tokenizer, "the tokenizer of"),
        (_without_config, "a folder without a model"),
        (_unknown_kind, "no-such-type"),
    ],
)
def test_damaged_folders_are_one_paragraph(loss_increase, message, saved):
    loss_increase(saved)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(saved))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_names_that_are_no_model(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        load_model("./no-such-folder")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(file))


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"somebody/some-model cannot be loaded.*connection to the hub"
    ):
        load_model("somebody/some-model")


def test_devices_and_types_that_do_not_exist():
    with pytest.raises(ConfigurationError, match="--device"):
        load_model(None, device="no-such-device")
    for dtype in ("int8", "nonsense"):
        with pytest.raises(ConfigurationError, match="--compute-dtype"):
            load_model(None, dtype=dtype)


REGISTERED = (
    "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; "
    "assert 'autocompress' in m"
)


@pytest.mark.parametrize(
    "script",
    [
        "import sys, autocompress; assert not {'torch', 'transformers'} & set(sys.modules);"
        "import autocompress.surgery.quantizer",
        "import transformers.quantizers.auto, autocompress",
    ],
)
def test_importing_is_cheap_and_registers_whichever_comes_first(script):
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; {REGISTERED}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert {"load", "__version__"} <= set(dir(autocompress))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = autocompress.no_such_name
    assert issubclass(ModelError, AutocompressError)
