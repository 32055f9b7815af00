import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import ConfigurationError, MethodError
from autocompress.methods.folding import Modes
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.tensors.shapes import aligned_rank
from autocompress.records import Kind, LayerSpec, Role
from autocompress.space.family import Family
from autocompress.space.space import Group, Match, Rule, Space
from tests.llama_specs import llama_specs

SPECS = llama_specs()
BY_NAME = {spec.name: spec for spec in SPECS}
QUERY, DOWN = BY_NAME["model.layers.0.self_attn.q_proj"], BY_NAME["model.layers.0.mlp.down_proj"]
QUANTIZE = Family.of(Quantize, bits=(8, 4, 3, 2), group_sizes=(64, 128, 0))
SVD = Family.of(Svd, rank_fractions=(0.1, 0.5, 1.0), bits=(0, 8))
TRAIN = Family.of(TensorTrain, rank_fractions=(0.1, 0.5), orders=(2, 3))
TUCKER = Family.of(Tucker, rank_fractions=(0.5,), orders=(2,))
ALL = (QUANTIZE, SVD, TRAIN, TUCKER)


def linear(rows: int, columns: int, dtype: str = "float32", bias: bool = False) -> LayerSpec:
    return LayerSpec("layer", Role.OTHER, Kind.LINEAR, rows, columns, dtype=dtype, bias=bias)


sizes = st.integers(4, 300)


@given(
    rows=sizes, columns=sizes, dtype=st.sampled_from(["float32", "bfloat16"]), bias=st.booleans()
)
def test_options_fit_are_distinct_and_smaller_than_keeping(rows, columns, dtype, bias):
    spec = linear(rows, columns, dtype, bias)
    options = Space("all", ALL).options(spec)
    costs = [method.cost(spec) for method in options]
    assert options[0] == Keep()
    assert len(set(options)) == len(options)
    assert costs == sorted(costs, reverse=True)
    assert all(cost < costs[0] for cost in costs[1:])
    for method in options:
        method.check(spec)


@given(st.floats(0.001, 10_000))
def test_aligned_rank_is_the_largest_multiple_of_eight_below(rank):
    aligned = aligned_rank(rank)
    assert 1 <= aligned <= max(rank + 1e-9, 1)
    assert aligned == 1 or rank - aligned < 8
    if rank >= 8:
        assert aligned % 8 == 0


def test_group_sizes_that_do_not_divide_are_left_out():
    sizes = {
        method.group_size
        for method in Space("q", (QUANTIZE,)).options(DOWN)
        if isinstance(method, Quantize)
    }
    assert sizes == {64, 0}  # 704 = 11 * 64


def test_a_group_as_long_as_the_row_is_the_row():
    options = Space("q", (Family.of(Quantize, bits=(4,), group_sizes=(256, 0)),)).options(QUERY)
    assert options == (Keep(), Quantize(4, 0))


def test_whole_ranks_are_taken_as_written_and_fractions_are_of_the_smaller_side():
    options = Space("s", (Family.of(Svd, ranks=(13,), rank_fractions=(0.29,)),)).options(
        linear(100, 200)
    )
    assert options == (Keep(), Svd(24), Svd(13))


def test_every_family_contributes():
    kinds = {type(method) for method in Space("all", ALL).options(QUERY)}
    assert kinds == {Keep, Quantize, Svd, TensorTrain, Tucker}


def test_keep_can_be_left_out():
    assert Keep() not in Space("q", (QUANTIZE,), keep=False).options(QUERY)


def test_first_matching_rule_decides_alone():
    rules = (
        Rule(Match(names=("*.layers.0.*",)), min_bits=8),
        Rule(Match(parts=("attention",)), methods=("svd",)),
    )
    space = Space("rules", ALL, rules=rules)
    assert {
        type(method) for method in space.options(BY_NAME["model.layers.1.self_attn.q_proj"])
    } == {Svd}
    first = space.options(QUERY)
    assert {method.bits for method in first if isinstance(method, Quantize)} == {8}
    assert Keep() in first


@pytest.mark.parametrize(
    "match",
    [
        Match(names=("model.embed*",)),
        Match(names=("lm_head",)),
        Match(roles=(Role.EMBEDDING,)),
        Match(parts=("embedding",)),
    ],
)
def test_match_finds_the_tied_embedding(match):
    assert [spec.name for spec in SPECS if match.matches(spec)] == ["model.embed_tokens"]


def test_all_selectors_of_a_match_must_hold():
    match = Match(roles=(Role.QUERY, Role.KEY), depths=(1,))
    assert [spec.name[-6:] for spec in SPECS if match.matches(spec)] == ["q_proj", "k_proj"]


@given(floor=st.floats(0.01, 1.0))
def test_floors_hold(floor):
    rule = Rule(Match(), min_rank_fraction=floor, min_bits=4, max_ratio=6.0)
    for method in Space("floors", ALL, rules=(rule,)).options(QUERY):
        fraction = method.rank_share(QUERY)
        assert fraction is None or fraction >= floor
        assert getattr(method, "bits", 0) in (0, 4, 8)
        assert Keep().cost(QUERY) <= 6.0 * method.cost(QUERY)


def test_pinned_method_is_the_only_option():
    space = Space("pin", ALL, rules=(Rule(Match(roles=(Role.DOWN,)), pin=Quantize(4, 64)),))
    assert space.options(DOWN) == (Quantize(4, 64),)


def test_pinned_method_that_does_not_fit_names_the_layer():
    space = Space("pin", ALL, rules=(Rule(Match(roles=(Role.DOWN,)), pin=Quantize(4, 128)),))
    with pytest.raises(
        MethodError, match=r"layers\.0\.mlp\.down_proj .*pinned to quantize 4 bit g128"
    ):
        space.options(DOWN)


def test_no_setting_that_fits_is_an_error_even_where_keeping_is_allowed():
    with pytest.raises(
        ConfigurationError, match=r"down_proj.*no setting of quantize fits its shape"
    ):
        Space("q", (Family.of(Quantize, bits=(4,), group_sizes=(128,)),)).options(DOWN)


def test_nothing_allowed_is_an_error():
    space = Space(
        "q",
        (Family.of(Quantize, bits=(2,), group_sizes=(64,)),),
        keep=False,
        rules=(Rule(Match(), min_bits=4),),
    )
    with pytest.raises(ConfigurationError, match="none is allowed by its rule"):
        space.options(DOWN)


def test_left_out_layers_are_kept():
    space = Space(
        "q", (QUANTIZE,), keep=False, rules=(Rule(Match(parts=("embedding",)), methods=("keep",)),)
    )
    assert space.options(SPECS[0]) == (Keep(),)


def test_unmatched_rules_name_what_is_near():
    rules = (
        Rule(Match(names=("*.q_porj",)), min_bits=4, line=7),
        Rule(Match(roles=(Role.QKV,)), min_bits=4, optional=True),
        Rule(Match(roles=(Role.HEAD,)), min_bits=4),
    )
    space = Space("typo", (QUANTIZE,), rules=rules)
    first, second = space.unmatched_rules(SPECS)
    assert first.rule is rules[0]
    assert any("q_proj" in name for name in first.nearest)
    assert "embedding" in second.nearest
    with pytest.raises(
        ConfigurationError, match=r"line 7: a rule matches no layer: got names \*\.q_porj"
    ):
        space.check(SPECS)


def test_groups_tie_by_role_within_a_block_and_by_name_over_the_model():
    groups = (Group(roles=(Role.GATE, Role.UP)), Group(names=("*.q_proj", "*.k_proj")))
    tied = Space("tied", (QUANTIZE,), groups=groups).grouped(SPECS)
    assert [[spec.name.split("layers.")[1] for spec in members] for members in tied] == [
        ["0.mlp.gate_proj", "0.mlp.up_proj"],
        ["1.mlp.gate_proj", "1.mlp.up_proj"],
        ["0.self_attn.q_proj", "0.self_attn.k_proj", "1.self_attn.q_proj", "1.self_attn.k_proj"],
    ]


def test_a_layer_in_two_groups_is_an_error():
    groups = (Group(roles=(Role.GATE, Role.UP)), Group(roles=(Role.GATE, Role.DOWN)))
    with pytest.raises(ConfigurationError, match="gate_proj is in two groups"):
        Space("tied", (QUANTIZE,), groups=groups).check(SPECS)


def test_shared_options_are_the_intersection():
    space = Space("tied", (QUANTIZE, SVD))
    members = (QUERY, DOWN)
    shared = space.shared_options(members)
    assert set(shared) == set(space.options(QUERY)) & set(space.options(DOWN))
    pinned = Rule(Match(roles=(Role.DOWN,)), pin=Quantize(4, 32))
    with pytest.raises(ConfigurationError, match="shares no option"):
        Space("tied", (QUANTIZE,), rules=(pinned,)).shared_options(members)


def test_modes_that_miss_a_matrix_are_corrected_with_a_notice():
    family = Family.of(TensorTrain, ranks=(8,), modes=(Modes((16, 16), (26, 27)),))
    space = Space("modes", (family,))
    trains = [method for method in space.options(DOWN) if isinstance(method, TensorTrain)]
    assert [train.out_modes for train in trains] == [(16, 16)]
    assert math.prod(trains[0].in_modes) >= 704
    (notice,) = space.notices((DOWN,))
    assert "modes 16x16 by 26x27 do not fit" in notice
    assert space.notices((linear(256, 702),)) == ()


def test_ranks_of_a_train_never_exceed_its_bonds():
    family = Family.of(TensorTrain, ranks=(10_000,), orders=(2, 3))
    for train in itertools.islice(family.candidates(QUERY), 10):
        assert isinstance(train, TensorTrain)
        train.check(QUERY)
        assert train.rank_share(QUERY) == 1.0


def test_held_matrices_take_their_method_whatever_the_rules_say():
    group = Group(roles=(Role.KEY, Role.VALUE))
    key = BY_NAME["model.layers.0.self_attn.k_proj"]
    by_role = Rule(Match(roles=(Role.QUERY,)), pin=Quantize(2, 0))
    by_name = Rule(Match(names=(DOWN.name,)), pin=Quantize(2, 0))
    held = dict.fromkeys((QUERY.name, key.name, DOWN.name), Keep())
    space = Space("held", (QUANTIZE,), rules=(by_name, by_role), groups=(group,)).holding(held)
    assert space.options(QUERY) == (Keep(),)
    assert space.holds(QUERY)
    assert space.options(DOWN) == (Quantize(2, 0),)  # somebody has asked for this very one
    assert not space.holds(DOWN)
    tied = [spec.name for members in space.grouped(SPECS) for spec in members]
    assert key.name not in tied
    assert "model.layers.1.self_attn.k_proj" in tied
    assert repr(space) == repr(space.holding({}))  # what studies are told apart by
