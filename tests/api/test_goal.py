from __future__ import annotations

import pytest

from autocompress.driver.goal import read_goal
from autocompress.errors import BudgetUnreachable, ConfigurationError
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.progress import Notes
from autocompress.requests.verbs import CompressRequest

SVD = {"method": "svd", "rank": 8}
TRAIN = {"method": "tensor_train", "ranks": 4, "out_modes": [6, 8], "in_modes": [4, 8]}


def recipe(layers, **more):
    return {"version": 1, "layers": layers} | more


def test_a_budget_is_met_with_the_matrices_that_a_recipe_leaves_open(run, tiny_llama):
    layers = {"*.q_proj": SVD, "model.embed_tokens": {"method": "keep"}}
    plain = run(tiny_llama, recipe(layers), measure=False).report
    assert len(plain.plan) == 3  # the others stay dense
    report = run(tiny_llama, recipe(layers, budget="2x"), measure=False).report
    assert report.bytes <= report.dense_bytes / 2
    plan = report.plan
    assert [plan[f"model.layers.{depth}.self_attn.q_proj"] for depth in (0, 1)] == [Svd(8)] * 2
    assert plan["model.embed_tokens"] == Keep()
    assert isinstance(plan["model.layers.0.mlp.up_proj"], Quantize)
    assert len(plan) == len(report.layers)
    assert "completed to at most 2x" in report.source
    again = run(tiny_llama, recipe(layers), budget="2x", measure=False).report
    assert again.plan == plan  # the budget may as well stand beside the recipe
    whole = run(tiny_llama, plan.to_recipe(), measure=False)
    assert whole.report.plan.hash == plan.hash  # what is exported is a plain recipe


def test_a_budget_out_of_the_reach_of_a_recipe_says_what_can_be_reached(run, tiny_llama):
    layers = {"*.mlp.*": {"method": "keep"}}
    with pytest.raises(BudgetUnreachable, match=r"6 matrices as they are given.*at least"):
        run(tiny_llama, recipe(layers, budget="6x"), measure=False)
    with pytest.raises(BudgetUnreachable, match="at least"):
        run(tiny_llama, recipe({"*": SVD}, budget="50x"), measure=False)


@pytest.mark.parametrize(
    ("layers", "more", "space"), [({"*": SVD}, {"space": "default"}, None), ({"*": SVD}, {}, "x")]
)
def test_a_space_without_a_budget_is_refused(layers, more, space):
    with pytest.raises(ConfigurationError, match="no effect beside a recipe without a budget"):
        read_goal(CompressRequest(recipe=recipe(layers, **more), space=space))


def test_groups_of_a_space_leave_out_what_a_recipe_fixes(run, tiny_llama, tmp_path):
    space = tmp_path / "tied.yaml"
    space.write_text(
        "version: 1\nname: tied\nmethods: {keep: false, quantize: {bits: [4], group_sizes: [16]}}\n"
        "groups: [{roles: [query, key, value]}]\n"
    )
    asked = recipe({"*.q_proj": SVD}, budget="2x", space=str(space))
    plan = run(tiny_llama, asked, space=None, measure=False).report.plan
    block = "model.layers.0.self_attn"
    assert plan[f"{block}.q_proj"] == Svd(8)
    assert plan[f"{block}.k_proj"] == plan[f"{block}.v_proj"] == Quantize(4, 16)


def test_what_a_recipe_leaves_open_may_be_narrowed(run, tiny_llama):
    asked = recipe({"*.q_proj": SVD}, budget="1.5x")
    plan = run(tiny_llama, asked, keep=["*.mlp.*"], measure=False).report.plan
    block = "model.layers.0"
    assert plan[f"{block}.self_attn.q_proj"] == Svd(8)
    assert plan[f"{block}.mlp.up_proj"] == Keep()
    with pytest.raises(ConfigurationError, match="without a budget says itself"):
        run(tiny_llama, recipe({"*.q_proj": SVD}), keep=["*.mlp.*"], measure=False)


def test_random_cores_are_drawn_by_the_seed_and_said_to_need_training(run, tiny_llama):
    drawn, notes = recipe({"*.up_proj": TRAIN | {"init": "random"}}, seed=3, budget="2x"), Notes()
    name = "model.layers.0.mlp.up_proj"
    first = run(tiny_llama, drawn, measure=False, progress=notes).report
    assert any("2 tensor trains start from random cores" in note for note in notes.said)
    assert first.plan[name].seed == 3
    assert run(tiny_llama, drawn, seed=4, measure=False).report.plan[name].seed == 4


def test_penalties_that_count_go_with_what_is_written():
    notes = Notes()
    penalties = [{"layers": "*.q_proj", "kind": "shannon"}, {"layers": "*.down_proj"}]
    asked = recipe({"*.q_proj": SVD}, penalty=penalties, budget="2x")
    goal = read_goal(CompressRequest(recipe=asked))
    kept = goal.penalties_of(Plan.of({"a.q_proj": Svd(8), "a.down_proj": Quantize(4)}), notes)
    assert [penalty.layers for penalty in kept] == ["*.q_proj"]
    assert "renyi 0.25 on *.down_proj is left out" in notes.said[-2]
    assert "holds when it is healed" in notes.said[-1]
