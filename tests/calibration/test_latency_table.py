from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from autocompress.calibration import latency_table
from autocompress.calibration.latency_table import LatencyTable
from autocompress.calibration.layer_timing import Timed
from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.calibration.uses import Use, bytes_read, uses_of
from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.sparse import Sparse
from autocompress.methods.svd import Svd
from autocompress.store import Cache
from autocompress.surgery.workbench import Workbench
from tests.moe_models import make_moe

OPTIONS: tuple[Method, ...] = (Svd(4), Quantize(4, 16), Keep())


class Stopwatch:
    """In place of the timing: the n-th option ever timed takes ``n`` times the dense layer's 1 ms.

    It also runs each of them once.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.options = self.alike = 0

    def __call__(
        self, dense: Timed, options: Mapping[str, Timed], rest_of_token: Callable[[], Any]
    ) -> Any:
        rest_of_token()
        self.shapes.append(tuple(cast(Any, dense.run()).shape))
        ratios = {}
        for key, timed in options.items():
            ours = cast(torch.Tensor, timed.run())
            assert tuple(ours.shape) == self.shapes[-1]
            if timed.alike is not None:
                other = cast(torch.Tensor, timed.alike())
                assert other.shape == ours.shape
                assert not torch.equal(other, ours)  # other weights, or other rows
                self.alike += 1
            self.options += 1
            ratios[key] = float(self.options)
        return 1.0, ratios


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(latency_table, "relative_times", watch)
    return watch


def menu_of(workbench: Workbench, options: tuple[Method, ...] = OPTIONS) -> Menu:
    return Menu(
        tuple(
            LayerMenu(spec, tuple(Option(method, 1, 1, 0.0, 1.0) for method in options))
            for spec in workbench.inventory.layers
        )
    )


@pytest.fixture
def workbench(tiny_llama: Any) -> Workbench:
    return Workbench(tiny_llama)


def test_equal_shapes_are_timed_once(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))
    shapes = {spec.shape for spec in workbench.inventory.layers}
    # The embedding that the head is tied to is used twice: a lookup and a product.
    assert len(stopwatch.shapes) == len(shapes) + 1
    assert stopwatch.options == 2 * (len(shapes) + 1)
    assert stopwatch.shapes.count((1, 1, 96)) == 1  # the product of the head


def test_what_has_been_timed_on_this_machine_is_not_timed_again(
    workbench: Workbench,
    stopwatch: Stopwatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    menu, cache = menu_of(workbench), Cache(tmp_path)
    first = LatencyTable.of(workbench, menu, cache)
    timed = stopwatch.options
    second = LatencyTable.of(workbench, menu, cache)
    for layer in menu.layers:
        for method in OPTIONS:
            assert first[layer.spec.name, method] == second[layer.spec.name, method]
    assert stopwatch.options == timed
    LatencyTable.of(workbench, menu, cache, batch=2)
    assert stopwatch.options == 2 * timed
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert "7 threads" in str(LatencyTable.of(workbench, menu, cache).place)
    assert stopwatch.options == 3 * timed


def test_new_options_join_those_that_are_known(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    cache, name = Cache(tmp_path), "model.layers.0.self_attn.q_proj"
    before = LatencyTable.of(workbench, menu_of(workbench), cache)[name, Svd(4)]
    table = LatencyTable.of(workbench, menu_of(workbench, (*OPTIONS, Svd(8))), cache)
    assert table[name, Svd(4)] == before
    assert table[name, Svd(8)] > before
    assert LatencyTable(workbench, cache)[name, Svd(8)] == table[name, Svd(8)]
    timed = stopwatch.options
    assert LatencyTable(workbench, cache)[name, Sparse("2:4")] == timed + 1  # of 1 ms


def test_the_time_of_a_plan_is_the_sum_of_its_layers(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    table = LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))
    specs = workbench.inventory.layers
    assert table.dense_ms == len(specs) + 1  # products of 1 ms, and one lookup
    plan = Plan.of({specs[0].name: Svd(4), specs[3].name: Quantize(4, 16)})
    kept = [spec for spec in specs if spec.name not in plan]
    assert table.total(plan) == len(kept) + sum(table[name, plan[name]] for name in plan)
    assert table[specs[0].name, Keep()] == 2.0  # the embedding, tied to the head
    assert table.total(Plan(())) == table.dense_ms
    assert stopwatch.options


def test_what_was_asked_before_is_answered_at_once(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = latency_table.content_key
    monkeypatch.setattr(
        latency_table, "content_key", lambda *parts: hashed.append(parts) or real(*parts)
    )
    table = LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))
    specs = workbench.inventory.layers
    plans = [Plan.of(dict.fromkeys((spec.name for spec in specs), method)) for method in OPTIONS]
    times = [table.total(plan) for plan in plans]
    assert len(hashed) == len(specs) + 1  # the embedding that the head is tied to has two uses
    monkeypatch.setattr(LatencyTable, "_milliseconds", None)
    mixed = Plan.of({specs[0].name: Svd(4)})
    assert (
        table.total(mixed) == times[2] + table[specs[0].name, Svd(4)] - table[specs[0].name, Keep()]
    )
    monkeypatch.setattr(LatencyTable, "__getitem__", None)
    assert [table.total(Plan.of(dict(plan))) for plan in plans] == times


def test_a_method_that_does_not_fit_is_refused(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    with pytest.raises(MethodError):
        LatencyTable(workbench, Cache(tmp_path))["model.layers.0.self_attn.q_proj", Svd(999)]
    assert not stopwatch.options


def test_uses_of_a_matrix(tiny_model: Callable[..., Any]) -> None:
    def uses(family: str) -> dict[str, dict[Use, float]]:
        workbench = Workbench(tiny_model(family))
        specs = workbench.inventory.layers
        return {spec.name: uses_of(workbench.model, spec) for spec in specs}

    tied, untied = uses("llama"), uses("llama_untied")
    assert tied["model.embed_tokens"] == {Use.LOOKUP: 1, Use.PRODUCT: 1}
    assert untied["model.embed_tokens"] == {Use.LOOKUP: 1}
    assert untied["lm_head"] == {Use.PRODUCT: 1}
    assert tied["model.layers.0.mlp.up_proj"] == {Use.PRODUCT: 1}


def test_an_expert_counts_by_the_share_of_tokens_that_it_sees() -> None:
    workbench = Workbench(make_moe("mixtral"))
    names = [spec for spec in workbench.inventory.layers if ".experts." in spec.name]
    assert names
    assert {uses_of(workbench.model, spec)[Use.PRODUCT] for spec in names} == {0.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_times_of_layers_as_a_plan_places_them(
    tiny_model: Callable[..., Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    workbench = Workbench(tiny_model("llama").to(dtype))
    table = LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))
    assert all(table[s.name, method] > 0 for s in workbench.inventory.layers for method in OPTIONS)


def test_a_layer_follows_one_of_the_same_form_unless_it_is_too_large_for_a_cache(
    workbench: Workbench, stopwatch: Stopwatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path / "small"))
    assert stopwatch.alike == stopwatch.options > 0
    stopwatch.alike = 0
    monkeypatch.setattr(latency_table, "MOST_STREAMED", 0)
    LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path / "large"))
    assert stopwatch.alike == 0


def test_as_much_is_read_before_a_layer_as_the_rest_of_the_model_reads(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = torch.sum
    monkeypatch.setattr(torch, "sum", lambda x: read.append(x.nbytes) or real(x))
    LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))
    assert set(read) == {bytes_read(workbench.model, workbench.inventory.layers)}
    read.clear()
    monkeypatch.setattr(latency_table, "MOST_STREAMED", 1000)
    LatencyTable.of(workbench, menu_of(workbench), Cache(tmp_path))  # times by other caches
    assert set(read) == {1000}


def test_a_token_reads_every_matrix_but_a_row_of_the_embeddings(
    tiny_model: Callable[..., Any],
) -> None:
    def share(family: str) -> tuple[int, int]:
        workbench = Workbench(tiny_model(family))
        sizes = {spec.name: 4 * spec.parameters for spec in workbench.inventory.layers}
        lookups = sizes["model.embed_tokens"] if family == "llama_untied" else 0
        return bytes_read(workbench.model, workbench.inventory.layers), sum(
            sizes.values()
        ) - lookups

    for family in ("llama", "llama_untied"):
        found, expected = share(family)
        assert found == expected


def test_a_token_reads_its_experts_alone() -> None:
    workbench = Workbench(make_moe("mixtral"))
    experts = [spec for spec in workbench.inventory.layers if ".experts." in spec.name]
    assert bytes_read(workbench.model, experts) == sum(2 * spec.parameters for spec in experts)
