from __future__ import annotations

import gc
import weakref
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from autocompress.calibration import gram_sums
from autocompress.calibration.gram_sums import GramSum, GramUse
from autocompress.calibration.statistics import collect_statistics, stream_sums
from autocompress.evaluation.corpus import bundled_text
from autocompress.evaluation.encoding import token_ids
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.records import Kind
from autocompress.surgery.inventory import take_inventory
from autocompress.surgery.loading import load_model
from tests.calibration.labels import drawn
from tests.conftest import VOCABULARY

LENGTH = 10


def windows(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, VOCABULARY, (1, LENGTH), generator=generator) for _ in range(count)]


def by_brute_force(
    model, specs, batches, seed: int = 0
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and output gradients of every use, token by token, with autograd through the weights.

    Returns for each use of each layer the mean over tokens of ``x x^T`` and of ``g g^T``, in fp64.
    """
    uses = {spec.name: [spec.name, *spec.tied] for spec in specs}
    seen = defaultdict(lambda: ([], []))

    def hook(path):
        def forward(module, args, output):
            x = args[0].detach()
            if isinstance(module, nn.Embedding):
                x = nn.functional.one_hot(x, module.num_embeddings)
            seen[path][0].append(x.reshape(-1, x.shape[-1]).double())
            output.register_hook(
                lambda g: seen[path][1].append(g.reshape(-1, g.shape[-1]).double())
            )

        return forward

    paths = [path for names in uses.values() for path in names]
    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    generator, tokens = torch.Generator().manual_seed(seed), 0
    model.requires_grad_(True)
    for ids in batches:
        logits = model(input_ids=ids).logits[0]
        labels = drawn(logits, generator)
        logs = logits.log_softmax(-1)
        (-logs[torch.arange(len(labels)), labels].sum()).backward()
        tokens += ids.numel()
    model.requires_grad_(False)
    model.zero_grad()
    for handle in handles:
        handle.remove()

    def gram(vectors):
        stacked = torch.cat(vectors)
        return stacked.T @ stacked / tokens

    return {name: [tuple(map(gram, seen[path])) for path in each] for name, each in uses.items()}


def smoothed(frequencies: torch.Tensor, tokens: int) -> torch.Tensor:
    """Frequencies of indices with the share of those seen once spread over all."""
    counts = frequencies.diagonal() * tokens
    share = float((counts.round() == 1).sum()) / tokens
    return torch.diag((1 - share) * counts / tokens + share / len(counts))


def as_stored(gram: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return gram.diagonal().float() if like.ndim == 1 else gram.float()


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_the_gram_matrices_are_those_of_every_use(family, tiny_model):
    model = tiny_model(family)
    specs = take_inventory(model).layers
    batches = windows()
    metrics = collect_statistics(model, specs, batches)
    expected = by_brute_force(model, specs, batches)
    tokens = sum(ids.numel() for ids in batches)
    assert metrics.keys() == expected.keys()
    for spec in specs:
        terms = metrics[spec.name].terms
        assert len(terms) == 1 + len(spec.tied)
        for place, (term, (inputs, gradients)) in enumerate(
            zip(terms, expected[spec.name], strict=True)
        ):
            lookup = spec.kind is Kind.EMBEDDING and place == 0
            inputs = smoothed(inputs, tokens) if lookup else inputs
            if lookup:  # the hook sees what becomes of a row, the matrix is the row
                gradients = gradients * spec.factor_of(spec.name) ** 2
            rows, columns = (inputs, gradients) if lookup else (gradients, inputs)
            assert_close(
                term.rows, as_stored(rows, term.rows), rtol=2e-3, atol=1e-7, msg=f"{spec} rows"
            )
            assert_close(
                term.columns,
                as_stored(columns, term.columns),
                rtol=2e-3,
                atol=1e-7,
                msg=f"{spec} columns",
            )


def test_the_checker_of_the_gram_matrices_can_fail(tiny_model):
    model = tiny_model("llama")
    specs = take_inventory(model).layers
    metrics = collect_statistics(model, specs, windows(), seed=1)
    name = specs[1].name
    gradients = by_brute_force(model, specs, windows(), seed=0)[name][0][1]
    with pytest.raises(AssertionError):
        assert_close(metrics[name].terms[0].rows, gradients.float(), rtol=2e-3, atol=1e-7)


def test_token_frequencies_expect_new_tokens_as_often_as_single_ones_were_seen(tiny_llama):
    spec = take_inventory(tiny_llama).layers[0]
    metric = collect_statistics(tiny_llama, [spec], [torch.tensor([[5, 5, 7, 5]])])[spec.name]
    rows = metric.terms[0].rows
    assert rows.shape == (VOCABULARY,)
    new = 0.25 / VOCABULARY  # one token in four was seen once
    wanted = torch.full((VOCABULARY,), new)
    wanted[5] += 0.75 * 0.75
    wanted[7] += 0.75 * 0.25
    assert_close(rows, wanted)
    assert_close(rows.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_as_it_was(tiny_model, dtype):
    model = tiny_model("llama", dtype)
    model.lm_head.weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    metrics = collect_statistics(model, take_inventory(model).layers, windows(1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad is (parameter is model.lm_head.weight)
    assert not any(module._forward_hooks for module in model.modules())
    assert {term.rows.dtype for m in metrics.values() for term in m.terms} == {torch.float32}


def test_the_hooks_are_gone_after_an_error_too(tiny_llama):
    def broken():
        yield windows(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_statistics(tiny_llama, take_inventory(tiny_llama).layers, broken())
    assert not any(module._forward_hooks for module in tiny_llama.modules())


def test_the_seed_draws_the_labels(tiny_llama):
    specs = take_inventory(tiny_llama).layers
    first, again, other = (
        collect_statistics(tiny_llama, specs, windows(), seed=seed) for seed in (0, 0, 1)
    )
    for name, metric in first.items():
        for term, same in zip(metric.terms, again[name].terms, strict=True):
            assert torch.equal(term.rows, same.rows)
            assert torch.equal(term.columns, same.columns)
    last = specs[-1].name
    assert not torch.equal(first[last].terms[0].rows, other[last].terms[0].rows)


def test_progress_counts_tokens(tiny_llama):
    told = []
    specs = take_inventory(tiny_llama).layers[:1]
    collect_statistics(tiny_llama, specs, windows(3), advance=told.append)
    assert sum(told) == 3 * LENGTH
    assert len(told) > 3  # and not only at the end
    assert all(tokens > 0 for tokens in told)


def test_a_model_without_logits_counts_every_output_alike(tiny_model):
    body = tiny_model("llama").model
    specs = take_inventory(body).layers
    metrics = collect_statistics(body, specs, windows(1))
    linear = metrics[specs[-1].name].terms[0]
    assert torch.equal(linear.rows, torch.ones(specs[-1].out_features))
    assert linear.columns.shape == (specs[-1].in_features,) * 2


def test_a_large_matrix_keeps_only_the_diagonal(monkeypatch, tiny_model):
    model = tiny_model("llama_untied")
    specs = take_inventory(model).layers
    full = collect_statistics(model, specs, windows())
    monkeypatch.setattr(gram_sums, "FULL_GRAM_LIMIT", 40)
    cut = collect_statistics(model, specs, windows())
    down = next(spec.name for spec in specs if spec.name.endswith("down_proj"))  # [32, 48]
    assert cut[down].terms[0].rows.shape == (32, 32)
    assert_close(cut[down].terms[0].columns, full[down].terms[0].columns.diagonal())


def test_sums_are_in_fp32_whatever_the_activations_are():
    total = GramSum(1, diagonal=True)
    for _ in range(1000):
        total.add(torch.ones(1, 1, dtype=torch.bfloat16))
    assert float(total.mean(1)) == 1000.0  # bfloat16 would have stopped at 256


FACTOR = 4  # of the prediction against the measurement, either way


@pytest.mark.parametrize(
    "layer", ["model.layers.0.self_attn.v_proj", "model.layers.2.mlp.down_proj"]
)
def test_the_prediction_is_the_divergence_of_a_small_change(layer):
    """The Fisher property: half the quadratic form is the KL divergence, to second order."""
    loaded = load_model(None)
    model = loaded.model
    ids = token_ids(bundled_text("calibration"), loaded.tokenizer, limit=2048)
    text = Windows(ids, 128)
    spec = take_inventory(model)[layer]
    metric = collect_statistics(model, [spec], [window[None] for window in text])[layer]
    weight = model.get_submodule(layer).weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    change *= (
        0.002 / metric.loss_increase(change)
    ) ** 0.5  # loss increase is quadratic: this makes it 2 mnats
    assert abs(metric.loss_increase(change) - 0.002) < 1e-5
    teacher = Teacher.of(model, text)
    with torch.no_grad():
        weight += change
        measured = score(model, text, teacher).divergence
        weight -= change
    assert 0.002 / FACTOR < measured < 0.002 * FACTOR


def test_the_sums_of_one_block_at_a_time_are_held(tiny_llama):
    """However deep a model is; what has been handed over is nobody's but the receiver's."""
    specs = take_inventory(tiny_llama).layers
    made: weakref.WeakSet[GramUse] = weakref.WeakSet()
    left = []

    class Watched(GramUse):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.add(self)

    def keep(done):
        gc.collect()
        left.append(sum(use.gradients.total is not None for use in made) - len(done))

    ids = torch.randint(0, VOCABULARY, (1, 16))
    stream_sums(
        tiny_llama, specs, Watched, [ids], keep, lambda _batch, _start, rows: rows.square().sum()
    )
    depths = {spec.depth for spec in specs if spec.depth is not None}
    assert len(depths) > 1
    assert max(left) <= len(specs) / len(depths)
    assert left[-1] <= 1
