"""Settings, the schedule, the batches and the file of a run."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from autocompress.errors import ConfigurationError, StorageError
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.schedule import batches, rate_at
from autocompress.healing.watch import Watch
from autocompress.requests.healing import HealSettings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", -1, "--steps is too low: got -1, wanted at least 0"),
        ("tokens", 0, "--tokens is too low: got 0"),
        ("tokens_at_once", 0, "--tokens-at-once is too low: got 0"),
        ("patience", 0, "--patience is too low: got 0"),
        ("rate", 0.0, "--rate is out of range: got 0.0, wanted more than 0"),
        ("rate", float("nan"), "--rate is out of range: got nan"),
        ("align", 1.5, "--align is out of range: got 1.5, wanted a share"),
        ("lm", -0.1, "--lm is out of range: got -0.1"),
        ("train", "scales", "unknown --train: got 'scales', wanted all, factors"),
    ],
)
def test_settings_out_of_range_are_named(name, value, message):
    with pytest.raises(ConfigurationError, match=message):
        HealSettings(**{name: value})


def test_the_rate_rises_then_falls_to_nothing():
    rates = [rate_at(step, 100, 2.0) for step in range(1, 101)]
    assert rates.index(max(rates)) == 4  # the fifth of a hundred
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.001
    assert rate_at(1, 1, 2.0) > 0


def test_a_loss_of_nothing_but_noise_does_not_diverge():
    watch = Watch()
    assert all(watch.fine(loss, phase=False) for loss in (1e-7, -2e-8, -5e-8, 4e-6, 3e-7, 2e-4))


def test_a_loss_that_rises_from_noise_to_something_diverges():
    watch = Watch()
    assert watch.fine(1e-7, phase=False)
    assert not all(watch.fine(0.1, phase=False) for _ in range(3))


def test_every_window_is_drawn_before_any_comes_again():
    windows = torch.arange(10)[:, None]
    drawn = batches(windows, 4, seed=3)
    seen = torch.cat([next(drawn) for _ in range(5)]).flatten().tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    again = batches(windows, 4, seed=3)
    assert torch.cat([next(again) for _ in range(5)]).flatten().tolist() == seen


def test_a_step_may_be_larger_than_the_text():
    (first,) = [next(batches(torch.arange(3)[:, None], 7, seed=0))]
    assert torch.bincount(first.flatten()).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_what_is_kept_is_read_back(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a" / "run", {"plan": "a", "layers": (1, 2)})
    assert checkpoint.read() is None
    tensors = {"x": torch.randn(3, 4).T, "codes": torch.arange(5, dtype=torch.uint8)}
    checkpoint.keep(tensors, {"step": 3, "loss": float("nan")})
    found = Checkpoint(checkpoint.path, {"plan": "a", "layers": [1, 2]}).read()
    assert found is not None
    for name, tensor in tensors.items():
        assert_close(found[0][name], tensor, rtol=0, atol=0)
    assert found[1]["step"] == 3
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.read() is None


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "run").write_bytes(b"half")
    with pytest.raises(StorageError, match=r"run cannot be read.*Remove it"):
        Checkpoint(tmp_path / "run", {}).read()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Checkpoint(tmp_path / "file" / "run", {}).keep({"x": torch.ones(1)}, {})
