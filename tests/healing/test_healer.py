"""Healing lowers the divergence, survives kills and losses that run away, and ends in time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import autocompress.healing.healer as healer_module
from autocompress.errors import AutocompressError, ConfigurationError, DataError, StorageError
from autocompress.evaluation.scoring import score
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.healer import MOST_BACK_STEPS
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.surgery.compressed import Compressed
from tests.healing.conftest import CONTEXT, chain_ids
from tests.healing.plans import building


def spoil(healer, *steps, value=float("nan")):
    """Let the loss be something else in certain calls of the objective, counted from 1."""
    sound, calls = healer.losses.on_outputs, []

    def on_outputs(ids):
        calls.append(1)
        loss = sound(ids)
        return loss * value if not steps or len(calls) in steps else loss

    healer.losses.on_outputs = on_outputs


def assert_same_numbers(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_divergence_on_unseen_text_falls(make, workbench, plan, selection):
    healed = make(steps=40).run()
    first, best = healed.checks[0], healed.best
    assert first.step == 0
    assert best.divergence < 0.6 * first.divergence
    assert best.divergence == min(check.divergence for check in healed.checks)
    assert healed.checks[-1].step == 40
    assert healed.tokens == 40 * 8 * CONTEXT
    with (
        workbench.applied(Compressed(plan, healed.weights), building(workbench)) as model,
        torch.no_grad(),
    ):
        scored = score(model, selection)
    assert_close(scored.loss, best.loss)


def test_a_language_model_loss_alone_lowers_the_likelihoods_loss(make):
    healed = make(steps=20, lm=1.0).run()
    assert healed.checks[-1].loss < healed.checks[0].loss


def test_frozen_codes_stay_and_the_rest_is_trained(make):
    healer = make(steps=8, train="factors")
    before = healer.student.weights()
    healed = healer.run()
    assert healed.best.step > 0
    changed = {name for name, t in healed.weights.items() if not torch.equal(t, before[name])}
    ends = {name.rsplit(".", 1)[1] for name in changed}
    assert ends == {"scales", "weight"}
    assert any("norm" in name for name in changed)
    assert any("left" in name for name in changed)
    assert healer.optimiser.memory_bytes < make(steps=12).optimiser.memory_bytes / 2


def test_a_loss_that_is_no_number_steps_back_at_half_the_rate(make, notes):
    healer = make(steps=16)
    spoil(healer, 6)
    healed = healer.run()
    assert healer.slower == 0.5
    assert healer.step == 16
    (note,) = [each for each in notes.said if "diverges" in each]
    assert "step 6: back to step 4" in note
    assert "0.015" in note
    assert healed.best.divergence < healed.checks[0].divergence


def test_a_loss_that_runs_away_steps_back(make, notes):
    healer = make(steps=16)
    spoil(healer, *range(5, 16), value=50.0)
    healer.run()
    assert healer.slower < 1
    assert any("diverges" in each for each in notes.said)


def test_a_run_steps_back_to_its_file_as_to_memory(make, tmp_path):
    healed = []
    for checkpoint in (None, Checkpoint(tmp_path / "run", {})):
        healer = make(checkpoint, steps=12)
        spoil(healer, 5, 9)
        healed.append(healer.run())
        assert healer.slower == 0.25
    assert_same_numbers(healed[0].weights, healed[1].weights)


def test_a_file_that_is_gone_is_named(make, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", {})
    healer = make(checkpoint, steps=4)
    healer.losses.on_outputs = lambda _ids: (
        checkpoint.remove(),
        torch.tensor(torch.nan, requires_grad=True),
    )[1]
    with pytest.raises(StorageError, match=r"is gone.*diverges at step 1"):
        healer.run()


def test_a_plan_that_keeps_all_does_not_diverge(make, workbench, notes):
    kept = Plan.of({spec.name: Keep() for spec in workbench.inventory.layers})
    healed = make(plan=kept, steps=16).run()
    assert healed.best.divergence < 1e-5
    assert not any("diverges" in each for each in notes.said)


def test_a_model_that_is_spoilt_at_a_check_is_not_kept(make, notes, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", {})
    healer = make(checkpoint, steps=8)
    step, rates = healer.optimiser.step, []

    def spoil_the_fourth(rate):
        step(rate)
        rates.append(rate)
        if len(rates) == 4:
            torch.nn.init.constant_(next(p for _, p in healer.student.trained()), torch.nan)

    healer.optimiser.step = spoil_the_fourth
    healed = healer.run()
    assert any("back to step 2, at half the rate" in each for each in notes.said)
    assert [check.step for check in healed.checks] == [0, 2, 4, 6, 8]
    assert all(math.isfinite(check.divergence) for check in healed.checks)


def test_healing_that_diverges_again_and_again_gives_up(make, workbench):
    before = {name: tensor.clone() for name, tensor in workbench.model.state_dict().items()}
    healer = make(steps=24)
    spoil(healer)
    with pytest.raises(AutocompressError, match=r"diverges at step 1.*Lower --rate"):
        healer.run()
    assert healer.slower == 0.5 ** (MOST_BACK_STEPS + 1)
    for name, tensor in workbench.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("settings", [{}, {"align": 0.5}, {"train": "factors"}], ids=str)
def test_a_run_that_is_cut_off_goes_on_to_the_same_numbers(make, settings, tmp_path, notes):
    settings = {"steps": 16, **settings}
    whole = make(**settings).run()
    checkpoint = Checkpoint(tmp_path / "run", {"plan": "a"})
    cut = make(checkpoint, **settings)
    take, taken = cut._take_step, []

    def killed_at_11(windows):
        taken.append(1)
        if len(taken) == 11:
            raise KeyboardInterrupt
        return take(windows)

    cut._take_step = killed_at_11
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = make(checkpoint, **settings).run()
    assert any("Going on with healing at step 8 of 16" in each for each in notes.said)
    assert_same_numbers(resumed.weights, whole.weights)
    assert [(c.step, c.divergence, c.loss) for c in resumed.checks] == [
        (c.step, c.divergence, c.loss) for c in whole.checks
    ]
    assert resumed.best.divergence == whole.best.divergence


def test_a_finished_run_is_not_repeated(make, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", {"plan": "a"})
    first = make(checkpoint, steps=4).run()
    again = make(checkpoint, steps=4)
    spoil(again)
    assert_same_numbers(again.run().weights, first.weights)


def test_a_checkpoint_of_another_run_is_refused(make, tmp_path):
    make(Checkpoint(tmp_path / "run", {"plan": "a", "rate": 0.1}), steps=1).run()
    kept = (tmp_path / "run").read_bytes()
    with pytest.raises(ConfigurationError, match=r"plan differs.*got a.*b"):
        make(Checkpoint(tmp_path / "run", {"plan": "b", "rate": 0.1}), steps=12).run()
    assert (tmp_path / "run").read_bytes() == kept


def test_checks_without_progress_end_the_run(make, notes, monkeypatch):
    monkeypatch.setattr(healer_module, "CHECKS", 12)
    healer = make(steps=24, patience=3)
    scored = healer_module.score
    rising = iter(range(100))

    def worse(*args):
        found = scored(*args)
        object.__setattr__(found, "divergence", abs(next(rising) - 2.0))  # least at the third check
        return found

    monkeypatch.setattr(healer_module, "score", worse)
    healed = healer.run()
    assert [check.divergence for check in healed.checks] == [2, 1, 0, 1, 2, 3]
    assert healed.best.step == 4
    assert healer.step == 10
    assert any("ends at step 10: 3 checks" in each for each in notes.said)


def test_too_little_text_is_refused(make):
    with pytest.raises(DataError, match=r"too short.*got 63 tokens.*at least 64"):
        make(ids=chain_ids(4 * CONTEXT - 1, seed=1))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=["torch", "python"],
)
def test_out_of_memory_says_what_to_lower(make, error):
    healer = make(steps=12, tokens_at_once=32)

    def fail(_ids):
        raise error

    healer.losses.on_outputs = fail
    with pytest.raises(AutocompressError, match=r"not enough memory.*32 at once.*--tokens-at-once"):
        healer.run()


def test_out_of_memory_before_the_first_step_is_explained_too(make, monkeypatch):
    def fail(*_args):
        raise MemoryError

    healer = make(steps=12)
    monkeypatch.setattr(healer_module, "score", fail)
    with pytest.raises(AutocompressError, match="not enough memory"):
        healer.run()
    monkeypatch.setattr(healer_module.Teacher, "of", fail)
    with pytest.raises(AutocompressError, match="not enough memory"):
        make(steps=12)


def test_other_errors_are_not_taken_for_lack_of_memory(make):
    healer = make(steps=12)

    def fail(_ids):
        raise RuntimeError("shapes do not match")

    healer.losses.on_outputs = fail
    with pytest.raises(RuntimeError, match="shapes"):
        healer.run()


@pytest.mark.parametrize("align", [0.0, 1.0])
def test_gradients_of_parts_add_up_to_those_of_the_whole_step(make, healing_ids, align):
    windows = healing_ids[: 8 * CONTEXT].view(8, CONTEXT)
    gradients = []
    for at_once in (8 * CONTEXT, 3 * CONTEXT):  # 8 windows; 3, 3 and 2
        healer = make(steps=12, tokens_at_once=at_once, align=align)
        healer.optimiser.step = lambda _rate: None
        assert healer._take_step(windows)
        gradients.append({name: p.grad for name, p in healer.student.trained()})
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][name] is None
            continue
        limit = 1e-4 * float(gradient.abs().max())
        assert_close(gradients[1][name], gradient, rtol=0, atol=limit)
