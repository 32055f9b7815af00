from __future__ import annotations

import logging

import pytest
import torch
from torch.testing import assert_close

from autocompress import store as module
from autocompress.errors import StorageError
from autocompress.store import Cache, content_key, tensor_key

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint8)}


def test_tensors_and_records_come_back_as_they_were(tmp_path):
    cache = Cache(tmp_path / "deep" / "cache")
    cache.keep_tensors("layers", "k", TENSORS | {"t": TENSORS["a"].T})
    cache.keep_record("fits", "k", {"x": [1, 2.5, None]})
    again = Cache(tmp_path / "deep" / "cache")
    kept = again.tensors("layers", "k")
    assert_close(kept, TENSORS | {"t": TENSORS["a"].T}, rtol=0, atol=0)
    assert again.record("fits", "k") == {"x": [1, 2.5, None]}


def test_what_is_not_there_is_none(tmp_path):
    cache = Cache(tmp_path)
    cache.keep_tensors("layers", "k", TENSORS)
    assert cache.tensors("layers", "other") is None
    assert cache.tensors("statistics", "k") is None
    assert cache.record("layers", "k") is None


def test_a_later_value_replaces_an_earlier_one(tmp_path):
    cache = Cache(tmp_path)
    cache.keep_record("fits", "k", 1)
    cache.keep_record("fits", "k", 2)
    assert cache.record("fits", "k") == 2
    assert [path.name for path in (tmp_path / "fits").iterdir()] == ["k.json"]


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_corrupt_entry_is_removed_with_a_warning(tmp_path, caplog, content):
    cache = Cache(tmp_path)
    cache.keep_tensors("layers", "k", TENSORS)
    cache.keep_record("fits", "k", {"x": 1})
    for path in (tmp_path / "layers" / "k.safetensors", tmp_path / "fits" / "k.json"):
        path.write_bytes(path.read_bytes()[:-3] if content is None else content)
        with caplog.at_level(logging.WARNING, logger="autocompress"):
            read = (
                cache.tensors("layers", "k")
                if path.suffix != ".json"
                else cache.record("fits", "k")
            )
        assert read is None
        assert not path.exists()
        assert str(path) in caplog.text
    cache.keep_tensors("layers", "k", TENSORS)
    assert cache.tensors("layers", "k") is not None


def test_a_write_that_is_cut_off_leaves_the_former_entry_whole(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.keep_tensors("layers", "k", TENSORS)

    def cut_off(_tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        cache.keep_tensors("layers", "k", {"a": torch.zeros(2)})
    assert_close(cache.tensors("layers", "k"), TENSORS, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["k.safetensors"]


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        cache.keep_tensors("layers", "k", TENSORS)
    assert cache.tensors("layers", "k") is None
    assert list((tmp_path / "layers").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="--runs-dir"):
        Cache(tmp_path / "file" / "cache")


def test_an_entry_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "fits").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        Cache(tmp_path).keep_record("fits", "k", 1)


def test_keys_tell_apart_what_differs():
    a = torch.arange(6.0)
    different = [a, a.reshape(2, 3), a.double(), a + 1, a[:5], a.to(torch.bfloat16), torch.empty(0)]
    keys = {tensor_key(tensor) for tensor in different}
    assert len(keys) == len(different)
    assert tensor_key(a.reshape(2, 3).T.contiguous().T) == tensor_key(a.reshape(2, 3))
    assert tensor_key(-torch.zeros(1)) != tensor_key(torch.zeros(1))
    assert content_key(1, {"a": 1, "b": 2}) == content_key(1, {"b": 2, "a": 1})
    assert len({content_key(1), content_key("1"), content_key(1, 1), content_key([1, 1])}) == 4
