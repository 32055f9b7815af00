"""Going on from an export with LoRA and the Trainer."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.testing import assert_close

import autocompress
from autocompress.errors import ConfigurationError, ModelError
from autocompress.surgery.inventory import stored_tensors_of
from tests.api.tiny_folders import export_to
from tests.conftest import make_tiny_model

IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_to(tmp_path_factory.mktemp("small model"), make_tiny_model("llama")).path


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def _trainer(model, place):
    arguments = transformers.TrainingArguments(
        str(place), max_steps=3, learning_rate=0.05, report_to=[], use_cpu=True, disable_tqdm=True
    )
    data = [{"input_ids": ids, "labels": ids} for ids in IDS]
    return transformers.Trainer(model=model, args=arguments, train_dataset=data)


def test_lora_wraps_compressed_layers_trains_is_saved_and_read_again(peft, folder, tmp_path):
    model, _ = autocompress.load(folder)
    stored = {name: tensor.clone() for name, tensor in stored_tensors_of(model).items()}
    dense = _logits(model)
    adapted = peft.get_peft_model(model, autocompress.lora_config(model, r=4))
    wrapped = {n for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert len(wrapped) == 2 * 7  # all linear layers of both blocks, whatever their form
    assert_close(_logits(adapted), dense, rtol=0, atol=0)
    trainer = _trainer(adapted, tmp_path / "run")
    before = float(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    trainer.train()
    assert float(trainer.evaluate(trainer.train_dataset)["eval_loss"]) < before - 0.1
    adapted.eval()
    for name, tensor in adapted.get_base_model().state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(tensor, stored[name.replace(".base_layer", "")])
    adapted.save_pretrained(tmp_path / "adapter")
    fresh, _ = autocompress.load(folder)
    config = autocompress.lora_config(fresh, tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter", config=config)
    assert_close(_logits(again), _logits(adapted), rtol=0, atol=0)
    assert again.generate(IDS, max_new_tokens=2, do_sample=False).shape == (2, 8)
    with again.disable_adapter():
        assert_close(_logits(again), dense, rtol=0, atol=0)
    with pytest.raises(ModelError, match="cannot be merged into a compressed layer"):
        again.merge_and_unload()


def test_the_head_takes_an_adapter_and_the_embedding_none(peft, folder):
    model, _ = autocompress.load(folder, dtype="bfloat16")
    config = autocompress.lora_config(model, target_modules=["lm_head", "q_proj"])
    adapted = peft.get_peft_model(model, config)
    assert {p.device.type for p in adapted.parameters()} == {"cpu"}
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    assert adapted.base_model.model.lm_head.lora_B["default"].weight.grad.abs().sum() > 0
    model, _ = autocompress.load(folder)
    config = autocompress.lora_config(model, target_modules=["embed_tokens"])
    with pytest.raises(ConfigurationError, match="does not wrap a compressed embedding"):
        peft.get_peft_model(model, config)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_what_needs_a_dense_weight_is_refused(peft, folder, settings):
    model, _ = autocompress.load(folder)
    config = autocompress.lora_config(model, **settings)
    with pytest.raises(ConfigurationError, match="LoRA on a compressed layer"):
        peft.get_peft_model(model, config)


def test_the_trainer_is_refused_with_what_trains(folder, tmp_path):
    for model in (
        autocompress.load(folder)[0],
        transformers.AutoModelForCausalLM.from_pretrained(folder),
    ):
        with pytest.raises(ModelError, match=r"lora_config.*autocompress heal"):
            _trainer(model, tmp_path)


def test_the_card_says_how_to_go_on(folder):
    card = (folder / "README.md").read_text()
    assert "get_peft_model(model, autocompress.lora_config(model" in card
    for word in ("Trainer", "autocompress heal", "dtype=", "resize the dense model", "merged"):
        assert word in card


def test_without_peft_its_name_is_said(folder, monkeypatch):
    model, _ = autocompress.load(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="pip install peft"):
        autocompress.lora_config(model)
