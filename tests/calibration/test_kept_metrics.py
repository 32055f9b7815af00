from __future__ import annotations

import pytest
import torch

from autocompress.calibration.kept_metrics import KeptMetrics
from autocompress.calibration.statistics import collect_statistics, stream_statistics
from autocompress.errors import StorageError
from autocompress.numerics.metric import Metric
from autocompress.store import Cache
from autocompress.surgery.inventory import take_inventory
from tests.conftest import VOCABULARY
from tests.moe_models import EXPERTS, make_moe


def windows():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (1, 10), generator=generator) for _ in range(3)]


def assert_same(one: Metric, other: Metric) -> None:
    assert len(one.terms) == len(other.terms)
    for ours, theirs in zip(one.terms, other.terms, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.columns, theirs.columns)
        assert ours.tokens == theirs.tokens


@pytest.fixture
def kept_of(tmp_path):
    def make(specs, key="k"):
        return KeptMetrics(Cache(tmp_path), key, [spec.name for spec in specs])

    return make


def test_metrics_survive_the_cache(tiny_llama, kept_of):
    specs = take_inventory(tiny_llama).layers
    metrics = collect_statistics(tiny_llama, specs, windows())
    assert kept_of(specs).missing() == [spec.name for spec in specs]
    kept_of(specs).keep(metrics)
    again = kept_of(specs)
    assert again.missing() == []
    assert list(again) == list(metrics)
    assert len(again) == len(metrics)
    for name, metric in metrics.items():
        assert_same(again[name], metric)
    assert "other" not in again
    with pytest.raises(KeyError):
        again["other"]
    assert kept_of(specs, "other calibration").missing() == list(metrics)


def test_a_calibration_that_was_cut_off_goes_on_with_what_is_missing(tiny_llama, kept_of):
    specs = take_inventory(tiny_llama).layers
    whole = collect_statistics(tiny_llama, specs, windows())
    kept = kept_of(specs)

    def killed(metrics):
        kept.keep(metrics)
        if any(".1." in name for name in metrics) and len(kept.missing()) < 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_statistics(tiny_llama, specs, windows(), killed)
    missing = kept_of(specs).missing()
    assert 0 < len(missing) < len(specs)
    again, written = kept_of(specs), []

    def keep(metrics):
        written.extend(metrics)
        again.keep(metrics)

    rest = [spec for spec in specs if spec.name in missing]
    stream_statistics(tiny_llama, rest, windows(), keep)
    assert sorted(written) == sorted(missing)
    for name, metric in whole.items():
        assert_same(again[name], metric)


def test_the_experts_of_a_layer_are_kept_together(kept_of, tmp_path):
    model = make_moe("mixtral")
    specs = [spec for spec in take_inventory(model).layers if ".experts." in spec.name]
    kept = kept_of(specs)
    stream_statistics(model, specs, windows(), kept.keep)
    assert kept.missing() == []
    files = sorted((tmp_path / "statistics" / "k").iterdir())
    assert len(files) == 2  # of 2 layers
    files[0].unlink()
    assert len(kept.missing()) == len(specs) // 2 == 2 * EXPERTS


def test_an_entry_that_cannot_be_read_is_missing(tiny_llama, kept_of, tmp_path, caplog):
    specs = take_inventory(tiny_llama).layers[:3]
    kept = kept_of(specs)
    stream_statistics(tiny_llama, specs, windows(), kept.keep)
    path = next((tmp_path / "statistics" / "k").iterdir())
    path.write_bytes(path.read_bytes()[:-5])
    (missing,) = kept.missing()
    assert "computed again" in caplog.text
    with pytest.raises(StorageError, match=f"{missing}.*gone"):
        kept[missing]
