from pathlib import Path

import pytest

from autocompress.errors import ConfigurationError
from autocompress.methods.folding import Modes
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.registry import METHODS
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.methods.tucker import Tucker
from autocompress.records import Role
from autocompress.requests.groups import SPACE_HELP
from autocompress.space.family import Family
from autocompress.space.problems import SpaceFileError
from autocompress.space.space import Group, Match, Rule
from autocompress.space.space_file import load_space, space_names
from autocompress.space.space_schema import METHOD_NAMES
from tests.llama_specs import llama_specs

SPECS = llama_specs()
MINIMAL = "version: 1\nname: mine\nmethods:\n  quantize: {bits: [4], group_sizes: [64]}\n"


@pytest.fixture
def load(tmp_path):
    def load_text(text: str):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return load_space(str(path))

    return load_text


def problems_of(load, text: str) -> dict[str, tuple[int, str, str]]:
    with pytest.raises(SpaceFileError) as caught:
        load(text)
    assert caught.value.exit_code == 2
    return {
        problem.key: (problem.line, problem.got, problem.nearest)
        for problem in caught.value.problems
    }


def test_the_package_brings_spaces_that_suit_a_llama_and_the_help_names_them():
    for name in space_names():
        assert name in SPACE_HELP
        space = load_space(name)
        assert space.name == name
        assert space.description
        space.check(SPECS)


def test_default_menu_is_rich_but_not_endless():
    space = load_space()
    for spec in SPECS:
        assert 30 <= len(space.options(spec)) <= 50
        assert {type(method) for method in space.options(spec)} == set(METHODS.values())


def test_presets_keep_their_word():
    only = {
        name: {m.name for s in SPECS for m in load_space(name).options(s)} for name in space_names()
    }
    assert only["quantize_only"] == {"keep", "quantize", "trellis"}
    assert "quantize" not in only["low_rank_only"]
    for spec, options in zip(
        SPECS, map(load_space("feed_forward_only").options, SPECS), strict=True
    ):
        assert (options == (Keep(),)) == (spec.role.part != "mlp")
    trains = load_space("tensor_train_gentle")
    for spec in SPECS:
        options = [method for method in trains.options(spec) if method != Keep()]
        if spec.role.part == "mlp":
            assert {method.name for method in options} == {"tensor_train"}
        elif spec.role.part == "attention":
            assert {method.name for method in options} == {"tensor_train", "quantize"}
            assert all(method.bits_per_element in (None, 8) for method in options)
            assert all((method.rank_share(spec) or 1) >= 0.5 for method in options)
    gentle = load_space("attention_conservative")
    attention = {m for spec in SPECS if spec.role.part == "attention" for m in gentle.options(spec)}
    assert {m.bits for m in attention if isinstance(m, Quantize | Trellis)} == {8, 4}
    assert {type(m) for m in attention} == {Keep, Quantize, Trellis}


def test_every_method_can_be_named():
    assert set(METHOD_NAMES) == set(METHODS)


def test_every_key_arrives(load):
    space = load(
        """
version: 1
name: mine
description: All of it
methods:
  keep: false
  quantize: {bits: [8, 3], group_sizes: [64, row], symmetric: [true, false]}
  svd: {metrics: [plain, input], ranks: [4], rank_fractions: [0.5, 1e-1], bits: [none, 4]}
  tensor_train: {orders: [2], modes: [{rows: [16, 16], columns: [8, 32]}], ranks: [8]}
  tucker: {orders: [3], rank_fractions: [0.5], bits: [8]}
rules:
  - match: "*.q_proj"
    methods: [keep, svd]
    min_bits: 4
    min_rank_fraction: 0.25
    max_ratio: 8
  - match: {names: ["*.0.*"], roles: [key, value], parts: [attention], depths: [0, 1]}
    keep: true
    optional: true
  - match: {roles: [down]}
    pin: {method: svd, rank: 8, bits: none}
groups:
  - roles: [gate, up]
  - names: ["*.k_proj"]
"""
    )
    assert space.families == (
        Family.of(Quantize, bits=(8, 3), group_sizes=(64, 0), symmetric=(True, False)),
        Family.of(
            Svd, ranks=(4,), rank_fractions=(0.5, 0.1), metrics=("plain", "input"), bits=(0, 4)
        ),
        Family.of(TensorTrain, ranks=(8,), orders=(2,), modes=(Modes((16, 16), (8, 32)),)),
        Family.of(Tucker, rank_fractions=(0.5,), orders=(3,), bits=(8,)),
    )
    assert not space.keep
    match = Match(("*.0.*",), (Role.KEY, Role.VALUE), ("attention",), (0, 1))
    assert space.rules == (
        Rule(Match(names=("*.q_proj",)), ("keep", "svd"), 4, 0.25, 8.0),
        Rule(match, ("keep",), optional=True),
        Rule(Match(roles=(Role.DOWN,)), pin=Svd(8)),
    )
    assert [rule.line for rule in space.rules] == [12, 17, 20]
    assert space.groups == (Group(roles=(Role.GATE, Role.UP)), Group(names=("*.k_proj",)))


def test_all_errors_at_once_with_line_and_nearest_name(load):
    problems = problems_of(
        load,
        """version: 2
nam: mine
methods:
  quantise: {bits: [4]}
  quantize:
    bits: [4, 5, true, "8", 8.0]
    bits: [4]
    group_sizes: [64, rows, 0]
  svd: {ranks: [1.0], rank_fractions: [1, .nan, 1.5], bits: [16]}
rules:
  - match: {role: [query], parts: [atention]}
    max_ratio: .inf
  - match: "*"
  - match: "*"
    pin: {method: svd, rank: 4, bits: 3}
""",
    )
    assert problems["version"] == (1, "2", "")
    assert problems["nam"] == (2, "an unknown key", "name")
    assert problems["name"] == (1, "nothing", "")
    assert problems["methods.quantise"] == (4, "an unknown key", "quantize")
    assert {f"methods.quantize.bits[{i}]" for i in (1, 2, 3, 4)} <= set(problems)
    assert problems["methods.quantize.bits"] == (7, "the same key again", "")
    assert problems["methods.quantize.group_sizes[1]"][:2] == (8, "'rows'")
    assert problems["methods.quantize.group_sizes[2]"][:2] == (8, "0")
    assert problems["methods.svd.ranks[0]"][:2] == (9, "1.0")
    assert {f"methods.svd.rank_fractions[{i}]" for i in range(3)} <= set(problems)
    assert problems["rules[0].match.role"] == (11, "an unknown key", "roles")
    assert problems["rules[0].match.parts[0]"] == (11, "'atention'", "attention")
    assert problems["rules[0].max_ratio"][:2] == (12, "inf")
    assert problems["rules[1]"][0] == 13
    assert problems["rules[2].pin.bits"][:2] == (15, "3")


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("rules: [{match: '*', keep: true, min_bits: 4}]", "rules[0]"),
        ("rules: [{match: '*', methods: [svd]}]", ""),
        ("rules: [{match: {}, min_bits: 4}]", "rules[0].match"),
        ("rules: [{match: '*', pin: {method: quantise}}]", "rules[0].pin.method"),
        ("rules: [{match: '*', pin: {method: quantize, bit: 4}}]", "rules[0].pin.bit"),
        ("rules: [{match: '*', keep: false}]", "rules[0].keep"),
        ("groups: [{roles: [gate]}]", "groups[0].roles"),
        ("groups: [{roles: [gate, up], names: [x]}]", "groups[0]"),
        ("groups: query", "groups"),
        ("rules: {a: 1}", "rules"),
    ],
)
def test_contradictions_are_problems(load, addition, key):
    assert key in problems_of(load, f"{MINIMAL}{addition}\n")


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "version: 1\n"])
def test_files_that_are_no_space(load, text):
    assert problems_of(load, text)


def test_ranks_or_fractions_and_orders_or_modes_are_needed(load):
    methods = "methods: {svd: {bits: [8]}, tucker: {ranks: [4]}}"
    problems = problems_of(load, f"version: 1\nname: x\n{methods}\n")
    assert {"methods.svd", "methods.tucker"} <= set(problems)


def test_unknown_names_and_files():
    with pytest.raises(ConfigurationError, match="Did you mean quantize_only"):
        load_space("quantise_only")
    with pytest.raises(ConfigurationError, match="there is no file"):
        load_space("nowhere/space.yaml")


def test_default_file_teaches_keys_that_exist(load):
    """The commented examples of the default space are valid once uncommented."""
    text = Path(__file__).parents[2].joinpath("search_spaces/default.yaml").read_text()
    body, _, examples = text.partition("# rules:\n")
    uncommented = "".join(
        line.removeprefix("#").removeprefix(" ") for line in examples.splitlines(keepends=True)
    )
    uncommented = uncommented.replace("Matrices that take", "# ")
    space = load(f"{body}rules:\n{uncommented}")
    assert len(space.rules) == 4
    assert len(space.groups) == 2
