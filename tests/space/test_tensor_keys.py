"""Keys of the methods that fold a matrix into modes."""

from __future__ import annotations

import pytest

from autocompress.errors import ConfigurationError
from autocompress.methods.cp import Cp
from autocompress.methods.folding import Modes
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.family import Family
from autocompress.space.space_file import load_space


@pytest.fixture
def load(tmp_path):
    def load(methods: str):
        path = tmp_path / "space.yaml"
        path.write_text(f"version: 1\nname: x\nmethods:\n  {methods}\n")
        return load_space(str(path))

    return load


def test_splits_and_cp_are_read(load):
    space = load("cp: {orders: [2], splits: [skewed], rank_fractions: [0.25], bits: [8]}")
    assert space.families == (
        Family.of(Cp, rank_fractions=(0.25,), orders=(2,), bits=(8,), splits=("skewed",)),
    )
    space = load("tensor_train: {orders: [2, 3], splits: [balanced, skewed], ranks: [8]}")
    assert space.families == (
        Family.of(TensorTrain, ranks=(8,), orders=(2, 3), splits=("balanced", "skewed")),
    )


def test_unknown_splits_are_refused(load):
    with pytest.raises(ConfigurationError, match="balanced"):
        load("tucker: {orders: [2], splits: [even], ranks: [8]}")


def test_only_tensor_trains_need_as_many_rows_as_columns(load):
    modes = "modes: [{rows: [704], columns: [16, 16]}]"
    for method, family in (("tucker", Tucker), ("cp", Cp)):
        space = load(f"{method}: {{{modes}, ranks: [8]}}")
        assert space.families == (Family.of(family, ranks=(8,), modes=(Modes((704,), (16, 16)),)),)
    with pytest.raises(ConfigurationError, match="as many rows as columns"):
        load(f"tensor_train: {{{modes}, ranks: [8]}}")
