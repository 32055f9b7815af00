"""Families that store thin factors, alone or beside codes."""

from __future__ import annotations

from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.space.method_keys import MethodsKeys
from tests.methods.matrices import spec_of


def candidates(**methods: object) -> set[object]:
    (family,) = MethodsKeys.model_validate(methods).families()
    return set(family.candidates(spec_of(48, 64)))


def test_correctors_combine_what_is_listed() -> None:
    keys = {"bits": [2], "group_sizes": [32, 64], "ranks": [4], "rank_fractions": [0.5]}
    assert candidates(quantize_plus_low_rank=keys) == {
        QuantizePlusLowRank(2, group, rank) for group in (32, 0) for rank in (4, 24)
    }


def test_grams_are_settings_of_their_own() -> None:
    grams = ["full", "shrunk", "diagonal"]
    assert candidates(svd={"ranks": [4], "grams": grams}) == {Svd(4, gram=g) for g in grams}
    codes = candidates(quantize={"bits": [3], "group_sizes": [16], "grams": grams})
    assert codes == {Quantize(3, 16, gram=g) for g in grams}
    keys = {"bits": [3], "group_sizes": [16], "ranks": [2], "factor_bits": [4], "grams": grams}
    assert candidates(quantize_plus_low_rank=keys) == {
        QuantizePlusLowRank(3, 16, 2, 4, gram=g) for g in grams
    }
