from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch

from autocompress.errors import ConfigurationError
from autocompress.evaluation.scoring import Score, Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.healing.student import Student
from autocompress.judging.attribution import GROUPINGS, attribute, groups_of, put_back, without
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import PERPLEXITY, WindowScores
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.inventory import stored_bytes, stored_tensors_of
from autocompress.surgery.workbench import Workbench
from tests.llama_specs import llama_specs
from tests.mixed_plans import builder, mixed_plan
from tests.moe_models import make_moe

DENSE = 2.5
WINDOWS = (64, 64, 64, 64, 64, 32)


@pytest.fixture
def workbench(tiny_llama):
    return Workbench(tiny_llama)


@pytest.fixture
def plan(workbench):
    return mixed_plan(workbench.inventory, 1)


@pytest.fixture
def windows():
    return Windows(torch.randint(3, 96, (6 * 16,), generator=torch.Generator().manual_seed(2)), 16)


@pytest.fixture
def teacher(tiny_llama, windows):
    return Teacher.of(tiny_llama, windows)


def made_up(increase):
    """A score of that increase in every window, and half of it as divergence."""
    by_window = WindowScores(WINDOWS, (DENSE + increase,) * 6, (increase / 2,) * 6)
    return Score(
        math.exp(DENSE + increase), DENSE + increase, increase / 2, sum(WINDOWS), by_window
    )


def compressed(plan):
    return [name for name, method in plan.items() if method != Keep()]


def made_up_attribution(workbench, plan, own, pairs=0.0):
    """Each matrix harms by ``own`` of its name, each pair of them by ``pairs`` more."""

    def score_plan(chosen):
        names = compressed(chosen)
        both = pairs * len(list(combinations(names, 2)))
        return made_up(sum(own[name] for name in names) + both)

    groups = groups_of(plan, workbench.inventory.layers, GROUPINGS)
    return attribute(
        plan, workbench.inventory, score_plan, made_up(0.0), groups, PERPLEXITY
    ), groups


def test_losses_that_add_up_are_found_to_the_last_digit(workbench, plan):
    own = {name: 0.01 * (1 + index) for index, name in enumerate(compressed(plan))}
    found, groups = made_up_attribution(workbench, plan, own)
    assert found.total.increase == pytest.approx(sum(own.values()))
    assert found.tokens == sum(WINDOWS)
    for group, each in zip(groups, found.contributions, strict=True):
        wanted = sum(own[spec.name] for spec in group.specs)
        assert each.lost.increase == pytest.approx(wanted)
        assert each.lost.divergence == pytest.approx(wanted / 2)
        assert each.without.increase == pytest.approx(found.total.increase - wanted)
        assert each.interval == pytest.approx((wanted, wanted))
    for grouping in GROUPINGS:
        assert found.interaction(grouping).increase == pytest.approx(0, abs=1e-12)


def test_what_pairs_do_is_interaction(workbench, plan):
    """Alone, each of n matrices takes its n - 1 pairs along, so that each pair counts twice."""
    names = compressed(plan)
    found, _ = made_up_attribution(workbench, plan, dict.fromkeys(names, 0.1), pairs=0.02)
    pairs = len(names) * (len(names) - 1) / 2
    assert found.total.increase == pytest.approx(0.1 * len(names) + 0.02 * pairs)
    assert found.interaction("layer").increase == pytest.approx(-0.02 * pairs)
    assert 0 > found.interaction("part").increase > found.interaction("layer").increase


def test_what_is_saved_adds_up_to_what_the_plan_saves(workbench, plan):
    found, _ = made_up_attribution(workbench, plan, dict.fromkeys(compressed(plan), 0.1))
    with workbench.applied(plan, builder(workbench)) as model:
        saved = workbench.inventory.dense_bytes - stored_bytes(model)
    assert found.bytes_saved == saved > 0
    for grouping in GROUPINGS:
        groups = found.by(grouping)
        assert abs(sum(each.bytes_saved for each in groups) - saved) < 100  # of the header
        assert sum(each.saved_share for each in groups) == pytest.approx(1, abs=0.01)
        assert sum(each.layers for each in groups) == len(compressed(plan))


def test_every_group_is_what_a_score_without_it_says(workbench, plan, windows, teacher):
    build, inventory = builder(workbench), workbench.inventory

    def score_plan(chosen):
        with workbench.applied(chosen, build) as model:
            return score(model, windows, teacher)

    counted = []
    groups = groups_of(plan, inventory.layers)
    found = attribute(
        plan, inventory, score_plan, teacher.score, groups, PERPLEXITY, counted.append
    )
    assert sum(counted) == len(groups) + 1
    whole = score_plan(plan)
    for group, each in zip(groups, found.contributions, strict=True):
        names = {spec.name for spec in group.specs}
        rest = Plan.of({name: method for name, method in plan.items() if name not in names})
        scored = score_plan(rest)
        assert each.without.divergence == scored.divergence
        assert each.lost.increase == pytest.approx(whole.loss - scored.loss)
        assert each.lost.divergence == pytest.approx(whole.divergence - scored.divergence)
        assert each.bytes_saved == inventory.plan_bytes(rest) - inventory.plan_bytes(plan)
        assert each.interval.low <= each.lost.increase <= each.interval.high
    assert json.loads(json.dumps(found.to_dict()))["total"]["kl"] == whole.divergence


def test_a_plan_is_scored_once_however_often_its_matrices_are_grouped(workbench):
    plan = Plan.of({spec.name: Quantize(3, 16) for spec in workbench.inventory.layers})
    seen = []

    def score_plan(chosen):
        seen.append(chosen.hash)
        return made_up(0.1 * len(compressed(chosen)))

    groups = groups_of(plan, workbench.inventory.layers, ("method", "role", "layer"))
    found = attribute(plan, workbench.inventory, score_plan, made_up(0.0), groups, PERPLEXITY)
    assert len(seen) == len(set(seen)) < len(groups) + 1
    (only,) = found.by("method")
    assert (only.without.divergence, only.lost) == (0, found.total)


def test_groups():
    specs = llama_specs(blocks=8)
    plan = Plan.of({spec.name: Svd(4) for spec in specs} | {specs[1].name: Quantize(3, 64)})
    names = {by: [group.name for group in groups_of(plan, specs, [by])] for by in GROUPINGS}
    assert names["method"] == ["svd", "3 bit"]
    assert names["part"] == ["embedding", "attention", "mlp"]
    assert names["depth"] == [
        "outside the blocks", "blocks 0 to 2", "blocks 3 to 5", "blocks 6 to 7",
    ]  # fmt: skip
    assert names["block"] == ["outside the blocks", *(f"block {index}" for index in range(8))]
    assert names["layer"] == [spec.name for spec in specs]
    few = llama_specs(blocks=2)
    thirds = groups_of(Plan.of({spec.name: Svd(4) for spec in few}), few, ["depth"])
    assert [group.name for group in thirds] == ["outside the blocks", "block 0", "block 1"]


def test_matrices_that_are_kept_are_in_no_group(workbench, plan):
    groups = groups_of(plan, workbench.inventory.layers, ["layer"])
    assert [group.name for group in groups] == compressed(plan)
    assert len(groups) < len(plan)


@pytest.mark.parametrize(
    ("by", "methods", "words"),
    [
        (("colour",), {}, "'colour'"),
        ((), {}, "nothing"),
        (("method",), {"model.layers.0.mlp.up_proj": Keep()}, "keeps every matrix"),
    ],
)
def test_what_cannot_be_attributed_is_refused(workbench, by, methods, words):
    with pytest.raises(ConfigurationError, match=words):
        groups_of(Plan.of(methods), workbench.inventory.layers, by)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_a_group_goes_back_to_dense_and_the_rest_keeps_its_healed_numbers(tiny_model, family):
    model = make_moe(family) if family == "gpt_oss" else tiny_model(family)
    workbench = Workbench(model)
    plan = mixed_plan(workbench.inventory)
    student = Student(workbench, plan, builder(workbench))
    with torch.no_grad():
        for _, parameter in student.trained():
            parameter.mul_(1.01)
    healed, dense = student.weights(), dict(stored_tensors_of(model))

    def never(_name, _method):
        raise AssertionError("every matrix has its numbers")

    biases = {f"{name}.bias" for name, method in plan.items() if method == Keep()} & set(healed)
    assert biases or family == "llama"  # those of kept matrices are trained, too
    for group in groups_of(plan, workbench.inventory.layers):
        ablated = without(plan, group)
        rest = put_back(ablated, Compressed(plan, healed), workbench)
        numbers = rest.weights
        with workbench.applied(rest, never) as applied:
            stored = stored_tensors_of(applied)
        assert biases <= set(numbers) or family == "gpt_oss"  # where all experts are in a stack
        assert set(numbers) < set(healed)
        assert set(numbers) <= set(stored)
        for name, tensor in stored.items():
            wanted = numbers.get(name, dense.get(name))
            if wanted is None:  # an expert that is dense, taken out of its stack
                expert, _, kind = name.rpartition(".")
                wanted = getattr(workbench.problem(expert), kind)
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
