"""Blocks are trained one by one to give what the dense model's give."""

from __future__ import annotations

import torch

from autocompress.healing.losses import Losses
from tests.healing.conftest import CONTEXT


def test_the_loss_of_a_block_does_not_reach_the_blocks_before_it(make, workbench, healing_ids):
    student = make(steps=12).student
    losses = Losses(workbench.model, student.model)
    ids = healing_ids[: 8 * CONTEXT].view(8, CONTEXT)
    losses.on_blocks(ids).backward()
    of_first = {name: p.grad.clone() for name, p in student.trained() if ".layers.0." in name}
    assert any(gradient.any() for gradient in of_first.values())
    student.model.zero_grad()
    with torch.no_grad():
        for name, parameter in student.trained():
            if ".layers.1." in name:
                parameter.mul_(0.5)
    losses.on_blocks(ids).backward()
    for name, parameter in student.trained():
        if ".layers.0." in name:
            assert torch.equal(parameter.grad, of_first[name]), name
        if ".layers.1." in name:
            assert parameter.grad is not None, name


def test_aligned_steps_come_first_and_bring_the_blocks_nearer(make, workbench, selection):
    healer = make(steps=16, align=0.5)
    losses = Losses(workbench.model, healer.student.model)
    ids = selection.ids.view(-1, CONTEXT)
    with torch.no_grad():
        before = float(losses.on_blocks(ids))
    asked = []
    for name in ("on_blocks", "on_outputs"):
        sound = getattr(healer.losses, name)
        setattr(
            healer.losses,
            name,
            lambda ids, name=name, sound=sound: (asked.append(name), sound(ids))[1],
        )
    healer.run()
    assert asked == ["on_blocks"] * 8 + ["on_outputs"] * 8
    with torch.no_grad():
        assert float(losses.on_blocks(ids)) < 0.8 * before
