import pytest
import yaml

from autocompress.errors import ConfigurationError
from autocompress.methods.penalties import Penalty, chosen_penalties
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.space.document import read_document
from autocompress.space.problems import RecipeFileError
from autocompress.space.recipe_file import load_recipe, read_recipe, save_recipe

LAYERS = """version: 1
layers:
  model.layers.0.mlp.up_proj: {method: svd, rank: 8}
  model.layers.0.self_attn.q_proj: {method: svd, rank: 8}
  model.layers.0.self_attn.k_proj: {method: quantize, bits: 4}
"""
PLAN = Plan.of(
    {
        "model.layers.0.mlp.up_proj": Svd(8),
        "model.layers.0.self_attn.q_proj": Svd(8),
        "model.layers.0.self_attn.k_proj": Quantize(4),
    }
)


def written(tmp_path, penalty):
    path = tmp_path / "recipe.yaml"
    path.write_text(LAYERS + penalty)
    return read_document(path)


def problems_of(tmp_path, penalty):
    with pytest.raises(RecipeFileError) as caught:
        read_recipe(written(tmp_path, penalty))
    return [(p.line, p.key, p.allowed, p.nearest) for p in caught.value.problems]


def test_entries_stand_beside_the_plan_and_change_neither_it_nor_its_hash(tmp_path):
    recipe = read_recipe(
        written(
            tmp_path,
            'penalty:\n  - {layers: "*.mlp.*", kind: renyi, alpha: 0.25, weight: 1e-3}\n'
            "  - {kind: shannon, weight: 1}\n",
        )
    )
    assert recipe.penalties == (
        Penalty("*.mlp.*", "renyi", 0.25, 0.001),
        Penalty("*", "shannon", None, 1.0),
    )
    assert recipe.plan == PLAN
    assert recipe.plan.hash == PLAN.hash
    assert read_recipe(written(tmp_path, "")).penalties == ()


def test_round_trip_through_a_file(tmp_path):
    penalties = Penalty("*.mlp.*", "renyi", 2.0, 0.5), Penalty("*", "shannon")
    path = tmp_path / "recipe.yaml"
    save_recipe(PLAN, path, penalties=penalties)
    assert read_recipe(read_document(path)).penalties == penalties
    assert load_recipe(path) == PLAN
    assert "alpha" not in yaml.safe_load(path.read_text())["penalty"][1]


def test_all_errors_at_once_with_line_key_and_nearest_name(tmp_path):
    found = problems_of(
        tmp_path,
        "penalty:\n"
        "  - {layer: '*'}\n"
        "  - {kind: reniy}\n"
        "  - {alpha: 0}\n"
        "  - {weight: -1}\n"
        "  - {weight: much}\n"
        "  - 3\n",
    )
    assert [(line, key, nearest) for line, key, _, nearest in found] == [
        (7, "penalty[0].layer", "layers"),
        (8, "penalty[1].kind", "renyi"),
        (9, "penalty[2].alpha", ""),
        (10, "penalty[3].weight", ""),
        (11, "penalty[4].weight", ""),
        (12, "penalty[5]", ""),
    ]


@pytest.mark.parametrize(
    ("entry", "key", "allowed"),
    [
        ("{kind: shannon, alpha: 0.5}", "alpha", "no order for kind shannon"),
        ("{layers: model.layers.0.mlp.up_porj}", "layers", "one of the 2 factorised layers"),
        ("{layers: '*.k_proj'}", "layers", "one of the 2 factorised layers"),
    ],
)
def test_an_entry_that_cannot_hold_is_told_why(tmp_path, entry, key, allowed):
    ((line, at, wanted, nearest),) = problems_of(tmp_path, f"penalty:\n  - {entry}\n")
    assert (line, at) == (7, f"penalty[0].{key}")
    assert wanted.startswith(allowed)
    assert ("porj" in entry) == (nearest == "model.layers.0.mlp.up_proj")


def test_an_entry_behind_one_that_matches_everything_is_an_error(tmp_path):
    ((_, at, wanted, _),) = problems_of(
        tmp_path, "penalty:\n  - {layers: '*'}\n  - {layers: '*.mlp.*'}\n"
    )
    assert at == "penalty[1].layers"
    assert "no entry before it matches" in wanted


def test_a_list_is_wanted(tmp_path):
    ((_, at, wanted, _),) = problems_of(tmp_path, "penalty: {layers: '*'}\n")
    assert (at, wanted) == ("penalty", "a list, such as [a, b]")


def test_the_first_match_holds():
    gentle, strong = Penalty("*.mlp.*", weight=0.1), Penalty("*", weight=0.2)
    assert chosen_penalties((gentle, strong), ["a.mlp.b", "a.c"]) == {
        "a.mlp.b": gentle,
        "a.c": strong,
    }
    with pytest.raises(ConfigurationError, match="penalty 2, layers"):
        chosen_penalties((strong, gentle), ["a.mlp.b", "a.c"])
    with pytest.raises(ConfigurationError, match="the plan has none"):
        chosen_penalties((strong,), [])


@pytest.mark.parametrize(
    "settings",
    [{"kind": "tsallis"}, {"kind": "shannon", "alpha": 1.0}, {"alpha": -1.0}, {"weight": 0.0}],
)
def test_a_penalty_refuses_settings_that_mean_nothing(settings):
    with pytest.raises(ConfigurationError, match="penalty, "):
        Penalty(**settings)
