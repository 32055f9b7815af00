from __future__ import annotations

import re

import pytest
import torch

from autocompress.calibration import statistics
from autocompress.calibration.blocks import Blocks, NotBlockwise, find_blocks
from autocompress.calibration.spilled import SpilledTensors
from autocompress.calibration.statistics import collect_statistics, stream_statistics
from autocompress.surgery.inventory import take_inventory
from tests.architectures import ARCHITECTURES
from tests.calibration.chains import (
    AttentionShown,
    Backwards,
    Between,
    Borrowing,
    Chain,
    EmbeddingsAtTheEnd,
    FirstDecides,
    GivenEmbeddings,
    InPlace,
    LeftBehind,
    NoList,
    OneBlock,
    Skipping,
    Twice,
    Unused,
    WritesIntoItsEmbeddings,
    WritesIntoTheLast,
)
from tests.conftest import VOCABULARY, make_tiny_model
from tests.moe_models import make_moe

DENSE = ("llama", "llama_untied", "gpt2", "gpt_neox", "opt", "gemma2", "bert")
MIXTURES = ("mixtral", "gpt_oss")


def windows(vocabulary: int = VOCABULARY) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    lengths = (10, 10, 7)
    return [torch.randint(3, vocabulary, (1, n), generator=generator) for n in lengths]


@pytest.fixture
def as_a_whole(monkeypatch):
    """Collect statistics from the whole model at once, whatever the model allows."""

    def collect(model, specs, batches):
        def refuse(*_args):
            raise NotBlockwise("the test asks for it")

        with monkeypatch.context() as patch:
            patch.setattr(statistics, "Blocks", refuse)
            return collect_statistics(model, specs, batches)

    return collect


def assert_same_metrics(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, metric in ours.items():
        for term, other in zip(metric.terms, theirs[name].terms, strict=True):
            assert term.tokens == other.tokens
            torch.testing.assert_close(term.rows, other.rows, rtol=1e-4, atol=1e-8, msg=name)
            torch.testing.assert_close(term.columns, other.columns, rtol=1e-4, atol=1e-8, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DENSE + MIXTURES)
def test_block_by_block_gives_what_the_whole_model_gives(family, dtype, as_a_whole):
    model = (make_moe if family in MIXTURES else make_tiny_model)(family, dtype)
    specs, notes = take_inventory(model).layers, []
    before = {name: vars(module).get("forward") for name, module in model.named_modules()}
    metrics = collect_statistics(model, specs, windows(), note=notes.append)
    assert notes == []
    assert_same_metrics(metrics, as_a_whole(model, specs, windows()))
    assert {n: vars(m).get("forward") for n, m in model.named_modules()} == before
    assert model.config.use_cache


def test_the_comparison_can_fail(as_a_whole):
    model = make_tiny_model("llama")
    specs = take_inventory(model).layers
    with pytest.raises(AssertionError):
        assert_same_metrics(
            collect_statistics(model, specs, windows()), as_a_whole(model, specs, windows()[:2])
        )


def test_blocks_are_handed_over_from_the_last_to_the_first_and_not_held():
    model, order = make_tiny_model("llama_untied"), []
    specs = take_inventory(model).layers
    stream_statistics(model, specs, windows(), lambda done: order.extend(done))
    depths = {spec.name: spec.depth for spec in specs}
    assert [depths[name] for name in order] == [None, *[1] * 7, *[0] * 7, None]
    assert order[0] == "lm_head"


def test_a_part_of_the_matrices_is_the_same_as_in_all():
    model = make_tiny_model("llama")
    specs = take_inventory(model).layers
    some = [specs[0], specs[3]]
    whole = collect_statistics(model, specs, windows())
    part = collect_statistics(model, some, windows())
    assert_same_metrics(part, {spec.name: whole[spec.name] for spec in some})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Between, "between its blocks"),
        (Skipping, "more than the last block"),
        (Twice, "one after the other"),
        (Backwards, "one after the other"),
        (Unused, "not every one"),
        (InPlace, "block 0 depends on more"),
        (WritesIntoTheLast, "block 2 depends on more"),
        (GivenEmbeddings, "block 0 depends on more"),
        (EmbeddingsAtTheEnd, "more than the last block"),
        (FirstDecides, "block 1 depends on more|do not run alone"),
        (LeftBehind, "block 1 depends on more|do not run alone"),
        (Borrowing, "several of its blocks"),
        (OneBlock, "several places"),
        (NoList, "no list"),
    ],
)
def test_what_is_no_chain_of_blocks_is_found_out_and_run_as_a_whole(kind, reason, as_a_whole):
    model, notes = kind().requires_grad_(False), []
    specs = take_inventory(model).layers
    metrics = collect_statistics(model, specs, windows(16), note=notes.append)
    (note,) = notes
    assert re.search(reason, note)
    assert_same_metrics(metrics, as_a_whole(model, specs, windows(16)))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", [Chain, AttentionShown, WritesIntoItsEmbeddings])
def test_a_plain_chain_is_run_block_by_block(kind, as_a_whole):
    model, notes = kind().requires_grad_(False), []
    specs = take_inventory(model).layers
    metrics = collect_statistics(model, specs, windows(16), note=notes.append)
    assert notes == []
    assert_same_metrics(metrics, as_a_whole(model, specs, windows(16)))


def test_token_vectors_may_be_changed_in_place(as_a_whole):
    model, notes = ARCHITECTURES["ctrl"].make(), []
    specs = take_inventory(model).layers
    metrics = collect_statistics(model, specs, windows(), note=notes.append)
    assert notes == []
    assert_same_metrics(metrics, as_a_whole(model, specs, windows()))


def test_the_blocks_are_those_that_hold_most():
    model = make_moe("mixtral")
    assert list(find_blocks(model)) == list(model.model.layers)
    assert Blocks(make_tiny_model("gpt2")).count == 2


def test_spilled_tensors_come_back_in_their_type(tmp_path):
    spilled = SpilledTensors(tmp_path)
    assert list(tmp_path.iterdir()) == []  # the file has no name, so nothing is left by a kill
    kept = {
        "a": torch.randn(3, 5),
        "b": torch.randn(2, 2).to(torch.bfloat16),
        ("c", 1): torch.randn(4, 6).T,
        "empty": torch.empty(0, 3),
    }
    for key, tensor in kept.items():
        spilled[key] = tensor
    size = spilled._file.seek(0, 2)
    spilled["a"] = kept["a"] + 1
    assert spilled._file.seek(0, 2) == size
    torch.testing.assert_close(
        {key: spilled[key] for key in kept}, kept | {"a": kept["a"] + 1}, rtol=0, atol=0
    )
