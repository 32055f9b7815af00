from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.reach import check_reachable, smallest_model_bytes
from autocompress.errors import BudgetUnreachable
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.records import Kind, LayerSpec, Role
from autocompress.space.space import Group
from autocompress.space.space_file import load_space, space_names
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.native import NATIVE
from tests.llama_specs import llama_specs

ODD = (
    LayerSpec("wide", Role.UP, Kind.LINEAR, 17, 130),
    LayerSpec("prime", Role.HEAD, Kind.LINEAR, 97, 101, bias=True),
    LayerSpec("table", Role.EMBEDDING, Kind.EMBEDDING, 50257, 64, dtype="bfloat16"),
    LayerSpec("small", Role.OTHER, Kind.LINEAR, 8, 8),
)
SHAPES = {"llama": llama_specs(), "odd": ODD}


@pytest.mark.parametrize("specs", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("share", [None, 0.1, 0.02])
def test_every_plan_covers_every_matrix_and_fits_it(specs, share):
    plans = baseline_plans(specs, share)
    for _label, plan in plans:
        assert list(plan) == [spec.name for spec in specs]
        for spec in specs:
            plan[spec.name].check(spec)


@pytest.mark.parametrize("share", [None, 0.1, 0.25, 0.2525, 0.5, 0.001])
def test_labels_are_unique(share):
    """A resumed search tells by its label whether a plan was measured."""
    labels = [label for label, _ in baseline_plans(llama_specs(), share)]
    assert len(labels) == len(set(labels))


def test_each_bit_width_svd_and_tensor_train_are_there():
    plans = dict(baseline_plans(llama_specs(), 0.1))
    for bits in (8, 4, 3, 2):
        assert set(plans[f"uniform {bits} bit, groups of 64"].values()) == {Quantize(bits, 64)}
        assert set(plans[f"uniform {bits} bit, whole rows"].values()) == {Quantize(bits, 0)}
    for bits in (4, 3, 2):
        assert set(plans[f"uniform {bits} bit trellis"].values()) == {Trellis(bits, 0)}
    assert len(plans) == 2 * 4 + 3 + 2
    for kind, method in (("SVD", Svd), ("tensor train", TensorTrain)):
        plan = plans[f"uniform {kind}, 10% of the parameters"]
        assert all(isinstance(each, method) for each in plan.values())


def test_without_a_budget_factorised_plans_have_half_of_the_parameters():
    plans, half = (
        dict(baseline_plans(llama_specs())),
        dict(baseline_plans(llama_specs(), 0.5)),
    )
    assert plans == half
    assert "uniform SVD, 50% of the parameters" in plans


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.03])
def test_factorised_plans_are_within_their_share_of_the_bytes(share):
    specs = llama_specs()
    dense = sum(Keep().cost(spec) for spec in specs)
    plans = dict(baseline_plans(specs, share))
    for kind in ("SVD", "tensor train"):
        size = plans[f"uniform {kind}, {share:.0%} of the parameters"].layer_bytes(specs)
        assert 0.6 * share * dense < size <= share * dense


def test_a_matrix_that_no_group_divides_takes_whole_rows():
    plans = dict(baseline_plans(ODD))
    assert plans["uniform 4 bit, groups of 64"]["wide"] == Quantize(4, 0)
    assert plans["uniform 4 bit, groups of 64"]["table"] == Quantize(4, 64)


@pytest.mark.parametrize("name", space_names())
def test_the_smallest_model_is_the_sum_of_its_smallest_options(name):
    space, inventory = load_space(name), inventory_of(llama_specs())
    smallest = sum(
        min(NATIVE.matrix_bytes(m, s) for m in space.options(s)) for s in inventory.layers
    )
    least = smallest_model_bytes(space, inventory)
    assert least == inventory.rest_bytes + smallest if not space.groups else least >= smallest
    check_reachable(space, inventory, least)
    check_reachable(space, inventory, None)
    with pytest.raises(BudgetUnreachable, match=f"{space.name}.*--budget") as caught:
        check_reachable(space, inventory, least - 1)
    ratio = float(caught.value.wanted.rpartition("(")[2].rstrip("x)"))
    check_reachable(space, inventory, int(inventory.dense_bytes / ratio))  # what it says is true


def test_tied_matrices_take_the_smallest_method_that_they_share():
    """Groups of 64 and of 128 do not divide rows of 176."""
    first = LayerSpec("a", Role.UP, Kind.LINEAR, 64, 128)
    second = LayerSpec("b", Role.UP, Kind.LINEAR, 64, 176)
    space = replace(load_space("quantize_only"), groups=(Group(names=("a", "b")),))
    smallest = smallest_model_bytes(space, inventory_of((first, second)))
    alike = set(space.options(first)) & set(space.options(second))
    assert alike < set(space.options(first))
    expected = min(NATIVE.matrix_bytes(m, first) + NATIVE.matrix_bytes(m, second) for m in alike)
    assert smallest == 5000 + expected


def test_a_limit_of_nothing_is_an_outcome_too():
    with pytest.raises(BudgetUnreachable):
        check_reachable(load_space("default"), inventory_of(llama_specs()), 0)


def inventory_of(specs) -> Inventory:
    dense = 5000 + sum(Keep().cost(spec) for spec in specs)
    return Inventory(specs, (), 5000, dense, dense // 4)


def test_held_matrices_take_one_method_in_every_plan():
    specs = llama_specs()
    held = {specs[3].name: Keep(), specs[5].name: Quantize(8, 0)}
    for _, plan in baseline_plans(specs, 0.1, held=held):
        assert list(plan) == [spec.name for spec in specs]
        assert {name: plan[name] for name in held} == held
