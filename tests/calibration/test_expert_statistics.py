from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from autocompress.calibration.statistics import collect_statistics
from autocompress.methods.base import MatrixProblem
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.surgery.inventory import take_inventory
from autocompress.surgery.placement import read_weight
from tests.calibration.labels import drawn
from tests.conftest import VOCABULARY
from tests.moe_models import EXPERTS, FAMILIES, make_moe

LENGTH = 12


def windows(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (1, LENGTH), generator=generator) for _ in range(count)]


def by_brute_force(model, batches):
    """Per expert: the vectors that enter each matrix, and the gradients of what leaves it.

    From the inputs and the output gradient of the dense experts module alone: the loss changes with
    the output of one expert for one token by the output's gradient times the routing weight.
    """
    seen = defaultdict(lambda: ([], []))

    def watch(path, module):
        def note(name, x, gradient):
            seen[f"{path}.{name}"][0].append(x)
            seen[f"{path}.{name}"][1].append(gradient)

        def one_pair(x, expert, cotangent):
            first, last = (
                stack[expert].T if module.is_transposed else stack[expert]
                for stack in (module.gate_up_proj, module.down_proj)
            )
            a = (first @ x).detach().requires_grad_()
            if module.has_bias:
                a = (a + module.gate_up_proj_bias[expert]).detach().requires_grad_()
            h = module._apply_gate(a[None])[0]
            (gradient,) = torch.autograd.grad(h, a, last.T @ cotangent)
            note(f"gate_up_proj.{expert}", x, gradient)
            note(f"down_proj.{expert}", h.detach(), cotangent)

        def forward(_module, args, output):
            x, chosen, weights = (each.detach() for each in args)

            def backward(gradient):
                with torch.enable_grad():
                    for token, position in torch.cartesian_prod(
                        torch.arange(len(x)), torch.arange(chosen.shape[1])
                    ).tolist():
                        share = weights[token, position] * gradient[token]
                        one_pair(x[token], int(chosen[token, position]), share)

            output.register_hook(backward)

        return module.register_forward_hook(forward)

    handles = [
        watch(path, module)
        for path, module in model.named_modules()
        if path.endswith("mlp.experts")
    ]
    generator = torch.Generator().manual_seed(0)
    model.model.embed_tokens.weight.requires_grad_(True)
    for ids in batches:
        logits = model(input_ids=ids).logits[0]
        labels = drawn(logits, generator)
        nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)
    model.zero_grad()
    return {name: tuple(torch.stack(each) for each in both) for name, both in seen.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_weighted_by_routing(family):
    model, batches = make_moe(family), windows()
    specs = [spec for spec in take_inventory(model).layers if ".experts." in spec.name]
    before = dict(model.named_modules())
    metrics = collect_statistics(model, specs, batches)
    assert dict(model.named_modules()) == before
    expected = by_brute_force(model, batches)
    tokens = len(batches) * LENGTH
    shares = {name: len(x) / tokens for name, (x, _) in expected.items()}
    assert len(set(shares.values())) > 2  # routing is uneven
    for name, (x, gradients) in expected.items():
        term = metrics[name].terms[0]
        assert_close(term.columns, x.T @ x / len(x), rtol=1e-3, atol=1e-6, msg=f"{name} inputs")
        assert_close(
            term.rows, gradients.T @ gradients / tokens, rtol=2e-3, atol=1e-7, msg=f"{name} rows"
        )


class _Routed(nn.Module):
    """A language model with two experts, each a linear layer; token ids choose between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 8)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 16)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids).reshape(-1, 8)
        y = torch.zeros_like(x)
        chosen = input_ids.reshape(-1) % 2
        for index, expert in enumerate(self.experts):
            (tokens,) = torch.where(chosen == index)
            if len(tokens):
                y = y.index_add(0, tokens, expert(x[tokens]))
        return SimpleNamespace(logits=self.head(x + y).reshape(*input_ids.shape, 16))


@pytest.fixture
def routed():
    torch.manual_seed(0)
    return _Routed().requires_grad_(False)


def test_a_list_of_experts_is_weighted_alike(routed):
    ids = torch.tensor([[2, 4, 6, 3]])  # three tokens for the first expert, one for the second
    specs = [spec for spec in take_inventory(routed).layers if spec.name.startswith("experts")]
    metrics = collect_statistics(routed, specs, [ids])
    x = routed.embed_tokens(ids)[0]
    assert_close(metrics["experts.0"].terms[0].columns, x[:3].T @ x[:3] / 3)
    assert_close(metrics["experts.1"].terms[0].columns, x[3:].T @ x[3:])
    gradients = []

    def forward(_module, _args, output):
        output.register_hook(lambda g: gradients.append(g.clone()))

    routed.experts[1].register_forward_hook(forward)
    collect_statistics(routed, specs[:1], [ids])
    (g,) = gradients
    assert_close(metrics["experts.1"].terms[0].rows, g.T @ g / 4)


def test_an_expert_that_saw_no_token_counts_as_if_it_had_seen_an_average_one(routed):
    ids = torch.tensor([[2, 4, 6, 3]])
    specs = take_inventory(routed).layers
    metrics = collect_statistics(routed, specs, [ids])
    first, second, idle = (metrics[f"experts.{index}"].terms[0] for index in range(3))
    assert_close(idle.columns, (3 * first.columns + second.columns) / 4)
    assert_close(idle.rows, (first.rows + second.rows) / 4)
    change = torch.randn(8, 8)
    assert (
        0 < metrics["experts.2"].loss_increase(change) < metrics["experts.0"].loss_increase(change)
    )


def test_without_a_loss_experts_still_count_by_their_share(routed):
    routed.forward = lambda input_ids: routed.experts[0](
        routed.embed_tokens(input_ids).reshape(-1, 8)[:1]
    )
    specs = take_inventory(routed).layers[1:2]
    metric = collect_statistics(routed, specs, [torch.tensor([[2, 4, 6, 3]])])["experts.0"]
    assert_close(metric.terms[0].rows, torch.full((8,), 0.25))


@pytest.mark.parametrize("method", [Svd(4), Quantize(3, 16), Svd(4, bits=8)])
def test_an_expert_of_a_layer_that_no_token_reached_can_be_compressed(method):
    model = make_moe("mixtral")
    specs = [spec for spec in take_inventory(model).layers if ".experts." in spec.name]
    metrics = collect_statistics(model, specs, [])
    spec = specs[EXPERTS - 1]
    metric = metrics[spec.name]
    assert not metric.terms[0].rows.any()
    layer = method.build(MatrixProblem(spec, read_weight(model, spec), metric))
    assert torch.isfinite(layer.to_dense()).all()
