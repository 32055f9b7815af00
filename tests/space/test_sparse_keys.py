"""Sparse entries of a search space file become the options they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.methods.sparse import Sparse
from autocompress.space.family import Family
from autocompress.space.problems import SpaceFileError
from autocompress.space.space import Space
from autocompress.space.space_file import load_space
from tests.methods.matrices import spec_of


def space_of(folder: Path, entry: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(f"version: 1\nname: mine\nmethods:\n  sparse: {entry}\n")
    return load_space(str(path))


def test_density_varies_only_where_there_is_no_pattern(tmp_path: Path) -> None:
    entry = '{patterns: ["2:4", unstructured], densities: [0.5, 0.3], bits: [none, 4]}'
    (family,) = space_of(tmp_path, entry).families
    assert family == Family.of(
        Sparse, patterns=("2:4", "unstructured"), densities=(0.5, 0.3), bits=(0, 4)
    )
    assert set(family.candidates(spec_of(40, 48))) == {
        Sparse("2:4"),
        Sparse("2:4", bits=4),
        *(Sparse("unstructured", share, bits) for share in (0.5, 0.3) for bits in (0, 4)),
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{patterns: [2:4]}", "with its quotes"),
        ("{patterns: [unstructured]}", "densities"),
        ('{patterns: ["2:4"], densities: [0.5]}', "densities"),
        ("{patterns: [unstructured], densities: [1.0]}", "between 0.0 and 1.0"),
        ("{patterns: [unstructured], densities: [0.5], bits: [3]}", "none, 8, 4"),
        ("{patterns: []}", "patterns"),
    ],
)
def test_entries_that_mean_nothing_are_named(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(SpaceFileError, match=message):
        space_of(tmp_path, entry)
