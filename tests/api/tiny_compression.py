"""Texts and settings with which a tiny model is compressed."""

from __future__ import annotations

import torch

from tests.conftest import VOCABULARY

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 2], group_sizes: [16]}
"""
FEW = {"calibration_tokens": 512, "report_tokens": 512, "pricing_tokens": 128}


def token_ids(seed, count=512):
    return torch.randint(
        3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int64
    )


def words(seed):
    return [" ".join(f"w{int(i) - 3}" for i in ids) for ids in token_ids(seed).view(4, 128)]
