"""Recipes in QCompress's words are read where they map exactly, and answered in ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autocompress.methods.cp import Cp
from autocompress.methods.penalties import Penalty
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.document import Document, read_document
from autocompress.space.problems import RecipeFileError
from autocompress.space.recipe_file import check_recipe, read_recipe
from tests.llama_specs import llama_specs

MODES = {"out_modes": [22, 32], "in_modes": [16, 16]}
TARGETS = [
    {
        "path": "*.up_proj",
        "decomp": "TT",
        "ranks": 8,
        "init": "random",
        "penalty": "renyi",
        **MODES,
    },
    {"path": "*.gate_proj", "decomp": "tt", "ranks": [1, 6, 1], "init": "svd", **MODES},
    {"path": "model.layers.0.self_attn.q_proj", "decomp": "SVD", "ranks": [4], "penalty": None},
    {"path": "*.q_proj", "decomp": "Svd", "ranks": 5, "penalty": {"kind": "shannon", "weight": 1}},
    {"path": "*.k_proj", "decomp": "tucker", "ranks": [4, 4, 4, 4], "out_modes": [8, 16]}
    | {"in_modes": [16, 16]},
    {"path": "*.o_proj", "decomp": "cp", "ranks": 9, "out_modes": [16, 16], "in_modes": [16, 16]},
]


def read(targets, **more):
    return read_recipe(Document(Path("q.yaml"), {"targets": targets} | more))


def test_every_decomposition_is_read():
    recipe = read(TARGETS, seed=4)
    assert list(recipe.layers.values()) == [
        TensorTrain((8,), (22, 32), (16, 16), init="random", seed=4),
        TensorTrain((6,), (22, 32), (16, 16)),
        Svd(4),
        Svd(5),
        Tucker((4, 4, 4, 4), (8, 16), (16, 16)),
        Cp(9, (16, 16), (16, 16)),
    ]
    assert recipe.penalties == (Penalty("*.up_proj"), Penalty("*.q_proj", "shannon", weight=1.0))
    plan = check_recipe(recipe, llama_specs()).plan
    assert plan["model.layers.0.self_attn.q_proj"] == Svd(4)
    assert plan["model.layers.1.self_attn.q_proj"] == Svd(5)


def test_the_same_recipe_in_our_words_reads_as_the_same():
    recipe = read(TARGETS, seed=4, budget="4x")
    ours = read_recipe(Document(Path("ours.yaml"), yaml.safe_load(recipe.to_yaml())))
    assert ours == recipe
    assert list(ours.layers) == list(recipe.layers)


def test_what_does_not_map_is_listed_and_the_rest_is_answered_in_our_words(tmp_path):
    path = tmp_path / "q.yaml"
    path.write_text(
        "targets:\n"
        "  - {path: a, decomp: TTT, ranks: 4}\n"
        "  - {path: b, decomp: SVD, ranks: 4, in_modes: [4, 4]}\n"
        "  - {path: c, decomp: TT, ranks: 4, in_modes: [4, 4]}\n"
        "  - {path: d, decomp: SVD, ranks: [4, 4], init: random}\n"
        "  - {path: e, decomp: SVD, rank: 4}\n"
        "  - {path: f, decomp: SVD, ranks: 4, penalty: {order: 2}}\n"
        "  - {path: '*.mlp.*', decomp: SVD, ranks: 4}\n"
        "  - {path: '*.mlp.*', decomp: SVD, ranks: 4}\n"
    )
    with pytest.raises(RecipeFileError) as caught:
        read_recipe(read_document(path))
    found = [(problem.line, problem.key, problem.nearest) for problem in caught.value.problems]
    assert found == [
        (2, "targets[0].decomp", "TT"),
        (3, "targets[1].in_modes", ""),
        (4, "targets[2].out_modes", ""),
        (5, "targets[3].init", ""),
        (5, "targets[3].ranks", ""),
        (6, "targets[4].ranks", ""),
        (6, "targets[4].rank", "ranks"),
        (7, "targets[5].penalty.order", ""),
        (9, "targets[7].path", ""),
    ]
    ours = yaml.safe_load(str(caught.value).partition("words of a recipe:\n")[2])
    assert ours["layers"] == {"*.mlp.*": Svd(4).to_dict()}


def test_a_target_that_matches_nothing_is_an_error_at_its_place():
    with pytest.raises(RecipeFileError) as caught:
        check_recipe(read([{"path": "*.mpl.*", "decomp": "SVD", "ranks": 4}]), llama_specs())
    (problem,) = caught.value.problems
    assert (problem.key, problem.nearest) == ("targets[0].path", "*.mlp.*")


@pytest.mark.parametrize(
    ("more", "key"),
    [({"layers": {"a": {"method": "keep"}}}, "targets"), ({"optimiser": "adam"}, "optimiser")],
)
def test_a_file_in_both_words_or_with_more_is_refused(more, key):
    with pytest.raises(RecipeFileError) as caught:
        read(TARGETS[:1], **more)
    assert caught.value.problems[0].key == key
