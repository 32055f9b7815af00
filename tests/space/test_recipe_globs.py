"""What a recipe may say beside a method for each name: globs, seed, budget, space, one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import RecipeError
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.document import Document, read_document
from autocompress.space.problems import RecipeFileError
from autocompress.space.recipe_file import check_recipe, load_recipe, own_space, read_recipe
from tests.llama_specs import llama_specs

SPECS = llama_specs()
PLACE = Path("here") / "r.yaml"
TRAIN = {"method": "tensor_train", "ranks": 999, "out_modes": [16, 44], "in_modes": [4, 8, 8]}


def read(layers, **more):
    return read_recipe(Document(PLACE, {"version": 1, "layers": layers} | more))


def problems(layers, **more):
    with pytest.raises(RecipeFileError) as caught:
        check_recipe(read(layers, **more), SPECS)
    return [(problem.key, problem.got, problem.nearest) for problem in caught.value.problems]


def test_the_first_name_or_glob_that_matches_counts_in_the_order_of_the_file():
    recipe = read(
        {
            "model.layers.1.mlp.up_proj": {"method": "keep"},
            "*.mlp.*": {"method": "svd", "rank": 8},
            "*.self_attn.[qk]_proj": {"method": "quantize", "bits": 4},
        }
    )
    plan = check_recipe(recipe, SPECS).plan
    assert plan["model.layers.1.mlp.up_proj"] == Keep()
    assert plan["model.layers.0.mlp.up_proj"] == plan["model.layers.1.mlp.down_proj"] == Svd(8)
    assert plan["model.layers.1.self_attn.k_proj"] == Quantize(4)
    assert len(plan) == 6 + 4  # values, outputs and the embedding are left open
    assert list(plan) == [spec.name for spec in SPECS if spec.name in plan]
    with pytest.raises(RecipeError, match="globs, which only a model can resolve"):
        _ = recipe.plan


def test_globs_and_names_that_match_nothing_come_all_at_once_with_the_nearest():
    svd = {"method": "svd", "rank": 8}
    found = problems(
        {
            "*.mpl.*": svd,
            "model.layers.0.mlp.up_porj": svd,
            "*.self_attn.*": svd,
            "*.q_proj": svd,
            "model.layers.0.self_attn.v_proj": svd,
            "lm_head": svd,
            "*.down_proj": {"method": "quantize", "bits": 4, "group_size": 128},
        }
    )
    assert [near for _, _, near in found[:2]] == ["*.mlp.*", "model.layers.0.mlp.up_proj"]
    assert [got for _, got, _ in found[2:4]] == ["only layers that entries before it match"] * 2
    assert found[4][2] == "model.embed_tokens"
    assert "and 1 more" in found[5][1]
    assert [key for key, _, _ in found][::5] == ["layers.'*.mpl.*'", "layers.'*.down_proj'"]


def test_one_number_for_ranks_stands_at_every_bond_or_is_what_the_modes_allow():
    layers = read(
        {
            "*.up_proj": TRAIN,
            "*.q_proj": TRAIN | {"method": "tucker", "ranks": 8},
            "*.k_proj": TRAIN | {"ranks": 5},
        }
    ).layers
    assert layers["*.up_proj"] == TensorTrain((64, 8), (16, 44, 1), (4, 8, 8))
    assert layers["*.q_proj"] == Tucker((8, 8, 4, 8, 8), (16, 44), (4, 8, 8))
    assert layers["*.k_proj"] == TensorTrain((5, 5), (16, 44, 1), (4, 8, 8))
    with pytest.raises(RecipeFileError, match="ranks"):
        read({"a": TRAIN | {"ranks": "many"}})


def test_the_seed_draws_the_cores_that_have_none_of_their_own():
    drawn = TRAIN | {"ranks": [4, 4], "init": "random"}
    entries = {"*.up_proj": drawn, "*.gate_proj": drawn | {"seed": 5}, "*.q_proj": TRAIN}
    seeds = [method.seed for method in read(entries, seed=3).layers.values()]
    assert seeds == [3, 5, 0]
    document = Document(PLACE, {"version": 1, "seed": 3, "layers": entries})
    recipe = read_recipe(document, seed=7)
    assert (recipe.seed, recipe.layers["*.up_proj"].seed) == (7, 7)


def test_budget_space_and_seed_are_read_and_their_errors_come_with_the_others(tmp_path):
    keep = {"*": {"method": "keep"}}
    recipe = read(keep, budget="25%", space="mine.yaml", seed=2)
    assert (recipe.budget, recipe.seed) == ("25%", 2)
    assert own_space(recipe) == str(PLACE.with_name("mine.yaml"))
    assert own_space(read(keep, space="quantize_only")) == "quantize_only"
    path = tmp_path / "r.yaml"
    path.write_text(
        "version: 1\nbudget: 4y\nseed: -1\nbugdet: 4x\nspace: 3\n"
        "layers:\n  '*': {method: tensor_train, init: randon, ranks: 4, out_modes: [8, 8], "
        "in_modes: [8, 8]}\n"
    )
    with pytest.raises(RecipeFileError) as caught:
        read_recipe(read_document(path))
    assert [(problem.line, problem.key, problem.nearest) for problem in caught.value.problems] == [
        (2, "budget", ""),
        (3, "seed", ""),
        (4, "bugdet", "budget"),
        (5, "space", ""),
        (7, "layers.*.init", "random"),
    ]
    assert "10x" in caught.value.problems[0].allowed


def test_penalties_of_globs_are_checked_against_the_layers_that_these_match():
    layers = {
        "*.mlp.*": {"method": "svd", "rank": 8},
        "*.q_proj": {"method": "quantize", "bits": 4},
    }
    kept = read(layers, penalty=[{"layers": "*.up_proj"}])
    assert len(check_recipe(kept, SPECS).plan) == 8
    assert problems(layers, penalty=[{"layers": "*.q_proj"}])[0][0] == "penalty[0].layers"
    # Under a budget ranks may come of it in any layer.
    check_recipe(read(layers, penalty=[{"layers": "*.k_proj"}], budget="4x"), SPECS)


def test_an_uneven_train_goes_through_a_file(tmp_path):
    path = tmp_path / "r.yaml"
    name = "model.layers.0.mlp.up_proj"
    path.write_text(
        "version: 1\nlayers:\n  "
        f"{name}: {{method: tensor_train, ranks: [4, 4, 4], out_modes: [8, 8, 11], "
        "in_modes: [4, 4, 4, 4]}\n"
    )
    plan = load_recipe(path)
    assert check_recipe(plan, SPECS) == check_recipe(read_recipe(read_document(path)), SPECS)
    assert check_recipe(plan, SPECS).plan == plan == Plan.from_recipe(plan.to_recipe())
    assert plan[name].out_modes == (8, 8, 11, 1)
