from __future__ import annotations

import json

import pytest
import torch

from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.records import Measurement
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.surgery.workbench import Workbench
from tests.mixed_plans import builder

VALUES = Plan.of({f"model.layers.{depth}.self_attn.v_proj": Svd(6) for depth in (0, 1)})
DENSE_CACHE = 2 * 2 * 16 * 4  # layers, keys and values, numbers a token, bytes


@pytest.fixture
def evaluator(tiny_llama):
    workbench = Workbench(tiny_llama)
    return Evaluator(workbench, builder(workbench))


@pytest.fixture
def text(tiny_llama):
    ids = torch.randint(3, 96, (48,), generator=torch.Generator().manual_seed(0))
    windows = Windows(ids, 16)
    return ScoredText("selection", windows, Teacher.of(tiny_llama, windows))


def test_the_bytes_of_the_cache_are_measured_with_the_latency(evaluator, text):
    assert evaluator.dense(text).cache_bytes_per_token == DENSE_CACHE
    measured = evaluator.measure(VALUES, text)
    assert measured.cache_bytes_per_token == DENSE_CACHE - 2 * (16 - 6) * 4
    assert measured.bytes == evaluator.workbench.inventory.plan_bytes(VALUES)
    assert evaluator.measure(VALUES, text, latency=False).cache_bytes_per_token is None


def test_a_measurement_that_knows_nothing_of_caches_is_read(evaluator, text):
    measured = evaluator.measure(VALUES, text)
    assert Measurement.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    old = {name: value for name, value in measured.to_dict().items() if "cache" not in name}
    assert Measurement.from_dict(old).cache_bytes_per_token is None
