import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import ConfigurationError
from autocompress.space.document import read_document
from autocompress.space.problems import FileError, key_path


@pytest.fixture
def write(tmp_path):
    def write_text(text: str) -> Path:
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return path

    return write_text


# Texts such as 1e100 aside, which PyYAML writes without quotes and every person reads as numbers.
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=12).filter(
    lambda text: not re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", text)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(data=st.dictionaries(texts, values, min_size=1))
def test_reads_what_yaml_wrote(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "file.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    document = read_document(path)
    assert document.problems == []
    assert document.data == data


def test_lines_of_keys_and_items(write):
    document = read_document(write("# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n"))
    assert document.line(("a", "b")) == 3
    assert document.line(("a", "c", 1, "d")) == 6
    assert document.line(("a", "c", 1, "missing", 3)) == 6


def test_repeated_keys_are_problems(write):
    document = read_document(write("a: 1\nb: 2\na: 3\n"))
    (problem,) = document.problems
    assert (problem.line, problem.key, problem.allowed) == (3, "a", "once; the first is in line 1")


@pytest.mark.parametrize(
    "text", ["8: a\n", "yes: a\n", "[1, 2]: a\n", "a: !!python/object:os.system x\n", "a: !x y\n"]
)
def test_keys_and_values_that_are_not_plain_are_problems(write, text):
    assert len(read_document(write(text)).problems) == 1


def test_exponents_without_a_point_are_numbers(write):
    assert read_document(write("a: 1e-2\nb: '1e-2'\n")).data == {"a": 0.01, "b": "1e-2"}


def test_exponential_aliases_are_refused(write):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 7)]
    assert "too many values" in str(read_document(write("\n".join(levels))).problems[0])


def test_recursive_alias_is_refused(write):
    assert read_document(write("a: &a [*a]\n")).problems


@pytest.mark.parametrize(
    "text", ["a: [1\n", "a: b: c\n", "\tx: 1\n", "a: 1\n---\nb: 2\n", "a: \x07\n"]
)
def test_broken_yaml_has_its_line(write, text):
    with pytest.raises(FileError, match=r"has 1 error:\s+line \d"):
        read_document(write(text))


def test_missing_file_names_the_nearest(write):
    path = write("a: 1\n")
    with pytest.raises(
        ConfigurationError, match=r"there is no file .*fil\.yaml.*Did you mean .*file\.yaml"
    ):
        read_document(path.with_name("fil.yaml"))


def test_folders_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_document(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigurationError, match="not text"):
        read_document(tmp_path / "x.yaml")


def test_key_path():
    assert key_path(("rules", 2, "match", "names")) == "rules[2].match.names"
    assert key_path(("layers", "model.q")) == "layers.'model.q'"
