"""A space narrowed to some methods and some matrices; what it says of names that miss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.reach import check_reachable, smallest_model_bytes
from autocompress.errors import BudgetUnreachable, ConfigurationError
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import Role
from autocompress.space.selection import Selection
from autocompress.space.space import Group, Match, Rule
from autocompress.space.space_file import load_space
from tests.driver.test_uniform_baselines import inventory_of
from tests.llama_specs import llama_specs

SPECS = llama_specs()
MLP = [spec.name for spec in SPECS if spec.role.part == "mlp"]


def options_of(space, specs=SPECS):
    return {spec.name: space.options(spec) for spec in specs}


@pytest.mark.parametrize(
    "words", ["svd,tucker", ["svd", "tucker"], ["svd, tucker"], ("svd", "tucker,svd")]
)
def test_names_come_with_commas_or_one_by_one(words):
    assert Selection.of(words, words, words) == Selection(*[("svd", "tucker")] * 3)
    assert Selection.of() == Selection()


def test_only_the_named_methods_are_options():
    space = load_space().narrowed(Selection.of("svd,tucker"))
    for options in options_of(space).values():
        assert {method.name for method in options} == {"keep", "svd", "tucker"}
    labels = [label for label, _ in baseline_plans(SPECS, 0.1, methods=("svd", "tucker"))]
    assert labels == ["uniform SVD, 10% of the parameters"]


@pytest.mark.parametrize(
    "selection",
    [
        Selection.of(layers="*.mlp.*"),
        Selection.of(keep=["*.self_attn.*", "lm_head"]),  # the head is tied to the embedding
        Selection.of(layers=["*.mlp.*", "*.q_proj"], keep="*attn*"),
    ],
)
def test_other_matrices_stay_as_they_are(selection):
    space = replace(load_space(), keep=False).narrowed(selection)
    for name, options in options_of(space).items():
        assert (options == (Keep(),)) == (name not in MLP)
    space.check(SPECS)


def test_selected_matrices_keep_their_rules_and_groups():
    rules = (Rule(Match(roles=(Role.DOWN,)), pin=Svd(8)), Rule(Match(("*mlp*",)), min_bits=8))
    groups = (Group(roles=(Role.GATE, Role.UP)), Group(roles=(Role.QUERY, Role.KEY)))
    whole = replace(load_space(), rules=rules, groups=groups)
    space = whole.narrowed(Selection.of(["svd", "quantize"], "*.mlp.*", "*.0.mlp.gate_proj"))
    options = options_of(space)
    assert options["model.layers.0.mlp.down_proj"] == (Svd(8),)
    assert options["model.layers.0.mlp.gate_proj"] == (Keep(),)
    codes = [m for m in options["model.layers.0.mlp.up_proj"] if isinstance(m, Quantize)]
    assert {method.bits for method in codes} == {8}
    (tied,) = space.grouped(SPECS)  # the other blocks' pairs are no pairs any more
    assert [spec.name for spec in tied] == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up")]
    space.check(SPECS)
    with pytest.raises(ConfigurationError, match="--methods leaves out what a rule pins: got svd"):
        whole.narrowed(Selection.of("quantize"))


def test_a_budget_that_the_rest_does_not_leave_room_for_says_so():
    space, inventory = load_space().narrowed(Selection.of(layers="*.mlp.*")), inventory_of(SPECS)
    least = smallest_model_bytes(space, inventory)
    left = sum(Keep().cost(spec) for spec in SPECS if spec.name not in MLP)
    assert least > left
    check_reachable(space, inventory, least)
    with pytest.raises(BudgetUnreachable, match="or more with --layers"):
        check_reachable(space, inventory, least - 1)


def test_baseline_plans_keep_what_stays():
    kept = [spec.name for spec in SPECS if spec.name not in MLP]
    for _, plan in baseline_plans(SPECS, 0.25, kept=kept):
        assert [name for name, method in plan.items() if method == Keep()] == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"methods": "sdv"}, r"--methods names an unknown method: got 'sdv'.*Did you mean svd\?"),
        ({"methods": "keep"}, "leaves nothing to compress with"),
        ({"methods": "cp"}, "'quantize_only' does not offer a method of --methods: got cp"),
        ({"layers": ""}, "--layers names nothing"),
        ({"keep": [" , "]}, "--keep names nothing"),
        ({"layers": "*.mpl.*"}, r"--layers matches none of the 15 matrices: .*\*\.mlp\.\*"),
        ({"layers": "*", "keep": "*.q_porj"}, r"--keep matches none .*\*\.q_proj"),
        ({"layers": "*.mlp.*", "keep": "*.mlp.*"}, "nothing is left to compress"),
    ],
)
def test_what_misses_is_an_error_that_names_what_is_near(words, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_space("quantize_only").narrowed(Selection.of(**words)).check(SPECS)
    assert caught.value.exit_code == 2
