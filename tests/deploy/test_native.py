from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import autocompress
from autocompress.deploy import native
from autocompress.deploy.native import check_sizes
from autocompress.deploy.weights import INDEX, WEIGHTS, tensor_bytes, weight_files, write_weights
from autocompress.errors import ConfigurationError, ModelError, StorageError
from autocompress.methods.base import stored_tensors
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import load_model
from autocompress.surgery.placement import prefix_of
from autocompress.surgery.quantizer import AutocompressConfig
from autocompress.surgery.workbench import Workbench
from tests.conftest import FAMILIES
from tests.deploy.exporting import export_checkpoint, export_tiny
from tests.mixed_plans import builder


@pytest.fixture
def exported(tiny_model, tiny_tokenizer, inputs_of, tmp_path):
    def make(family, dtype=torch.float32, **options):
        model = tiny_model(family, dtype)
        return export_tiny(model, tiny_tokenizer, inputs_of(model), tmp_path / family, **options)

    return make


def _reload(tiny, folder=None, **options):
    loader = getattr(transformers, type(tiny.loaded.model).__name__)
    model, report = loader.from_pretrained(
        folder or tiny.report.folder, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    return model


def _logits(model, inputs_of):
    with torch.no_grad():
        return model(**inputs_of(model)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "llama_untied", "mixtral", "gemma2"])
def test_the_reloaded_model_computes_exactly_the_same(family, dtype, exported, inputs_of):
    tiny = exported(family, dtype)
    model = _reload(tiny)
    assert torch.equal(_logits(model, inputs_of), tiny.logits)
    assert stored_bytes(model) == tiny.report.weight_bytes == tiny.inventory.plan_bytes(tiny.plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_on_disk_are_the_closed_form_tensor_for_tensor(family, exported):
    tiny = exported(family, torch.bfloat16)
    sizes = {
        name: t.numel() * t.element_size()
        for name, t in load_file(tiny.report.folder / WEIGHTS).items()
    }
    assert tensor_bytes(tiny.report.folder) == sizes
    assert len(sizes) == tiny.report.tensors
    for spec in tiny.inventory.layers:
        method = tiny.plan[spec.name]
        if method != Keep():
            prefix = prefix_of(spec)
            stored = {
                n.removeprefix(prefix): size for n, size in sizes.items() if n.startswith(prefix)
            }
            assert stored == dict(stored_tensors(method, spec))
    written = (tiny.report.folder / WEIGHTS).stat().st_size
    assert written == tiny.inventory.plan_bytes(tiny.plan) == tiny.report.file_bytes


def test_a_tensor_of_another_size_is_noticed(exported):
    tiny = exported("llama")
    sizes = tensor_bytes(tiny.report.folder)
    check_sizes(sizes, tiny.plan, tiny.inventory, tiny.loaded.model)
    name = next(iter(sizes))
    for wrong in (
        sizes | {name: sizes[name] + 1},
        sizes | {"more": 4},
        {n: s for n, s in sizes.items() if n != name},
    ):
        with pytest.raises(StorageError, match="is not what its method stores"):
            check_sizes(wrong, tiny.plan, tiny.inventory, tiny.loaded.model)


def test_the_folder_is_complete(exported):
    tiny = exported("llama", measurement={"perplexity": 12.5, "text": "report"})
    folder = tiny.report.folder
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "recipe.yaml",
        "measurements.json",
    }
    assert "model.safetensors" not in names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["quant_method"] == "autocompress"
    assert Plan.from_recipe(yaml.safe_load((folder / "recipe.yaml").read_text())) == tiny.plan
    facts = json.loads((folder / "measurements.json").read_text())
    assert facts["measurement"]["perplexity"] == 12.5
    assert facts["plan"] == tiny.plan.hash
    assert facts["bytes"] == tiny.report.weight_bytes
    assert "Perplexity on the report text: 12.5" in (folder / "README.md").read_text()


def test_the_package_loads_model_and_tokenizer(exported, inputs_of):
    tiny = exported("llama")
    model, tokenizer = autocompress.load(tiny.report.folder)
    assert torch.equal(_logits(model, inputs_of), tiny.logits)
    assert tokenizer("w1 w2")["input_ids"] == [4, 5]
    assert (
        load_model(str(tiny.report.folder)).fingerprint
        == load_model(str(tiny.report.folder)).fingerprint
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama_untied", "t5"])
def test_generate_uses_its_cache(family, exported):
    model = _reload(exported(family))
    ids = torch.arange(3, 9)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(
        model.generate(ids, use_cache=True, **options),
        model.generate(ids, use_cache=False, **options),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_the_configuration_of_a_loaded_model_stays_clean(family, exported):
    model = _reload(exported(family))
    assert not hasattr(model.config, "transformers_weights")
    assert isinstance(model.config.quantization_config, AutocompressConfig)
    keys = set(model.state_dict())
    model.tie_weights()
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "bert", "t5"])
def test_save_pretrained_writes_a_folder_that_loads(family, exported, inputs_of, tmp_path):
    tiny = exported(family)
    _reload(tiny).save_pretrained(tmp_path / "again")
    again = _reload(tiny, tmp_path / "again")
    assert torch.equal(_logits(again, inputs_of), tiny.logits)
    assert stored_bytes(again) == tiny.report.weight_bytes
    again.save_pretrained(tmp_path / "thrice")
    assert torch.equal(_logits(_reload(tiny, tmp_path / "thrice"), inputs_of), tiny.logits)


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "opt"])
@pytest.mark.parametrize("resaved", [False, True])
def test_the_body_loads_without_its_head(family, resaved, exported, inputs_of, tmp_path):
    tiny = exported(family)
    full, folder = _reload(tiny), tiny.report.folder
    if resaved:
        folder = tmp_path / "again"
        full.save_pretrained(folder)
    body, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(key.startswith("lm_head.") for key in report["unexpected_keys"])
    with torch.no_grad():
        assert torch.equal(body(**inputs_of(body))[0], full.base_model(**inputs_of(full))[0])


def test_compressed_tensors_keep_their_types_in_another_type(exported, inputs_of):
    tiny = exported("llama")
    stored = load_file(tiny.report.folder / WEIGHTS)
    model = _reload(tiny, dtype=torch.bfloat16)
    for spec in tiny.inventory.layers:
        for name, tensor in model.state_dict().items():
            if name.startswith(prefix_of(spec)):
                kept = tiny.plan[spec.name] == Keep()
                assert tensor.dtype == (torch.bfloat16 if kept else stored[name].dtype)
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert _logits(model, inputs_of).dtype == torch.bfloat16


def test_tied_matrices_are_on_disk_once(exported):
    sizes = tensor_bytes(exported("t5").report.folder)
    assert not any(name.startswith(("lm_head", "encoder.embed", "decoder.embed")) for name in sizes)
    kept = exported("t5", plan=Plan(()), overwrite=True)
    assert [
        name
        for name in tensor_bytes(kept.report.folder)
        if "embed_tokens" in name or "shared" in name
    ] == ["shared.weight"]


def test_a_dense_model_is_dense_again_after_export(exported, inputs_of, tiny_model):
    tiny = exported("gpt2")
    assert torch.equal(
        _logits(tiny.loaded.model, inputs_of), _logits(tiny_model("gpt2"), inputs_of)
    )
    assert "quantization_config" not in tiny.loaded.model.config.to_dict()


def test_large_models_are_written_in_several_files(exported, inputs_of, monkeypatch):
    monkeypatch.setattr(
        native, "write_weights", lambda t, folder: write_weights(t, folder, largest_file=8000)
    )
    tiny = exported("llama")
    assert (tiny.report.folder / INDEX).is_file()
    assert len(weight_files(tiny.report.folder)) > 2
    assert torch.equal(_logits(_reload(tiny), inputs_of), tiny.logits)
    assert sum(tensor_bytes(tiny.report.folder).values()) < tiny.report.weight_bytes
    assert tiny.report.weight_bytes < tiny.report.file_bytes  # there are several headers


def test_a_compressed_model_is_not_compressed_again(exported, tmp_path):
    tiny = exported("llama")
    loaded = load_model(str(tiny.report.folder))
    with pytest.raises(ModelError, match="compressed already"):
        export_checkpoint(loaded, Plan(()), lambda *_: None, tmp_path / "twice")


def test_a_build_that_fails_leaves_nothing(exported, tiny_llama, tmp_path):
    tiny = exported("llama")

    def build(name, method):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        export_checkpoint(tiny.loaded, tiny.plan, build, tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_an_existing_model_is_replaced_only_when_asked(exported, inputs_of):
    tiny = exported("llama")
    plan = Plan.of({spec.name: Quantize(8, 16) for spec in tiny.inventory.layers})
    with pytest.raises(ConfigurationError, match="--overwrite"):
        exported("llama", plan=plan)
    assert torch.equal(_logits(_reload(tiny), inputs_of), tiny.logits)
    second = exported("llama", plan=plan, overwrite=True)
    assert torch.equal(_logits(_reload(second), inputs_of), second.logits)
    assert [path.name for path in Path(tiny.report.folder).parent.iterdir()] == ["llama"]


def test_damaged_exports_do_not_load(exported):
    folder = exported("llama").report.folder
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(folder))
    with pytest.raises(StorageError, match="cut off"):
        tensor_bytes(folder)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder))
    path.write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"version": 99}, "another version of autocompress"),
        (
            {"recipe": {"version": 1, "layers": {"model.layers.9.up": {"method": "keep"}}}},
            "no layer",
        ),
        ({"nonsense": 1}, "nonsense"),
    ):
        (folder / "config.json").write_text(
            json.dumps(config | {"quantization_config": config["quantization_config"] | change})
        )
        with pytest.raises((ModelError, ConfigurationError), match=message):
            load_model(str(folder))


def test_a_dense_model_is_not_quantized_on_the_fly(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    config = AutocompressConfig({"version": 1, "layers": {}}, "float32")
    with pytest.raises(ValueError, match="pre-quantized"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)


def test_several_devices_are_refused(exported):
    folder = exported("llama").report.folder
    with pytest.raises((ConfigurationError, ValueError), match=r"several devices|accelerate"):
        transformers.LlamaForCausalLM.from_pretrained(
            folder, device_map={"model": "cpu", "lm_head": "meta"}
        )


def test_every_applied_builder_result_can_be_exported_twice(
    tiny_llama, tiny_tokenizer, inputs_of, tmp_path
):
    """A search hands out the same built layers again and again."""
    workbench = Workbench(tiny_llama)
    build, built = builder(workbench), {}

    def once(name, method):
        return built.setdefault((name, method), build(name, method))

    tiny = export_tiny(tiny_llama, tiny_tokenizer, inputs_of(tiny_llama), tmp_path / "a")
    for out in ("b", "c"):
        report = export_checkpoint(tiny.loaded, tiny.plan, once, tmp_path / out)
        assert tensor_bytes(report.folder) == tensor_bytes(tiny.report.folder)
