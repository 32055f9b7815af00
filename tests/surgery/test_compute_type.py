from __future__ import annotations

import pytest
import torch

from autocompress.surgery import compute_type
from autocompress.surgery.compute_type import FASTEST, fastest_type
from autocompress.surgery.loading import load_model
from autocompress.surgery.stored_types import main_type

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def seconds(monkeypatch):
    """Say how long a product takes in each type."""

    def say(**by_type: float) -> None:
        fastest_type.cache_clear()
        monkeypatch.setattr(
            compute_type,
            "_seconds_of_a_product",
            lambda dtype: by_type[str(dtype).removeprefix("torch.")],
        )

    yield say
    fastest_type.cache_clear()


def test_a_processor_without_units_for_a_type_computes_in_fp32(seconds):
    seconds(bfloat16=3.0, float16=4.0, float32=1.0)
    assert fastest_type(torch.bfloat16, CPU) == fastest_type(torch.float16, CPU) == torch.float32


def test_one_with_units_computes_in_the_stored_type(seconds):
    seconds(bfloat16=0.5, float16=2.0, float32=1.0)
    assert fastest_type(torch.bfloat16, CPU) == torch.bfloat16
    assert fastest_type(torch.float16, CPU) == torch.float32


def test_nothing_is_timed_where_nothing_can_be_won(seconds):
    seconds()
    assert fastest_type(torch.bfloat16, GPU) == torch.bfloat16
    assert fastest_type(torch.float32, CPU) == torch.float32
    assert fastest_type(torch.float64, CPU) == torch.float64


def test_the_probe_itself_takes_no_second():
    fastest_type.cache_clear()
    assert fastest_type(torch.bfloat16, CPU) in (torch.bfloat16, torch.float32)


def test_a_model_is_loaded_in_what_is_faster(seconds, tmp_path, tiny_model, tiny_tokenizer):
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    seconds(bfloat16=3.0, float32=1.0)
    wide = load_model(str(tmp_path), dtype=FASTEST)
    asked = load_model(str(tmp_path), dtype="float32")
    assert wide.model.dtype == torch.float32
    assert wide.fingerprint == asked.fingerprint
    assert main_type(wide.model, wide.stored_types) == torch.bfloat16
    seconds(bfloat16=0.5, float32=1.0)
    assert load_model(str(tmp_path), dtype=FASTEST).model.dtype == torch.bfloat16
    assert load_model(str(tmp_path)).model.dtype == torch.bfloat16
