"""A tiny model that has learnt something, so that there is something to lose and to win back."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import autocompress.healing.healer as healer_module
from autocompress.evaluation.windows import Windows
from autocompress.healing.healer import Healer
from autocompress.healing.student import Student
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.trellis import Trellis
from autocompress.requests.healing import HealSettings
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY, make_tiny_model
from tests.healing.plans import building

CONTEXT = 16
STEP = {"tokens": 8 * CONTEXT, "rate": 0.03}


def chain_ids(count: int, seed: int) -> Tensor:
    """Tokens ``[count]``, each one of three that often follow the one before it."""
    generator = torch.Generator().manual_seed(seed)
    followers = torch.randint(
        3, VOCABULARY, (VOCABULARY, 3), generator=torch.Generator().manual_seed(0)
    )
    choices = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), count, True, generator=generator)
    ids = [3]
    for choice in choices[1:].tolist():
        ids.append(int(followers[ids[-1], choice]))
    return torch.tensor(ids)


@lru_cache
def _learnt() -> Any:
    model = make_tiny_model("llama")
    model.requires_grad_(True)
    ids = chain_ids(60 * 16 * CONTEXT, seed=1).view(60, 16, CONTEXT)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in ids:
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.requires_grad_(False)


@pytest.fixture
def workbench() -> Workbench:
    """A trained Llama with two layers."""
    return Workbench(copy.deepcopy(_learnt()))


@pytest.fixture
def plan(workbench: Workbench) -> Plan:
    """Codes, codes that are chosen jointly and factors."""
    methods = (Quantize(2, 16), Trellis(2), Svd(6))
    return Plan.of({spec.name: methods[i % 3] for i, spec in enumerate(workbench.inventory.layers)})


@pytest.fixture
def healing_ids() -> Tensor:
    """Tokens to train on."""
    return chain_ids(128 * CONTEXT, seed=2)


@pytest.fixture
def selection() -> Windows:
    """Windows of another text from the same source."""
    return Windows(chain_ids(16 * CONTEXT, seed=3), CONTEXT)


@pytest.fixture
def make(workbench, plan, healing_ids, selection, notes, monkeypatch):
    """Make a healer on a fresh student, that checks at four steps."""
    monkeypatch.setattr(healer_module, "CHECKS", 4)
    build = building(workbench)

    def healer(checkpoint=None, ids=healing_ids, plan=plan, **settings):
        student = Student(workbench, plan, build)
        settings = HealSettings(**STEP | settings)
        return Healer(workbench.model, student, ids, selection, settings, checkpoint, notes)

    return healer
