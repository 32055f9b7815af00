"""Whatever a file holds, reading it gives an object or one error that lists what is wrong."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import AutocompressError
from autocompress.space.document import read_document
from autocompress.space.problems import FileError
from autocompress.space.recipe_file import check_recipe, read_recipe
from autocompress.space.space_file import option_problems, read_space, unmatched_rules
from tests.llama_specs import llama_specs

SPECS = llama_specs(1)
WORDS = (
    "version",
    "name",
    "methods",
    "rules",
    "groups",
    "layers",
    "quantize",
    "svd",
    "tensor_train",
    "tucker",
    "keep",
)
SETTINGS = (
    "bits",
    "group_sizes",
    "group_size",
    "ranks",
    "rank",
    "rank_fractions",
    "orders",
    "modes",
    "match",
    "roles",
)
MORE = (
    "names",
    "pin",
    "out_modes",
    "in_modes",
    "rows",
    "columns",
    "symmetric",
    "metric",
    "min_bits",
    "*",
)
words = st.sampled_from(WORDS + SETTINGS + MORE) | st.text(max_size=3)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats()
    | words
    | st.just("row")
    | st.just("none")
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)
numbers = st.lists(
    st.sampled_from([1, 2, 3, 4, 8, 16, 64, 0.25, "row", "none"]), min_size=1, max_size=3
)
families = st.dictionaries(
    st.sampled_from(["bits", "group_sizes", "ranks", "rank_fractions", "orders"]), numbers
)
methods = st.fixed_dictionaries(
    {}, optional={"keep": st.booleans()} | dict.fromkeys(WORDS[6:10], families | values)
)
entries = st.fixed_dictionaries(
    {"method": st.sampled_from(WORDS[6:]) | values}, optional=dict.fromkeys(SETTINGS + MORE, values)
)
rules = st.lists(
    st.fixed_dictionaries({"match": st.just("*")}, optional={"pin": entries, "min_bits": values}),
    max_size=2,
)
spaces = st.fixed_dictionaries(
    {"version": st.just(1), "name": st.just("x"), "methods": methods}, optional={"rules": rules}
)
recipes = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "layers": st.dictionaries(st.sampled_from([s.name for s in SPECS]) | words, entries),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


def assert_listed(error: FileError) -> None:
    assert error.problems
    assert all(problem.line >= 1 and problem.allowed for problem in error.problems)


def read(content, folder):
    path = folder / "file.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return read_document(path)


@settings(max_examples=60, deadline=None)
@given(content=spaces | values)
def test_spaces(content, folder):
    document = read(content, folder)
    try:
        space = read_space(document)
    except FileError as error:
        assert_listed(error)
        return
    unmatched_rules(space, SPECS)
    option_problems(space, SPECS, document)
    space.notices(SPECS)


@settings(max_examples=60, deadline=None)
@given(content=recipes | values)
def test_recipes(content, folder):
    document = read(content, folder)
    try:
        recipe = read_recipe(document)
    except FileError as error:
        assert_listed(error)
        return
    with contextlib.suppress(AutocompressError):
        check_recipe(recipe, SPECS)
