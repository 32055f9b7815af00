from __future__ import annotations

import resource

import pytest

from autocompress.deploy.folder import whole_folder
from autocompress.errors import ConfigurationError, StorageError
from tests.deploy.exporting import export_tiny


def _tree(folder):
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else None
        for p in folder.rglob("*")
    }


def _write(out, text="new", **options):
    with whole_folder(out, **options) as folder:
        (folder / "config.json").write_text(text)


def _write_half(out, interruption):
    with whole_folder(out, overwrite=True) as folder:
        (folder / "config.json").write_text("half")
        raise interruption


def test_a_folder_appears_with_its_parents(tmp_path):
    out = tmp_path / "a" / "b" / "model"
    with whole_folder(out) as folder:
        (folder / "config.json").write_text("new")
        assert not out.exists()
    assert _tree(tmp_path) == {
        "a": None,
        "a/b": None,
        "a/b/model": None,
        "a/b/model/config.json": "new",
    }


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    _write(tmp_path / "model")
    assert _tree(tmp_path) == {"model": None, "model/config.json": "new"}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_what_was_there(interruption, tmp_path):
    _write(tmp_path / "old", "old")
    before = _tree(tmp_path)
    for out in (tmp_path / "old", tmp_path / "x" / "new"):
        with pytest.raises(interruption):
            _write_half(out, interruption)
    assert _tree(tmp_path) == before


def test_a_model_is_replaced_only_when_asked(tmp_path):
    _write(tmp_path / "model", "old")
    with pytest.raises(ConfigurationError, match=r"not empty.*--overwrite"):
        _write(tmp_path / "model")
    assert _tree(tmp_path / "model") == {"config.json": "old"}
    _write(tmp_path / "model", overwrite=True)
    assert _tree(tmp_path) == {"model": None, "model/config.json": "new"}


def test_what_is_no_model_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_text("x")
    with pytest.raises(ConfigurationError, match="something else than a model"):
        _write(tmp_path / "photos", overwrite=True)
    with pytest.raises(ConfigurationError, match="is a file"):
        _write(tmp_path / "photos" / "one", overwrite=True)
    assert _tree(tmp_path) == {"photos": None, "photos/one": "x"}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written") as caught:
        _write(tmp_path / "file" / "model")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert _tree(tmp_path) == {"file": "x"}


def test_a_full_disk_leaves_nothing(tiny_llama, tiny_tokenizer, inputs_of, tmp_path):
    """The kernel refuses to write files of more than 20 kB, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written.*Free some space"):
            export_tiny(
                tiny_llama, tiny_tokenizer, inputs_of(tiny_llama), tmp_path / "new" / "model"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _tree(tmp_path) == {}
