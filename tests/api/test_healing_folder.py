from __future__ import annotations

import pytest
from safetensors.torch import load_file

import autocompress
from autocompress.deploy import native, verify
from autocompress.deploy.weights import weight_files
from autocompress.errors import ConfigurationError
from autocompress.space.recipe_file import load_recipe
from tests.api.tiny_folders import deepseek, export_to
from tests.api.verifying import score_here


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a model with a vector that is a buffer; what is written is scored in this process."""
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    return export_to(tmp_path, deepseek())


def heal(folder, out, **options):
    words = {"steps": 6, "tokens": 256, "refit": False, "data": str(folder.text)}
    runs = folder.path.parent / "runs"
    return autocompress.heal(folder.path, out=out, runs_dir=runs, **words | options)


def tensors_in(folder):
    return {name: t for path in weight_files(folder) for name, t in load_file(path).items()}


def test_a_folder_is_healed_into_another_that_diverges_less(folder, tmp_path):
    before = tensors_in(folder.path)
    healed = heal(folder, tmp_path / "healed")
    assert healed.source == str(folder.path)
    assert healed.after.divergence < healed.before.divergence
    assert healed.after.bytes == healed.before.bytes
    assert load_recipe(tmp_path / "healed" / "recipe.yaml") == healed.plan == folder.plan
    after = tensors_in(tmp_path / "healed")
    assert after.keys() == before.keys()
    bias = next(name for name in after if name.endswith("e_score_correction_bias"))
    assert (after[bias] == before[bias]).all()
    assert (after["model.norm.weight"] != before["model.norm.weight"]).any()
    assert all((tensors_in(folder.path)[name] == before[name]).all() for name in before)
    assert not list((tmp_path / "runs").rglob("*.part"))


def test_what_is_cut_off_leaves_no_half_of_a_folder_and_goes_on(folder, tmp_path, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    out = tmp_path / "healed"
    with monkeypatch.context() as patch:
        patch.setattr(native, "check_sizes", stop)
        with pytest.raises(KeyboardInterrupt):
            heal(folder, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".healed*"))
    (kept,) = (tmp_path / "runs").rglob("*.part")
    heal(folder, out)
    assert out.is_dir()
    assert not kept.exists()


@pytest.mark.parametrize("out", ["small", "."])
def test_a_folder_is_not_replaced_by_what_is_made_from_it(folder, out):
    before = sorted(folder.path.iterdir())
    with pytest.raises(ConfigurationError, match="would be replaced"):
        heal(folder, folder.path.parent / out, overwrite=True)
    assert sorted(folder.path.iterdir()) == before
