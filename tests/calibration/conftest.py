from __future__ import annotations

from collections import Counter

import pytest
import torch

from autocompress.calibration.statistics import collect_statistics
from autocompress.store import Cache
from autocompress.surgery.workbench import Workbench
from tests.calibration.counting import CountingBuilder
from tests.conftest import VOCABULARY


@pytest.fixture
def make_builder(tiny_llama, tmp_path):
    workbench = Workbench(tiny_llama)
    ids = torch.randint(0, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(0))
    metrics = collect_statistics(tiny_llama, workbench.inventory.layers, [ids])

    def make(metrics=metrics, folder="cache", **settings) -> CountingBuilder:
        builder = CountingBuilder(workbench, metrics, Cache(tmp_path / folder), **settings)
        builder.fits = Counter()
        return builder

    make.metrics = metrics
    return make
