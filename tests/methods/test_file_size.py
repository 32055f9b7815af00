from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import save_file

from autocompress.methods.file_size import OVERHEAD, Entry, file_size

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int64)


@pytest.mark.parametrize("seed", range(6))
def test_the_size_is_that_of_the_written_file(tmp_path, seed):
    draw = random.Random(seed)
    tensors = {
        f"model.layers.{number}.{draw.choice(['q', 'gä'])}.{number}": torch.zeros(
            [draw.randint(1, 90) for _ in range(draw.randint(0, 3))], dtype=draw.choice(DTYPES)
        )
        for number in range(draw.randint(1, 40))
    }
    save_file(tensors, tmp_path / "file.safetensors", metadata={"format": "pt"})
    written = (tmp_path / "file.safetensors").stat().st_size
    entries = [Entry.of(name, tensor) for name, tensor in tensors.items()]
    assert file_size(entries) == written
    assert written <= OVERHEAD + sum(entry.most_bytes for entry in entries)
